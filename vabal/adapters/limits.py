"""How long servers may take: every call over the network ends, in an answer or in one line.

A refused connection is told at once; these are for servers that are there and slow. All come from the environment, for
they belong to a machine and its line, not to a workspace.
"""

import os

from vabal.errors import UserError

SILENCE, TRANSFER, START, WORKER = "VABAL_SILENCE_S", "VABAL_TRANSFER_S", "VABAL_START_S", "VABAL_WORKER_S"
DEFAULTS = {SILENCE: 60.0, TRANSFER: 6 * 3600.0, START: 300.0, WORKER: 120.0}
GLANCE_S = 10.0


def silence() -> float:
    """Seconds that a server may say nothing before the call is given up. Raises UserError for what is no number."""
    return _seconds(SILENCE)


def transfer() -> float:
    """Seconds that one `dvc` or `git` may take in all. Raises UserError for what is no number."""
    return _seconds(TRANSFER)


def start() -> float:
    """Seconds that the local stack may take until all of it answers. Raises UserError for what is no number."""
    return _seconds(START)


def worker() -> float:
    """Seconds that a worker may be unheard of before it counts as gone. Raises UserError for what is no number."""
    return _seconds(WORKER)


def glance() -> float:
    """Seconds for a look at a server by somebody who looks again, or only tells what is so now."""
    return min(GLANCE_S, silence())


def _seconds(name: str) -> float:
    text = os.environ.get(name, "")
    if not text:
        return DEFAULTS[name]
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise UserError(f"{name}={text}: give seconds, as {name}={DEFAULTS[name]:g}")
    return seconds
