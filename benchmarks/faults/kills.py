"""SIGKILL: after every named step, before a call that writes (the n-th, by a seed), and at a moment."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.faults import children
from benchmarks.faults.nights import Nights
from benchmarks.faults.outcomes import Outcome, settle

PUBLICATION = ("moved", "added", "pushed", "committed", "tagged", "finished", "emptied")
LEARNING = ("train_classifier", "evaluate", "extract_features", "select_batch")
ESTIMATING = ("train_vae", "estimate_class_terms", "estimate_likelihood")  # where the strategy asks for it
DECIDING = (
    *("promotion_record:begin", "promotion_record:append", "versioning:commit", "versioning:tag"),
    *("tracking:tag_version", "tracking:set_alias", "promotion_record:finish"),
)

WRITING = {
    "pretrain": ("pretraining", ("images_of", "_begun", "_taken_up", "save_pretrained")),
    "import": ("inbox", ("read", "next_name", "write_table")),
    "ingest": ("ingestion", ("read", "_store", "write_table", "next_name", "sync_folder")),
    "classes": ("classes", ("upcoming", "next_name", "write_table")),
}


def places(step: str, strategy: str) -> list[str]:
    """The named places of a step, in the order in which it comes to them."""
    if step == "init":
        begun = ("built", "begun", "repository", "workspace committed", "staged")
        return [f"reached:{name}" for name in (*begun, *PUBLICATION)]
    if step.endswith("round"):
        learning = [*LEARNING[:3], *(ESTIMATING if strategy == "vabal" else ()), LEARNING[3]]
        before = ["rounds:open_round", "stages:intake", "tracking:open_round"]
        stages = [f"stages:{name}" for name in learning]
        return [*before, *stages, "tracking:register", "rounds:stage", *(f"reached:{name}" for name in PUBLICATION)]
    kind, names = WRITING.get(step, ("", DECIDING))  # the rest are a promotion or a rollback
    return [f"{kind}:{name}" if kind else name for name in names]


@dataclass(frozen=True)
class Kill:
    """Where a command dies: a named place, a call (and whether one process dies alone), or a share of its time."""

    place: str = ""
    call: float = 0.0
    alone: bool = False
    time: float = 0.0

    def __str__(self) -> str:
        if self.place:
            return self.place
        if self.time:
            return f"at {self.time:.3f} of its time"
        return f"before {self.call:.3f} of its calls{', alone' * self.alone}"


def plan(seed: int, strategy: str, count: int, *, sample: bool = False) -> list[tuple[str, list[Kill]]]:
    """Every named place once, then `count` others by the seed, several in a row.

    A `sample` has none by the clock, and every third place of `init`, which costs as much as all others together.
    """
    source = random.Random(seed)  # noqa: S311 -- repeatable
    other = random.Random(f"{seed} pretrain")  # noqa: S311
    steps = ["init", "round", "import", "ingest", "classes", "second round", "promote", "second promote", "rollback"]
    weights = (20, 30, 5, 10, 5, 15, 6, 6, 8)
    # An init that is begun again after it was staged publishes at once: its places are come to from the beginning.
    planned = [("init", [Kill(place)]) for place in places("init", strategy)[:: 3 if sample else 1]]
    planned += [
        (step, [Kill(place) for place in places(step, strategy)])
        for step in (*(() if sample else ("pretrain",)), "round", "import", "ingest", "classes", "promote", "rollback")
    ]
    for _ in range(0 if sample else max(1, count // 20)):  # it keeps its state after every step here
        planned.append(("pretrain", [Kill(call=other.random()) for _ in range(2)] + [Kill(time=other.random())]))
    drawn = 0
    while drawn < count:
        step = source.choices(steps, weights)[0]
        kills = []
        for _ in range(4 if step.endswith("round") else 3):
            if sample or source.random() < 0.7:
                kills.append(Kill(call=source.random(), alone=source.random() < 0.25))
            else:
                kills.append(Kill(time=source.uniform(0.02, 1.0)))
        planned.append((step, kills))
        drawn += len(kills)
    return planned


def plan_of_readers(seed: int, count: int) -> list[tuple[str, list[Kill]]]:
    """Who reads images: every named place of `ingest` once, then `init`, `round` and `ingest`, `count` times each."""
    source = random.Random(f"{seed} readers")  # noqa: S311 -- repeatable
    planned = [("ingest", [Kill(place) for place in places("ingest", "margin")])]
    for _ in range(count):
        for step in ("init", "round", "ingest"):
            planned.append((step, [Kill(call=source.random()) for _ in range(2)] + [Kill(time=source.random())]))
    return planned


def sweep(nights: Nights, planned: list[tuple[str, list[Kill]]]) -> Iterator[Outcome]:
    """One outcome a history: a step from a copy of what was before it, killed in a row, then run to its end."""
    for step, kills in planned:
        nights.restore(step)
        told, tried = [], 0
        for kill in kills:
            ended = _killed(nights, step, kill)
            tried += ended.killed
            if not ended.killed and ended.code != 0:
                told.append(ended)
            if settle.is_done(nights, step):
                break
        yield settle(nights, step, f"SIGKILL, {step}", "; ".join(map(str, kills)), told, tried=tried)


def _killed(nights: Nights, step: str, kill: Kill) -> children.Ended:
    if kill.place:
        return nights.run(step, fault=children.after_step(kill.place))
    if kill.time:
        return nights.run(step, after_s=kill.time * nights.seconds[step])
    number = 1 + int(kill.call * nights.calls[step])
    return nights.run(step, fault=children.at_call(nights.folder, number, kill.alone))
