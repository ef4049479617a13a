"""What a round costs besides learning: the real flow on the real local stack, at 10 000 and 1 000 000 images.

`python -m benchmarks.bookkeeping`. Strategy `random`, a network of width 1, one epoch. Every round takes in the labels
of the last request. Of a round's time, from the call of the flow to its end, these are left out:

- learning: the time inside train-classifier, evaluate and extract-features, and inside the strategy's scoring (with
  the reading of what it scores); writing the candidates' table is not left out;
- process start: for every process of DVC and git that the round starts, the time of `dvc --version` or
  `git --version`, measured right after the round.

The CPU is that of the round's process, all of its threads, and of every process that it ran.

Sizes take turns. The bound for the larger pool is on the median of the pairs' ratios.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

SMALL, LARGE = 10_000, 1_000_000
SETTINGS = {
    "classifier.width": 1,
    "classifier.epochs": 1,
    "selection.strategy": "random",
    "selection.budget": 100,
    "compute.threads": 1,
}
LEARNING = ("train_classifier", "evaluate", "extract_features")  # of vabal.rounds.steps; `random` needs no VAE
MLFLOW = "mlflow"
STARTS = 3  # times that a start is measured after each round
MOST_SECONDS, MOST_CPU_SECONDS, MOST_RATIO = 10.0, 5.0, 3.0


def run(*, small: int = SMALL, large: int = LARGE, repeats: int = 3) -> dict[str, Any]:
    """Seconds of bookkeeping (wall clock, and CPU of the round and the processes it runs), and the ratio of sizes."""
    from vabal.adapters import stack  # noqa: PLC0415 -- not needed to read the bounds

    with tempfile.TemporaryDirectory(prefix="vabal-bench-") as name:
        root = Path(name)
        stack.up(root)
        try:
            measured = _measure(root, [small, large], repeats)
        finally:
            stack.down(root)
    return _summary(measured, small, large)


def _measure(root: Path, sizes: list[int], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """All rounds in one process, which knows the stack from its environment before it imports anything."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))}
    stack = dict(line.split("=", 1) for line in (root / ".vabal" / "env").read_text().splitlines())
    environment |= stack | {"PREFECT_LOGGING_LEVEL": "WARNING", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    out = root / "measured.json"
    command = [sys.executable, "-m", "benchmarks.bookkeeping", "--in", str(root), "--out", str(out)]
    command += ["--repeats", str(repeats), "--sizes", *map(str, sizes)]
    subprocess.run(command, env=environment, check=True)
    measured: dict[str, list[dict[str, Any]]] = json.loads(out.read_text())
    return measured


def _summary(measured: dict[str, list[dict[str, Any]]], small: int, large: int) -> dict[str, Any]:
    result: dict[str, Any] = {"repeats": len(measured[str(small)])}
    for name, size in (("small", small), ("large", large)):
        rounds = measured[str(size)]
        medians = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
        cpu = [round(one["bookkeeping_cpu_seconds"], 2) for one in rounds]
        result[name] = {"images": size, **medians, "rounds": [one["bookkeeping_seconds"] for one in rounds]}
        result[name]["rounds_cpu"] = cpu
    pairs = list(zip(measured[str(small)], measured[str(large)], strict=True))
    for kind in ("seconds", "cpu_seconds"):
        ratios = [theirs[f"bookkeeping_{kind}"] / ours[f"bookkeeping_{kind}"] for ours, theirs in pairs]
        result[f"ratio_{kind}"] = round(statistics.median(ratios), 2)
    return result


# -- inside the measuring process ---------------------------------------------------------------------------------


@dataclass
class Spent:
    """Seconds by purpose, on the clock and of the CPU; how often a program was started, and MLflow asked."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            self.wall[purpose] = self.wall.get(purpose, 0.0) + time.perf_counter() - wall
            self.cpu[purpose] = self.cpu.get(purpose, 0.0) + cpu_seconds() - cpu

    def watch(self, function: Callable[..., Any], purpose: str) -> Callable[..., Any]:
        @wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.on(purpose):
                return function(*arguments, **options)

        return watched

    def watch_processes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(command: list[str], **options: Any) -> Any:
            program = Path(command[0]).name
            with self.on(program):
                self.count(program)
                return function(command, **options)

        return watched

    def counting(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count(what)
            return function(*arguments, **options)

        return counted

    def count(self, what: str) -> None:
        self.starts[what] = self.starts.get(what, 0) + 1


def cpu_seconds() -> float:
    """Of this process and of those that it ran to their end."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextmanager
def _watched() -> Iterator[Spent]:
    """Within the block, what the round does is timed by purpose."""
    from requests import Session  # noqa: PLC0415

    from vabal.adapters import processes  # noqa: PLC0415
    from vabal.adapters.dvc_process import DvcProcess  # noqa: PLC0415
    from vabal.rounds import steps, tables  # noqa: PLC0415
    from vabal.strategies.random import RandomStrategy  # noqa: PLC0415

    spent = Spent()
    watched: list[tuple[Any, str, str]] = [(steps, name, "learning") for name in LEARNING]
    watched += [(RandomStrategy, "select", "scoring and writing"), (tables.ScoredWriter, "write", "writing")]
    # Its CPU is known once it has ended.
    watched += [(DvcProcess, name, "dvc") for name in ("_answer", "end")]
    with ExitStack() as patches:
        for owner, name, purpose in watched:
            patches.enter_context(patch.object(owner, name, spent.watch(getattr(owner, name), purpose)))
        patches.enter_context(patch.object(processes, "run", spent.watch_processes(processes.run)))
        patches.enter_context(patch.object(DvcProcess, "_start", spent.counting(DvcProcess._start, "dvc")))
        patches.enter_context(patch.object(Session, "request", spent.counting(Session.request, MLFLOW)))
        yield spent


def measure_round(root: Path) -> dict[str, Any]:
    """One round of the workspace. Raises RuntimeError if it was not published."""
    from vabal.flows.round import active_learning_round  # noqa: PLC0415 -- Prefect reads the environment at import

    with _watched() as spent, spent.on("round"):
        state = active_learning_round(str(root), return_state=True)
    if state.name != "Published":
        raise RuntimeError(f"the round ended as {state.name}: {state.message}")
    requests = spent.starts.pop(MLFLOW)
    starts = _starts(spent)
    document: dict[str, Any] = {}
    for kind, seconds, start in (("", spent.wall, starts.wall), ("cpu_", spent.cpu, starts.cpu)):
        learning = seconds["learning"] + seconds["scoring and writing"] - seconds["writing"]
        started = sum(start[program] * count for program, count in spent.starts.items())
        document[f"bookkeeping_{kind}seconds"] = seconds["round"] - learning - started
        document[f"round_{kind}seconds"] = seconds["round"]
        document[f"learning_{kind}seconds"] = learning
        document[f"process_start_{kind}seconds"] = started
        document[f"dvc_{kind}seconds"] = seconds["dvc"] - start["dvc"] * spent.starts["dvc"]
    document |= {f"{what}_started": spent.starts[what] for what in ("dvc", "git")} | {"mlflow_requests": requests}
    return document


def _starts(spent: Spent) -> Spent:
    """What one start of each program takes, now; the median of several."""
    starts = Spent()
    for program, command in (("dvc", [sys.executable, "-m", "dvc"]), ("git", ["git"])):
        assert program in spent.starts, f"the round ran no {program}"
        times = [Spent() for _ in range(STARTS)]
        for one in times:
            with one.on(program):
                subprocess.run([*command, "--version"], check=True, capture_output=True)
        starts.wall[program] = statistics.median(one.wall[program] for one in times)
        starts.cpu[program] = statistics.median(one.cpu[program] for one in times)
    assert set(starts.wall) == set(spent.starts), f"unknown programs among {sorted(spent.starts)}"
    return starts


def answer_request(root: Path) -> None:
    """Labels for all that the last round asked for, at random, into the inbox."""
    from vabal import pools  # noqa: PLC0415
    from vabal.labels import inbox  # noqa: PLC0415
    from vabal.rounds import requests  # noqa: PLC0415
    from vabal.workspace import Workspace  # noqa: PLC0415

    place = Workspace(root)
    asked = requests.picked_ids(place)
    if not asked.ids:
        return
    known = pools.read(place.data)
    label = np.asarray(known.classes, dtype=object)[
        np.random.default_rng(asked.round).integers(len(known.classes), size=len(asked.ids))
    ]
    answers = pd.DataFrame({"sample_id": asked.ids, "label": label, "annotator": "bench", "problem": None})
    answers["where"] = "a benchmark"
    content = answers.to_csv().encode()
    inbox.take_labels(place.inbox, known, answers, file="answers.csv", content=content, when=datetime.now(UTC))


def main() -> None:
    """Without arguments: the benchmark. With them, what the measuring process does."""
    parser = argparse.ArgumentParser(description="what a round costs besides learning")
    parser.add_argument("--in", dest="root", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs=2, default=(SMALL, LARGE))
    chosen = parser.parse_args()
    if chosen.root is None:
        print(json.dumps(run(small=chosen.sizes[0], large=chosen.sizes[1], repeats=chosen.repeats), indent=2))
        return
    from benchmarks.random_pool import make_workspace  # noqa: PLC0415

    places = {str(size): chosen.root / f"bench-{size}" for size in chosen.sizes}
    for size, place in zip(chosen.sizes, places.values(), strict=True):
        place.mkdir()
        make_workspace(place, size, SETTINGS | {"storage.bucket": place.name})
        measure_round(place)  # imports, servers and the decoded cache warm up
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
    for _ in range(chosen.repeats):
        for name, place in places.items():
            answer_request(place)
            measured[name].append(measure_round(place))
    chosen.out.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
