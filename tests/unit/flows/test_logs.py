"""What a flow in the command's own process tells on the console."""

import logging
from collections.abc import Iterator

import pytest
from prefect.logging.configuration import setup_logging
from rich.console import Console

from vabal.flows import logs


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What is logged of events that could not be sent; afterwards Prefect's logging is as it sets it up."""
    sending, lines = logging.getLogger(logs.SENDING), list[str]()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    sending.addHandler(listener := Listener())
    yield lines
    sending.removeHandler(listener)
    for each in list(sending.filters):
        sending.removeFilter(each)
    setup_logging(incremental=False)


def test_that_an_event_could_not_be_sent_is_not_told_also_after_prefect_set_its_logging_up_again(
    heard: list[str],
) -> None:
    sending = logging.getLogger(logs.SENDING)
    sending.error("EventsWorker failed with 1 pending items.")
    logs.leave_the_end_to_the_command(Console())
    setup_logging(incremental=True)
    sending.error("EventsWorker failed with 2 pending items.")
    assert heard == ["EventsWorker failed with 1 pending items."]
