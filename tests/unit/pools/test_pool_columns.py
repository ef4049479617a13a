"""Typed columns between pandas and Arrow, and which label stands."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.small_pools import small_pools
from vabal import pools


def test_strings_are_pandas_str_on_arrow_with_nan_where_none_is() -> None:
    label = pools.typed(pd.DataFrame({"sample_id": ["a"], "label": [None]}), pools.SCHEMAS["holdout"])["label"]
    assert label.dtype == pd.StringDtype("pyarrow", na_value=np.nan)


def test_an_empty_frame_gets_a_schemas_columns_of_lists() -> None:
    schema = pa.schema([("id", pa.string()), ("v", pa.list_(pa.float32()))])
    table = pools.typed(pd.DataFrame({"id": [], "v": []}), schema)
    assert (len(table), list(table.columns)) == (0, ["id", "v"])


def test_a_column_that_is_missing_is_named_among_those_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"^columns missing: status, requested_round$"):
        pools.typed(pd.DataFrame({"sample_id": ["a"]}), pools.SCHEMAS["unlabeled"])


def test_strings_among_others_are_found_also_where_a_column_of_objects_has_nan() -> None:
    column = pd.Series(["a", np.nan, "b"], index=[7, 8, 9], dtype=object)
    found = pools.among(column, ["b", "c"])
    assert found.to_dict() == {7: False, 8: False, 9: True}
    assert pools.among(column, pd.Series(list("bcdefghijklmnop"))).to_dict() == found.to_dict()
    assert not pools.among(column, []).any()


# --- opinions ---------------------------------------------------------------------------------------------------------


def opinions(*rows: tuple[str, str, str | None]) -> pd.DataFrame:
    """Events on sample b: label, labeled_at and imported_at as days of January 2024, in the order of their arrival."""
    table = pd.DataFrame(rows, columns=["label", "labeled_at", "imported_at"], dtype=object)
    times = {
        name: pd.to_datetime("2024-01-" + table[name].astype("str"), utc=True).where(table[name].notna())
        for name in ("labeled_at", "imported_at")
    }
    return pools.typed(table.assign(**times, sample_id="b", annotator="ann", source="f"), pools.EVENTS)


def test_of_events_without_times_of_import_the_last_one_stands() -> None:
    events = small_pools().label_events.drop(columns="imported_at")
    turned = pd.concat([events, events.iloc[:1].assign(label="dog")], ignore_index=True)
    assert pools.standing(turned).index.tolist() == [1, 2]


def test_a_label_whose_clock_went_back_is_as_young_as_the_import_before_it() -> None:
    """The second is as old as the first's import, the 8th: younger than what the third file says of the 7th."""
    events = opinions(("cat", "01", "08"), ("dog", "05", None), ("cat", "07", "09"))
    assert pools.standing(events).index.tolist() == [1]


def test_of_many_opinions_of_the_same_age_the_one_that_came_last_stands() -> None:
    """600 events on 20 samples in turn; every third is a day older than the others."""
    events = opinions(*(("cat", "02" if number % 3 else "01", "09") for number in range(600)))
    events = events.assign(sample_id=[f"s{number % 20:02d}" for number in range(600)])
    newest = [number for number in range(580, 600) if number % 3] + [number - 20 for number in range(582, 600, 3)]
    assert sorted(newest) == pools.standing(events).index.tolist()
