"""What a user can mend is logged in one line; a bug keeps its traceback."""

import logging

from vabal.errors import UserError


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, UserError):
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
        return True


def one_line_for_user_errors() -> None:
    """Idempotent; Prefect logs a failed run with its traceback otherwise."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(item, _OneLine) for item in logger.filters):
            logger.addFilter(_OneLine())
