"""Rules that say when there are enough labels, compared over the curves of grids that `vabal bench` wrote.

    python -m benchmarks.stopping OUT OUT ...

Each grid is a set. A rule comes to a number in each round, and stops the first time that it is below its threshold.
*Lost* is what balanced accuracy still came to by the last round (the mean of its last two, less what it was at the
stop), *saved* the share of the labels bought after the first rule could speak that were not bought. For each set, the
threshold is the one that saved most on the other sets while losing no more than a point there on average; then as the
literature's software has it (small-text), that which all sets choose, and, of the rules that are built in, some others.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.forecast import Curve, curves, others
from vabal.audit.enough import FEWEST, WINDOW, disagreement, forecast_points
from vabal.audit.settled import Settled
from vabal.benchmark.cells import read_cells

ALLOWED = 1.0  # points


class Run(NamedTuple):
    """A cell: its curve, and how settled the model was from the second round on."""

    curve: Curve
    settled: list[Settled]


class Stop(NamedTuple):
    lost: float
    saved: float


Rule = Callable[[Run, int], float | None]  # by a run's first so many rounds


def _forecast(run: Run, rounds: int) -> float | None:
    known = run.curve[:rounds]
    return forecast_points(known, run.curve[rounds].labels - known[-1].labels)


def _last(name: str, window: int = 1) -> Rule:
    def told(run: Run, rounds: int) -> float | None:
        known = [getattr(each, name) for each in run.settled[: rounds - 1]]
        return 100 * float(np.mean(known[-window:])) if len(known) >= max(window, FEWEST - 1) else None

    return told


RULES: Mapping[str, Rule] = {
    "forecast: upper end of the next request's gain": _forecast,
    "kappa of the last three changes, short of 1": lambda run, rounds: disagreement(run.settled[: rounds - 1]),
    "change of F, last three": _last("delta_f", WINDOW),
    "share of predictions that changed": _last("changed"),
    "mean entropy, in per cent of the highest": _last("entropy"),
}
BUILT_IN = list(RULES)[:2]
STEPS = (0.5, 1.0, 2.0, 3.0)  # of `labelling.stop_below`
PUBLISHED = {  # small-text 1.x
    "kappa of the last three changes, short of 1": 1.0,
    "change of F, last three": 5.0,
    "mean entropy, in per cent of the highest": 5.0,
}


def runs(out: Path) -> list[Run]:
    cells = read_cells(out)
    settled = [[Settled(**told["settled"]) for told in cell["rounds"][1:]] for cell in cells]
    return [Run(*pair) for pair in zip(curves(out), settled, strict=True)]


class Told(NamedTuple):
    """A run, and what a rule came to after each number of its rounds at which it could stop."""

    run: Run
    points: dict[int, float]


def tell(known: Sequence[Run], rule: Rule) -> list[Told]:
    told = []
    for run in known:
        said = {rounds: rule(run, rounds) for rounds in range(FEWEST, len(run.curve))}
        told.append(Told(run, {rounds: points for rounds, points in said.items() if points is not None}))
    return told


def stopped(told: Told, below: float) -> Stop:
    values, labels = ([getattr(point, name) for point in told.run.curve] for name in ("value", "labels"))
    at = next((rounds for rounds, points in told.points.items() if points < below), len(labels))
    lost = 100 * (float(np.mean(values[-2:])) - values[at - 1]) if at < len(labels) else 0.0
    return Stop(lost, (labels[-1] - labels[at - 1]) / (labels[-1] - labels[FEWEST - 1]))


def chosen(known: Sequence[Told]) -> float:
    """The threshold that saves most while it loses no more than `ALLOWED` on average; 0, which never stops, else."""
    said = [points for told in known for points in told.points.values()]
    best = (0.0, 0.0)
    for below in np.quantile(said, np.linspace(0, 1, 101)).tolist():
        lost, saved = np.mean([stopped(told, below) for told in known], axis=0)
        best = max(best, (float(saved), below)) if lost <= ALLOWED else best
    return best[1]


def row(known: Sequence[Told], below: float) -> str:
    stops = [stopped(told, below) for told in known]
    lost = [stop.lost for stop in stops]
    ran = sum(stop.saved > 0 for stop in stops)
    saved = np.mean([stop.saved for stop in stops])
    return (
        f"below {below:.1f}: stopped {ran} of {len(stops)}, saved {saved:.0%}, lost {np.mean(lost):+.1f} points "
        f"(worst {max(lost):+.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grids", nargs="+", type=Path, metavar="OUT", help="a folder that `vabal bench` wrote")
    known = {out: runs(out) for out in parser.parse_args().grids}
    for name, rule in RULES.items():
        told = {out: tell(some, rule) for out, some in known.items()}
        every = [each for some in told.values() for each in some]
        print(name)
        for out, own in told.items():
            print(f"    {out.name}: {row(own, chosen(others(told, out)))}")
        for out, own in told.items() if name in PUBLISHED else ():
            print(f"    {out.name}, as published: {row(own, PUBLISHED[name])}")
        print(f"    of all: {row(every, chosen(every))}")
        for below in STEPS if name in BUILT_IN else ():
            for out, own in told.items():
                print(f"    {out.name}: {row(own, below)}")


if __name__ == "__main__":
    main()
