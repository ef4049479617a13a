"""How long servers may take: every call over the network ends, in an answer or in one line.

Both limits come from the environment, for they belong to a machine and its line, not to a workspace.
"""

import os

from vabal.errors import UserError

SILENCE, TRANSFER = "VABAL_SILENCE_S", "VABAL_TRANSFER_S"
DEFAULTS = {SILENCE: 60.0, TRANSFER: 6 * 3600.0}


def silence() -> float:
    """Seconds that a server may say nothing before the call is given up. Raises UserError for what is no number."""
    return _seconds(SILENCE)


def transfer() -> float:
    """Seconds that one `dvc` or `git` may take in all. Raises UserError for what is no number."""
    return _seconds(TRANSFER)


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
