"""How often `vabal forecast` holds what came: over the curves of grids that `vabal bench` wrote.

    python -m benchmarks.forecast OUT OUT ...

Each grid is a set. For each, the prior of `vabal.audit.forecast` is chosen on the other grids' curves, and the gains of
the next round, of the next two and four are forecast from every round on. Prints the share of gains inside the
intervals, their width, and how far off what is expected is, beside the gains' own size and "the last gain again"; then
the same with the prior that is shipped. The last line has the one that all grids choose. Axis: C classes.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import special, stats

from vabal.audit.curve import DEVIATIONS, of_recalls
from vabal.audit.forecast import CONFIDENCE, MEASURE, PRIOR, Gain, Point, Prior, gain
from vabal.benchmark.cells import read_cells

AHEAD = (1, 2, 4)
TRIED = [
    Prior(slope, slopes, start, walk, 0.25, 6.0)
    for slope, slopes, start, walk in itertools.product(
        (0.3, 0.6), (0.5, 1.0), (0.1, 0.3, 0.6), (0.04, 0.06, 0.09, 0.13)
    )
]
Curve = list[Point]
Of = TypeVar("Of")


class Told(NamedTuple):
    """A forecast from a curve's first rounds, and what came; errors, as the forecast counts them."""

    rounds: int
    ahead: int
    found: Gain
    came: float
    again: float | None  # the last gain once more
    now: float


def curves(out: Path) -> list[Curve]:
    found = []
    for cell in read_cells(out):
        images_C = np.array(cell["holdout_per_class"])
        points = []
        for told in cell["rounds"]:
            right_C = np.rint(np.array(told["recall_per_class"]) * images_C).astype(int)
            low, high = of_recalls(right_C, images_C)
            about = (high - low) / DEVIATIONS, len(images_C), int(images_C.sum())
            points.append(Point(told["labeled"], told[MEASURE], *about))
        found.append(points)
    return found


def forecasts(known: Iterable[Curve], prior: Prior) -> Iterator[Told]:
    for points in known:
        values = [point.value for point in points]
        for now in range(len(points) - 1):
            for ahead in (ahead for ahead in AHEAD if now + ahead < len(points)):
                more = points[now + ahead].labels - points[now].labels
                again = ahead * (values[now] - values[now - 1]) if now else None
                found = gain(points[: now + 1], more, prior)
                came = values[now + ahead] - values[now]
                yield Told(now + 1, ahead, found, came, again, max(1 - values[now], 0.5 / points[now].images))


def best(known: list[Curve]) -> Prior:
    """Of `TRIED`, the one under which what came is least surprising."""
    return max(TRIED, key=lambda prior: sum(_log_density(told, prior) for told in forecasts(known, prior)))


def _log_density(told: Told, prior: Prior) -> float:
    """Of the logarithm of the error that came, under the forecast's Student's t."""
    freedom = prior.weight + told.rounds
    expected = np.log(told.now - told.found.expected)
    scale = (expected - np.log(told.now - told.found.high)) / special.stdtrit(freedom, (1 + CONFIDENCE) / 2)
    return float(stats.t.logpdf(np.log(max(told.now - told.came, 1e-3)), freedom, expected, scale))


def judged(known: list[Curve], prior: Prior) -> Iterator[str]:
    every = list(forecasts(known, prior))
    for ahead in AHEAD:
        some = [told for told in every if told.ahead == ahead]
        held = np.mean([told.found.low <= told.came <= told.found.high for told in some])
        width = np.mean([told.found.high - told.found.low for told in some])
        off = np.mean([abs(told.found.expected - told.came) for told in some])
        again = np.mean([abs(told.again - told.came) for told in some if told.again is not None])
        size = np.mean([abs(told.came) for told in some])
        yield (
            f"{ahead} on: {held:.0%} held, width {100 * width:.1f}, off by {100 * off:.1f} of {100 * size:.1f} "
            f"(the last gain again: {100 * again:.1f})"
        )


def others(known: Mapping[Path, Sequence[Of]], left_out: Path) -> list[Of]:
    """What all grids but one hold; of a single grid its own."""
    return [each for out, some in known.items() if out != left_out for each in some] or list(known[left_out])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grids", nargs="+", type=Path, metavar="OUT", help="a folder that `vabal bench` wrote")
    known = {out: curves(out) for out in parser.parse_args().grids}
    for out, own in known.items():
        for name, prior in (("prior of the others", best(others(known, out))), ("the product's", PRIOR)):
            print(f"{out.name}: {len(own)} curves; {name}: {_told(prior)}")
            for line in judged(own, prior):
                print(f"    {line}")
    print(f"of all: {_told(best([curve for some in known.values() for curve in some]))}")


def _told(prior: Prior) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in prior._asdict().items())


if __name__ == "__main__":
    main()
