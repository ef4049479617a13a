"""How time grows with the samples N and the classes C: `python -m benchmarks.growth`. Writes `docs/growth.svg`.

CPU seconds with one thread, so that a busy machine shows as little as can be, on random numbers. Of strategies it is
the selection alone: what training and extraction provide for them is there. Exponents are slopes of the fitted line
through log time against log size; `last` is the slope between the two largest sizes, where what does not grow with the
size weighs least. Memory is the peak of resident memory above what the process held before, the pool itself left out.

`far` says what `FAR` samples would take, and which of a night and a machine's memory they outgrow: time goes on by the
last slope, memory along the line through the two largest sizes. That is an extrapolation, not a measurement.

So that all of it takes minutes: the estimate and the class terms take one independent draw where N grows, ten where C
grows; C grows at `SAMPLES` samples, for the estimate and the class terms at `FEW_SAMPLES`; what would take longer than
`PATIENCE` seconds at a size, going by its growth so far, is left out, and the table has null.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.memory import peak_above
from benchmarks.threads import one_thread
from vabal import strategies
from vabal import vae as vaes
from vabal.probabilities import ClassTerms, estimate_class_terms, estimate_likelihood, mistake_score
from vabal.settings.models import ProbabilitySettings, SelectionSettings
from vabal.settings.presets import PRESETS
from vabal.strategies import Context, Labeled, Shard

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
FAR = 100_000_000
NIGHT_HOURS, MACHINE_GB = 8, 64  # what a night has on one core, and a usual machine
CLASSES = (10, 100, 1_000)
SAMPLES, FEW_SAMPLES = 10_000, 1_000
WIDTHS, SIDE = (4, 4, 4, 4), 8  # features of four stages; images
LABELED, BUDGET, SHARD_ROWS = 500, 100, 100_000
WRAPPED = ("balanced:margin", "stochastic:margin")
PATIENCE = 45.0
MOST = 1.2  # the largest fitted exponent in N: linear, with a sort's logarithm and caches that overflow
PLOT = Path(__file__).parents[1] / "docs" / "growth.svg"

Task = Callable[[], object]


def run(
    sizes: tuple[int, ...] = SIZES,
    classes: tuple[int, ...] = CLASSES,
    samples: int = SAMPLES,
    few_samples: int = FEW_SAMPLES,
    plot: Path | None = PLOT,
) -> dict[str, Any]:
    """Seconds by name and size, exponents, and the largest exponent in N; the plot where one is wanted."""
    with one_thread():
        by_samples = _table({n: _tasks(n, classes[0], n, draws=1) for n in sizes})
        by_classes = _table({c: _tasks(samples, c, few_samples, draws=10) for c in classes})
    if plot is not None:
        draw(by_samples, by_classes, plot, classes[0], samples)
    fitted = {name: row["fitted"] for name, row in by_samples.items() if row["fitted"] is not None}
    for row in by_samples.values():
        row["far"] = far(row)
    return {
        "samples": {"classes": classes[0], "rows": by_samples},
        "classes": {"samples": samples, "samples_of_the_estimate": few_samples, "rows": by_classes},
        "largest_exponent": max(fitted.values()),
        "largest_exponent_of": max(fitted, key=lambda name: fitted[name]),
    }


def _table(tasks: dict[int, Iterator[tuple[str, Task]]]) -> dict[str, dict[str, Any]]:
    """Of each task its seconds and megabytes by size, None where it was left out, and its exponents."""
    seconds: dict[str, dict[int, float | None]] = {}
    megabytes: dict[str, dict[int, float | None]] = {}
    for size, named in tasks.items():
        for name, task in named:
            row = seconds.setdefault(name, {})
            taken = _measure(task) if _expected(row, size) <= PATIENCE else (None, None)
            row[size], megabytes.setdefault(name, {})[size] = taken
    return {name: {"seconds": row, "megabytes": megabytes[name], **exponents(row)} for name, row in seconds.items()}


def _expected(row: dict[int, float | None], size: int) -> float:
    """Seconds at the next size, going by those before; the first size is always tried."""
    if None in row.values():
        return np.inf
    there = {before: value for before, value in row.items() if value is not None}
    if not there:
        return 0.0
    largest, slope = max(there), exponents(row)["last"]
    return float(there[largest] * (size / largest) ** (slope or 0.0))


def _measure(task: Task) -> tuple[float, float]:
    """CPU seconds, the less of two where they are short, and megabytes, the more of them."""
    taken: list[float] = []
    peaks: list[float] = []
    while not taken or (len(taken) < 2 and taken[0] < 1):
        start = time.process_time()
        peaks.append(peak_above(task))
        taken.append(time.process_time() - start)
    return min(taken), max(peaks)


def exponents(seconds: dict[int, float | None]) -> dict[str, float | None]:
    """Slopes of log seconds against log size: the fitted line's, and between the two largest sizes."""
    there = [(size, value) for size, value in seconds.items() if value]
    if len(there) < 2:
        return {"fitted": None, "last": None}
    logs = np.log(np.array(there))
    fitted = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    (size, value), (largest, longest) = logs[-2], logs[-1]
    return {"fitted": fitted, "last": float((longest - value) / (largest - size))}


