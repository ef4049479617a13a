"""Which opinion stood when it came: event by event as of whole tables."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from vabal import pools
from vabal.audit.ages import stood

times = st.one_of(st.none(), st.integers(0, 3))
told = st.lists(st.tuples(st.sampled_from("ab"), times, times), max_size=8)


@given(told)
def test_event_by_event_the_same_stand_as_in_a_table(events: list[tuple[str, int | None, int | None]]) -> None:
    rows = [(sample_id, "cat", "eve", 1, said, "f.csv", imported) for sample_id, said, imported in events]
    frame = pd.DataFrame(rows, columns=pools.SCHEMAS["label_events"].names)
    for name in ("labeled_at", "imported_at"):
        frame[name] = pd.to_datetime(frame[name].astype("Int64"), unit="us", utc=True)
    table = pools.typed(frame, pools.SCHEMAS["label_events"])
    places = [place for place, stands in enumerate(stood(events)) if stands]
    assert places == list(pools.counting(table).index)
    last = {events[place][0]: place for place in places}
    assert sorted(last.values()) == sorted(pools.standing(table).index)
