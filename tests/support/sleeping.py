"""Work for a process of its own that never ends by itself."""

import os
import time
from pathlib import Path


def sleep(name: str) -> None:
    """Leaves the file `name.PID`, and sleeps for a minute."""
    Path(f"{name}.{os.getpid()}").touch()
    time.sleep(60)
