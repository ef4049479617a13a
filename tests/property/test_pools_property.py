import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_pools import WHEN, catalog_of
from vabal import pools
from vabal.pools import Pools

CLASSES = ("cat", "dog", "bird")
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=6)
Rows = list[dict[str, object]]


@st.composite
def some_pools(draw: st.DrawFn) -> Pools:
    """Pools of up to 12 samples with odd ids, every sample somewhere."""
    ids = draw(st.lists(NAMES, min_size=1, max_size=12, unique=True))
    place = {name: draw(st.sampled_from(["labeled", "available", "requested", "holdout", "blank"])) for name in ids}
    label = {name: draw(st.sampled_from(CLASSES)) for name in ids}
    stamp: dict[str, object] = {"annotator": "source", "round": 0, "labeled_at": None}
    given = {kind: [name for name in ids if place[name] == kind] for kind in set(place.values())}
    labeled: Rows = [{"sample_id": name, "label": label[name], **stamp} for name in given.get("labeled", [])]
    held: Rows = [{"sample_id": name, "label": label[name]} for name in given.get("holdout", [])]
    events: Rows = [{**row, **stamp, "source": "made"} for row in [*labeled, *held]]
    held += [{"sample_id": name, "label": None} for name in given.get("blank", [])]
    waiting: list[tuple[str, str, int | None]] = [(name, "available", None) for name in given.get("available", [])]
    waiting += [(name, "requested", 1) for name in given.get("requested", [])]
    tables = {
        "catalog": catalog_of(ids),
        "labeled": pd.DataFrame(labeled, columns=pools.SCHEMAS["labeled"].names),
        "unlabeled": pd.DataFrame(waiting, columns=pools.SCHEMAS["unlabeled"].names),
        "holdout": pd.DataFrame(held, columns=pools.SCHEMAS["holdout"].names),
        "label_events": pd.DataFrame(events, columns=pools.SCHEMAS["label_events"].names),
    }
    typed = {name: pools.typed(table, pools.SCHEMAS[name]) for name, table in tables.items()}
    return Pools(**{name: pools.by_id(table) for name, table in typed.items()}, classes=CLASSES)


@st.composite
def pools_and_events(draw: st.DrawFn) -> tuple[Pools, pd.DataFrame]:
    made = draw(some_pools())
    ids = st.sampled_from([*made.catalog["sample_id"], "a stranger to all"])
    rows = draw(
        st.lists(st.tuples(ids, st.sampled_from([*CLASSES, None]), st.sampled_from(["ann", "bob"])), max_size=8)
    )
    table = pd.DataFrame(rows, columns=["sample_id", "label", "annotator"], dtype=object)
    return made, pools.typed(table.assign(labeled_at=WHEN, source="file"), pools.EVENTS)


@settings(max_examples=25)
@given(pools_and_events())
def test_events_at_once_or_one_by_one_end_in_the_same_pools(case: tuple[Pools, pd.DataFrame]) -> None:
    made, events = case
    pools.check(made)
    at_once, report = pools.apply_labels(made, events, 3)
    pools.check(at_once)
    stepwise, totals = made, dict.fromkeys(("new", "repeated", "corrected", "rejected"), 0)
    for index in range(len(events)):
        stepwise, step = pools.apply_labels(stepwise, events.iloc[[index]], 3)
        for name in totals:
            totals[name] += getattr(step, name)
    assert pools.digests(stepwise) == pools.digests(at_once)
    assert totals == {name: getattr(report, name) for name in totals}


@settings(max_examples=25)
@given(pools_and_events())
def test_intake_loses_no_sample_moves_no_holdout_and_keeps_the_last_word(case: tuple[Pools, pd.DataFrame]) -> None:
    made, events = case
    after, report = pools.apply_labels(made, events, 3)
    assert sorted(after.holdout["sample_id"]) == sorted(made.holdout["sample_id"])
    members = pd.concat([after.labeled["sample_id"], after.unlabeled["sample_id"], after.holdout["sample_id"]])
    assert sorted(members) == sorted(made.catalog["sample_id"])
    known = events[events["sample_id"] != "a stranger to all"]
    assert len(after.label_events) == len(made.label_events) + len(known)
    assert (report.unknown == ("a stranger to all",)) == (len(known) < len(events))
    standing = pd.concat([after.labeled, after.holdout]).set_index("sample_id")["label"].dropna().to_dict()
    for row in known.drop_duplicates("sample_id", keep="last").itertuples():
        assert standing.get(row.sample_id) == (row.label if isinstance(row.label, str) else None)


@settings(max_examples=15)
@given(some_pools())
def test_pools_survive_their_files(made: Pools) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pools.save(made, Path(folder))
        back = pools.load(Path(folder))
        assert pools.digests(back) == pools.digests(made)
        assert pools.save(back, Path(folder), made) == []


VALUES = st.one_of(st.none(), st.floats(allow_nan=False), st.integers(-(2**60), 2**60).map(float))


@settings(max_examples=25)
@given(st.dictionaries(NAMES, st.tuples(VALUES, st.one_of(st.none(), NAMES)), min_size=1, max_size=8))
def test_a_digest_depends_on_the_rows_and_not_on_their_order(rows: dict[str, tuple[object, object]]) -> None:
    table = pd.DataFrame([(key, *values) for key, values in rows.items()], columns=["key", "number", "text"])
    digest = pools.table_digest(table, ["key"])
    assert pools.table_digest(table.sample(frac=1, random_state=1)[["text", "key", "number"]], ["key"]) == digest
    changed = table.copy()
    changed.loc[0, "number"] = 0.125 if changed.loc[0, "number"] != 0.125 else np.nan
    assert pools.table_digest(changed, ["key"]) != digest


@settings(max_examples=15)
@given(some_pools(), st.integers(1, 5))
def test_what_is_asked_for_is_open_until_it_is_answered(made: Pools, count: int) -> None:
    available = made.unlabeled.loc[made.unlabeled["status"] == "available", "sample_id"].tolist()[:count]
    asked = pools.mark_requested(made, available, 7)
    pools.check(asked)
    assert set(available) <= set(pools.open_requests(asked)["sample_id"])
    table = pd.DataFrame({"sample_id": available, "label": "cat"}, dtype=object)
    events = pools.typed(table.assign(annotator="ann", labeled_at=WHEN, source="f"), pools.EVENTS)
    answered, _ = pools.apply_labels(asked, events, 8)
    assert not set(available) & set(pools.open_requests(answered)["sample_id"])
