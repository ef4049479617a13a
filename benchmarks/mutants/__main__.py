"""`python -m benchmarks.mutants [--only ROOM ...]`: mutants by module; fails below 90 % or without reasons.

The survivors that may stay, each with a reason, are the tables of docs/decisions/mutants.md. Stopped by a signal, it
prints what it has come to.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.mutants.rooms import CACHE, ROOMS, ROOT, STOPPED

LEAST: Final = 90.0
REASONS: Final = ROOT / "docs/decisions/mutants.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=tuple(ROOMS), default=[])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--files", nargs="*", metavar="NAME.py", default=[], help="only these modules of the rooms")
    parser.add_argument("--every", type=int, default=1, help="a sample: only every so many'th mutant of a module")
    parser.add_argument("--afresh", action="store_true", help="try again what was killed before, too")
    chosen = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    results: list[dict[str, Any]] = []
    code = 0
    for name in chosen.only or ROOMS:
        print(f"\n{name}: ", end="", flush=True)
        if chosen.afresh:
            (CACHE / f"{name}.known.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.mutants.trying", name, str(chosen.jobs), str(chosen.every)]
        code = _ended([*command, *chosen.files])
        if code not in (0, STOPPED):
            return 1
        results += json.loads((CACHE / f"{name}.json").read_text())
        if code == STOPPED:
            print("\n\nStopped: what follows is of the mutants tried so far.", end="")
            break
    reasons = REASONS.read_text()
    unexplained = [row for row in survivors(results) if row not in reasons]
    print("\n\n" + "\n".join(table(results)))
    if unexplained:
        print(f"\nSurvivors without a reason in {REASONS.relative_to(ROOT)}:\n" + "\n".join(unexplained))
    return 1 if code or unexplained or any(share < LEAST for share in shares(results).values()) else 0


def _ended(command: Sequence[str]) -> int:
    """The exit code of the command, to which a signal to stop is passed on."""
    with subprocess.Popen(command, cwd=ROOT) as trying:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: trying.terminate())
        return trying.wait()


def survivors(results: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each, as the page of reasons has it."""
    rows = []
    for result in results:
        if result["result"] != "killed":
            change = result["change"].replace("|", "\\|")
            rows.append(f"| {result['file'].removeprefix('vabal/')} | {result['function']} | `{change}` |")
    return rows


def shares(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Per cent killed, by module."""
    all_ = Counter(r["file"] for r in results if r["result"] != "untried")
    killed = Counter(r["file"] for r in results if r["result"] == "killed")
    return {file: 100 * killed[file] / count for file, count in all_.items()}


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each module, and one for all."""
    lines = ["| module | mutants | killed | survived | % |", "|---|---|---|---|---|"]
    for file in [*dict.fromkeys(r["file"] for r in results), "all"]:
        count = Counter(r["result"] for r in results if file in (r["file"], "all"))
        tried = count["killed"] + count["survived"]
        share = f"{100 * count['killed'] / tried:.1f}" if tried else "-"
        lines.append(f"| {file} | {tried} | {count['killed']} | {count['survived']} | {share} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
