"""Of processes that may not see a folder: whatever of it they open, list or make is refused."""

import os
import sys

FORBIDDEN = os.environ.get("FORBIDDEN_FOLDER", "")
EVENTS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.link", "os.utime"}


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event in EVENTS and arguments and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 -- links stay as they are named
        if path == FORBIDDEN or path.startswith(FORBIDDEN + os.sep):
            raise PermissionError(13, "of another machine", path)


if FORBIDDEN:
    sys.addaudithook(_refuse)
