"""Which cron expressions are refused: held against the scheduler's own reader."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vabal.settings import cron


@pytest.mark.parametrize(
    "expression",
    [
        "0 2 * * *",
        "*/5 8-18 * * mon-fri",
        "0 0 29 2 *",
        "0 22-2 * * fri-mon",
        "0 0 L * ?",
        "0 0 * * 5#2",
    ],
)
def test_an_expression_that_fires_some_day_is_taken(expression: str) -> None:
    assert cron.problem(expression) is None


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 0 31 2 *", "never fires"),
        ("0 0 30 2 mon", "never fires"),
        ("0 0 30,31 feb ?", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("0 0 * * * *", "five fields (minute, hour, day, month, weekday), found 6"),
        ("@daily", "five fields"),
        ("", "five fields"),
        ("60 * * * *", "its minute '60' is none: 0 to 59"),
        ("0 24 * * *", "its hour '24'"),
        ("0 0 0 * *", "its day '0'"),
        ("0 0 1 13 *", "its month '13'"),
        ("0 0 * * 8", "its weekday '8'"),
        ("*/0 * * * *", "its minute '*/0'"),
        ("R 2 * * *", "its minute 'r'"),
        ("0 2 * * mo", "its weekday 'mo'"),
    ],
)
def test_an_expression_that_cannot_be_read_or_never_fires_is_told(expression: str, said: str) -> None:
    assert said in (cron.problem(expression) or "")


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high).map(str)
    steps = st.tuples(st.sampled_from(["*", f"{low}-{high}"]), st.integers(1, 9)).map(
        lambda pair: f"{pair[0]}/{pair[1]}"
    )
    return st.one_of(st.just("*"), number, st.lists(number, min_size=1, max_size=3).map(",".join), steps)


@settings(max_examples=150)
@given(
    st.tuples(
        field(0, 61), field(0, 25), field(27, 32), st.sampled_from(["*", "2", "4,6", "2,feb", "1-3"]), field(0, 8)
    )
)
def test_what_is_taken_is_what_the_scheduler_takes_and_fires(fields: tuple[str, ...]) -> None:
    croniter = pytest.importorskip("prefect._vendor.croniter")
    expression = " ".join(fields)
    wrong = cron.problem(expression)
    if wrong is not None and not wrong.startswith("never"):
        assert not croniter.croniter.is_valid(expression)
        return
    assert croniter.croniter.is_valid(expression)
    fires = croniter.croniter(expression, datetime(2024, 3, 1, tzinfo=UTC))
    if wrong is None:
        fires.get_next(datetime)
    else:
        with pytest.raises(croniter.CroniterBadDateError):
            fires.get_next(datetime)
