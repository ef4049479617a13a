"""Work for processes that the tests start by `spawn`: what it imports, each of them imports."""

import os
import signal
import time
from pathlib import Path


def sleep(name: str) -> None:
    """Leaves the file `name.PID`, and sleeps for a minute."""
    Path(f"{name}.{os.getpid()}").touch()
    time.sleep(60)


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
