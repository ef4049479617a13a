"""What a command costs before it does anything: CPU of its process in units of `import pandas`, and in seconds.

Commands run on a workspace of digits made here, the flow is imported as a worker does. The machine's seconds differ
from day to day, so the bounds are ratios; which modules may be loaded at all, `tests/rules/test_imports.py` says.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUNS = 5
#: The most that each may cost, in units of `import pandas` in a process of its own.
MOST = {"--help": 0.75, "audit": 2.0, "status": 1.9, "labels export requests": 2.1, "import vabal.flows.round": 7.0}
_MEASURED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "vabal":
        runpy.run_module("vabal.cli", run_name="__main__")
    else:
        exec(sys.argv[0])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def seconds(command: list[str], folder: Path) -> float:
    """CPU of the process itself, the best of some runs."""
    best = float("inf")
    for _ in range(RUNS):
        run = [sys.executable, "-c", _MEASURED, *command]
        done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
        best = min(best, float(done.stderr.splitlines()[-1]))
    return best


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init = [sys.executable, "-m", "vabal.cli", "init", "--source", "digits", "--initial", "60"]
        subprocess.run(init, cwd=folder, capture_output=True, check=True)
        unit = seconds(["import pandas"], folder)
        cost = {
            what: seconds([what] if what.startswith("import") else ["vabal", *what.split()], folder) for what in MOST
        }
    ratios = {what: value / unit for what, value in cost.items()}
    return {"pandas_seconds": unit, "seconds": cost, "ratios": ratios}
