"""What a flow in the command's own process tells on the console."""

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prefect.logging.configuration import setup_logging
from rich.console import Console

from vabal.flows import logs
from vabal.flows.meanwhile import OF_PROGRESS


@pytest.fixture(autouse=True)
def _prefects_own_logging() -> Iterator[None]:
    setup_logging(incremental=False)
    yield
    sending = logging.getLogger(logs.SENDING)
    for each in list(sending.filters):
        sending.removeFilter(each)
    setup_logging(incremental=False)


def told_of_events_that_were_not_sent() -> list[str]:
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    sending = logging.getLogger(logs.SENDING)
    sending.addHandler(listener := Listener())
    sending.error("EventsWorker failed with 1 pending items.")
    sending.removeHandler(listener)
    return lines


def test_events_that_could_not_be_sent_are_not_told_also_after_prefect_set_its_logging_up_again() -> None:
    assert told_of_events_that_were_not_sent() != []
    logs.leave_the_end_to_the_command(Console())
    assert told_of_events_that_were_not_sent() == []
    setup_logging(incremental=False)  # as Prefect does by itself where it cannot change what is there
    assert told_of_events_that_were_not_sent() == []


def test_a_line_of_progress_is_for_those_who_see_no_bars() -> None:
    record = logging.LogRecord("prefect.task_runs", logging.INFO, "", 0, "train-vae: 50 of 200", None, None)
    shown = logs._BetweenLevels(logging.INFO)
    assert shown.filter(record)
    setattr(record, OF_PROGRESS, True)
    assert not shown.filter(record)


TALKING = """
import logging, sys
from prefect.logging.configuration import setup_logging
from vabal.flows import logs

setup_logging()
if sys.argv[1] == "outlives":
    logs.outlive_the_worker()
sys.stdin.readline()
for word in ("nobody", "reads", "this"):
    logging.getLogger("prefect.flow_runs.worker").warning(word)
    print(word, flush=True)
"""


@pytest.mark.parametrize(("how", "code"), [("outlives", 0), ("as it comes", 1)])
def test_a_run_goes_on_when_the_worker_that_reads_its_lines_is_dead(how: str, code: int) -> None:
    command = [sys.executable, "-c", TALKING, how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(120) == code
