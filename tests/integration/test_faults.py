"""A seeded sample of the sweep over faults; `make faults` runs all of it.

An `init` dies at each of its places in `unit/rounds/test_initial.py`, a round on servers in `test_round.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_sample_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    out = tmp_path / "outcomes.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--sample", "--seed", "1", "--out", str(out)]
    unmeasured = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}  # twice as quick
    done = subprocess.run(command, cwd=ROOT, env=unmeasured, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(out.read_text())
    assert [outcome for outcome in outcomes if outcome["broken"]] == []
    tried = {kind: sum(item["tried"] for item in outcomes if item["kind"] == kind) for kind in _kinds(outcomes)}
    assert tried["SIGKILL, init"] >= 4
    assert tried["SIGKILL, round"] >= 16
    assert {f"SIGKILL, {step}" for step in ("import", "ingest", "classes", "promote", "rollback")} <= tried.keys()
    assert tried["no file beyond a limit"] >= 1
    assert tried["clock set back"] >= 2


def _kinds(outcomes: list[dict[str, str]]) -> set[str]:
    return {outcome["kind"] for outcome in outcomes}