def far(row: dict[str, Any], size: int = FAR) -> dict[str, Any]:
    """Hours and gigabytes that so many samples would take, going by the two largest sizes, and what stops them."""
    there = sorted(n for n, value in row["seconds"].items() if value is not None)
    if len(there) < 2:
        return {"hours": None, "gigabytes": None, "stopped_by": "too few sizes"}
    before, largest = there[-2:]
    hours = row["seconds"][largest] * (size / largest) ** max(row["last"], 0.0) / 3600
    held, held_before = row["megabytes"][largest], row["megabytes"][before]
    gigabytes = (held + max(held - held_before, 0.0) / (largest - before) * (size - largest)) / 1000
    stops = [name for name, much in (("memory", gigabytes > MACHINE_GB), ("time", hours > NIGHT_HOURS)) if much]
    return {"hours": hours, "gigabytes": gigabytes, "stopped_by": " and ".join(stops) or "nothing"}


def lines(result: dict[str, Any]) -> list[str]:
    """The table, for people."""
    printed = []
    for axis, unit in (("samples", "N"), ("classes", "C")):
        rows = result[axis]["rows"]
        sizes = list(next(iter(rows.values()))["seconds"])
        heads = "".join(f"{f'{unit} = {int(size):,}':>16}" for size in sizes)
        ends = f"   at N = {FAR:,}: hours, GB, stopped by" if axis == "samples" else ""
        printed += ["", f"{'CPU seconds':<20}{heads}{'fitted':>8}{'last':>6}{ends}"]
        for name, row in rows.items():
            there = "".join(_cell(row["seconds"][size], 16, ".3g") for size in sizes)
            slopes = _cell(row["fitted"], 8, ".2f") + _cell(row["last"], 6, ".2f")
            end = ""
            if axis == "samples":
                then = row["far"]
                end = f"{_cell(then['hours'], 15, '.2g')}{_cell(then['gigabytes'], 8, '.2g')}  {then['stopped_by']}"
            printed.append(f"{name:<20}{there}{slopes}{end}")
    return [*printed, ""]


def _cell(value: float | None, width: int, kind: str) -> str:
    return f"{'-' if value is None else format(value, kind):>{width}}"


# -- what is timed --------------------------------------------------------------------------------------------------


def _tasks(samples: int, classes: int, estimated: int, *, draws: int) -> Iterator[tuple[str, Task]]:
    """Names and calls; the pool is made when the first is asked for."""
    pool = _Pool(samples, classes)
    settings = {"likelihood_reduction": "sum", "draws": draws, "sampling": "independent"}
    few_N_D = pool.features_N_D[:estimated]
    network = vaes.build(WIDTHS, classes, seed=0).eval()
    few_N = pool.predicted_N[:estimated]
    yield "class terms", lambda: estimate_class_terms(network, few_N_D, few_N, generator=0, settings=settings)
    yield "estimate", lambda: list(estimate_likelihood(network, [few_N_D], generator=0, settings=settings))
    yield "score and top k", pool.score
    for name in (*strategies.names(), *WRAPPED):
        yield name, partial(pool.select, name)


