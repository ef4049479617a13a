"""What a user can mend, or the system refuses, is logged in one line; a bug keeps its traceback."""

import logging
import os
import stat
import sys

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console

from vabal.errors import UserError, os_error_line
from vabal.flows.meanwhile import OF_PROGRESS

RUNS = ("prefect.flow_runs", "prefect.task_runs")
# Tells of each event that Prefect could not send to its server; that the server is away is said once, at the end.
SENDING = "prefect._internal.concurrency"


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, (UserError, OSError)):
            line = str(error) if isinstance(error, UserError) else os_error_line(error)
            record.msg, record.args, record.exc_info, record.exc_text = line, (), None, None
        return True


class _BetweenLevels(logging.Filter):
    """Of runs what is neither chatter nor an error; of Prefect's own workings errors alone."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, OF_PROGRESS):
            return False  # its bars tell that
        if record.name in RUNS:
            return self.least <= record.levelno < logging.ERROR
        return record.levelno >= logging.ERROR


def _nothing(_: logging.LogRecord) -> bool:
    return False


def leave_the_end_to_the_command(console: Console) -> None:
    """For runs in the command's own process, which says itself how they ended: no errors twice on the console.

    On a terminal, lines come through `console`, above its progress bars; elsewhere, warnings alone. The Prefect server
    gets the whole log in any case. Call it once, after Prefect was imported, which sets its logging up.
    """
    logging.getLogger(SENDING).addFilter(_nothing)  # a level would be lost when Prefect sets its logging up again
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(_BetweenLevels(logging.INFO if console.is_terminal else logging.WARNING))
            handler.console = console


def outlive_the_worker() -> None:
    """A run's lines go to its worker by a pipe: once that is dead they go nowhere, and the run goes on. Idempotent.

    As it comes, the console that Prefect logs through ends the process with the first line that nobody reads.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = _write_to_nobody  # type: ignore[method-assign]


def _write_to_nobody() -> None:
    nobody = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            os.dup2(nobody, stream.fileno())
    os.close(nobody)


def one_line_for_user_errors() -> None:
    """Idempotent; Prefect logs a failed run with its traceback otherwise."""
    for name in RUNS:
        logger = logging.getLogger(name)
        if not any(isinstance(item, _OneLine) for item in logger.filters):
            logger.addFilter(_OneLine())