class _Pool:
    """Random candidates of every kind that a strategy may need, and labelled samples of every class."""

    def __init__(self, samples: int, classes: int) -> None:
        numbers = np.random.default_rng(0)
        self.features_N_D = numbers.random((samples, sum(WIDTHS)), dtype=np.float32)
        self.logits_N_C = 3 * numbers.standard_normal((samples, classes), dtype=np.float32)
        self.predicted_N = self.logits_N_C.argmax(axis=1)
        self.log_likelihood_N_C = numbers.standard_normal((samples, classes), dtype=np.float32)
        self.ids_N = np.array([f"s{row:07d}" for row in range(samples)], dtype=object)
        self.loss_N = numbers.random(samples, dtype=np.float32)
        self.images_N_H_W_K = numbers.integers(256, size=(samples, SIDE, SIDE, 1), dtype=np.uint8)
        self.settings = SimpleNamespace(
            probabilities=ProbabilitySettings(**PRESETS["vabal"]["probabilities"]),
            selection=SelectionSettings(**PRESETS["vabal"]["selection"]),
        )
        even_C = torch.full((classes,), -np.log(classes), dtype=torch.float64)
        self.context = Context(
            self.shards,
            self.settings,
            seed=0,
            class_terms=ClassTerms(even_C, even_C),
            labeled=self._labeled(numbers, classes),
            feature_dims=WIDTHS,
        )

    def _labeled(self, numbers: np.random.Generator, classes: int) -> Labeled:
        count = max(LABELED, classes)
        return Labeled(
            features_N_D=numbers.random((count, sum(WIDTHS)), dtype=np.float32),
            labels_N=np.arange(count) % classes,
            sample_ids=np.array([f"l{row:07d}" for row in range(count)], dtype=object),
            logits_N_C=3 * numbers.standard_normal((count, classes), dtype=np.float32),
            images_N_H_W_K=numbers.integers(256, size=(count, SIDE, SIDE, 1), dtype=np.uint8),
        )

    def shards(self) -> Iterator[Shard]:
        for start in range(0, len(self.ids_N), SHARD_ROWS):
            rows = slice(start, start + SHARD_ROWS)
            logits_N_C = self.logits_N_C[rows]
            yield Shard(
                self.ids_N[rows],
                logits_N_C=logits_N_C,
                features_N_D=self.features_N_D[rows],
                log_likelihood_N_C=self.log_likelihood_N_C[rows],
                vae_class_N=self.predicted_N[rows],
                predictive_N_C=_softmax(logits_N_C),
                expected_entropy_N=np.full(len(logits_N_C), 0.1, dtype=np.float32),
                votes_N_C=_votes(self.predicted_N[rows], logits_N_C.shape[1]),
                predicted_loss_N=self.loss_N[rows],
                images_N_H_W_K=self.images_N_H_W_K[rows],
            )

    def select(self, name: str) -> strategies.Selection:
        """The named strategy's batch."""
        return strategies.get(name).select(self.context, BUDGET)

    def score(self) -> Any:
        """Eq. 6 over all classes, and the highest scores, shard by shard."""
        terms = self.context.class_terms
        assert terms is not None  # made above
        picker = strategies.Picker(BUDGET, "topk", 1.0, 0)
        for start in range(0, len(self.ids_N), SHARD_ROWS):
            rows = slice(start, start + SHARD_ROWS)
            score_N = mistake_score(
                self.log_likelihood_N_C[rows], terms, {"likelihood_reduction": "sum", "classes": "all"}
            )
            picker.add(strategies.Candidates(self.ids_N[rows], score_N))
        return picker.picks()


def _softmax(logits_N_C: NDArray[np.float32]) -> NDArray[np.float32]:
    powers_N_C = np.exp(logits_N_C - logits_N_C.max(axis=1, keepdims=True))
    return np.asarray(powers_N_C / powers_N_C.sum(axis=1, keepdims=True))


def _votes(predicted_N: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    votes_N_C = np.zeros((len(predicted_N), classes), dtype=np.int64)
    votes_N_C[np.arange(len(predicted_N)), predicted_N] = 5
    return votes_N_C


# -- the plot -------------------------------------------------------------------------------------------------------


def draw(
    by_samples: dict[str, dict[str, Any]], by_classes: dict[str, dict[str, Any]], path: Path, classes: int, samples: int
) -> None:
    """Seconds against N and against C, both logarithmic, with the fitted exponents in the legend."""
    import matplotlib  # noqa: PLC0415 -- only where a plot is wanted
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vabal", "font.size": 8}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        sides = figure.subplots(1, 2)
        _panel(sides[0], by_samples, "samples N", f"{classes} classes")
        _panel(sides[1], by_classes, "classes C", f"{samples:,} samples")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Any, table: dict[str, dict[str, Any]], label: str, title: str) -> None:
    for place, (name, row) in enumerate(table.items()):
        there = [(size, value) for size, value in row["seconds"].items() if value]
        if not there:
            continue
        exponent = "" if row["fitted"] is None else f"  {row['fitted']:.2f}"
        dashes = ("-", "--", ":")[place // 10 % 3]
        axes.plot(*zip(*there, strict=True), dashes, marker="o", markersize=3, linewidth=1.2, label=name + exponent)
    points = [(size, value) for row in table.values() for size, value in row["seconds"].items() if value]
    ends = np.array([min(size for size, _ in points), max(size for size, _ in points)])
    least = min(value for _, value in points) / 2
    axes.plot(ends, least * ends / ends[0], color="0.8", linewidth=3, zorder=0, label="linear  1.00")
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="CPU seconds, one thread", title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


if __name__ == "__main__":
    print("\n".join(lines(run())))
