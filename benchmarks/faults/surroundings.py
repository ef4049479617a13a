"""What surrounds a command goes wrong: the disk is full, `data/` read-only, the clock set back, the settings edited."""

import datetime
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults import children
from benchmarks.faults.nights import STEPS, Nights, facts
from benchmarks.faults.outcomes import Outcome, compared, settle

ROOM = 512 * 1024 * 1024


def everything(nights: Nights, elsewhere: Path, seed: int) -> Iterator[Outcome]:
    yield from large_files_refused(nights, seed, 12)
    yield from clock_set_back(nights)
    yield from settings_changed(nights)
    yield from read_only_data(nights)
    yield from full_disk(nights, elsewhere, seed, 32)


def a_few(nights: Nights, seed: int) -> Iterator[Outcome]:
    """What needs no rights and little time."""
    yield from large_files_refused(nights, seed, 3)
    yield from clock_set_back(nights, ["ingest", "promote"])


def _mount(*words: str) -> bool:
    """Whether the mount came about; ordinary users may not."""
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode == 0


@contextmanager
def small_file_system(place: Path) -> Iterator[Callable[[int | None], None] | None]:
    """A file system of its own at `place`, and what leaves so many free bytes in it; None where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)):
        yield None
        return

    def leave(free: int | None) -> None:
        usage = shutil.disk_usage(place)
        size = ROOM if free is None else usage.used + free
        if not _mount("-o", f"remount,size={size}", str(place)):
            raise RuntimeError(f"{place} cannot be made smaller")

    try:
        yield leave
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def full_disk(nights: Nights, elsewhere: Path, seed: int, count: int) -> Iterator[Outcome]:
    """Little is left on the disk of the workspace; MLflow's files lie `elsewhere`, as they do where it is a server."""
    source = random.Random(seed)  # noqa: S311 -- repeatable
    with small_file_system(nights.folder.parent) as leave:
        if leave is None:
            return
        for number in range(count):
            step = list(STEPS)[number % len(STEPS)]
            free = int(4096 * 2 ** source.uniform(0, 8 if step in ("init", "second round", "round") else 4))
            nights.restore(step)
            _put_elsewhere(nights, elsewhere / str(number))
            leave(free)
            ended = nights.run(step)
            leave(None)
            tried = int(ended.code != 0)
            yield settle(nights, step, "full disk", f"{step}, {free} bytes left", [ended], tried=tried)
            shutil.rmtree(nights.folder)


def _put_elsewhere(nights: Nights, place: Path) -> None:
    place.mkdir(parents=True)
    for path in (nights.folder / "mlflow.db", nights.root / "mlruns"):
        if path.exists():
            shutil.move(path, place / path.name)
        elif path.name == "mlruns":
            (place / path.name).mkdir()
        path.symlink_to(place / path.name)


def large_files_refused(nights: Nights, seed: int, count: int) -> Iterator[Outcome]:
    """No file may grow beyond a limit (`ulimit -f`): what a quota does, and anybody may set. Not where MLflow's are."""
    source = random.Random(seed)  # noqa: S311 -- repeatable
    for number in range(count):
        step = ("init", "import", "ingest")[number % 3]
        most = int(256 * 2 ** source.uniform(0, 6 if step == "init" else 4))
        nights.restore(step)
        ended = nights.run(step, fault=lambda most=most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        yield settle(
            nights, step, "no file beyond a limit", f"{step}, {most} bytes", [ended], tried=int(ended.code != 0)
        )


def read_only_data(nights: Nights) -> Iterator[Outcome]:
    """`data/` on a file system that cannot be written, from the beginning or from a step on."""
    for step in ("round", "import", "ingest", "second round", "promote"):
        for place in (None, "rounds:stage") if "round" in step else (None,):
            nights.restore(step)
            if place:
                nights.run(step, fault=children.after_step(place))
            data = str(nights.root / "data")
            if not _mount("--bind", data, data):
                return
            try:
                if not _mount("-o", "remount,bind,ro", data):
                    return
                ended = nights.run(step)
            finally:
                subprocess.run(["umount", "--lazy", data], check=True)
            yield settle(nights, step, "read-only data/", f"{step} {place or ''}", [ended], tried=1)


def set_back(shift: datetime.timedelta) -> children.Fault:
    """The clock of the command, and of git below it, is moved by `shift`."""
    real, real_time = datetime.datetime, time.time

    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Shifted(datetime.datetime, metaclass=Meta):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return real.now(tz) + shift

    def install() -> None:
        datetime.datetime = Shifted  # type: ignore[misc]
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "vabal" and getattr(module, "datetime", None) is real:
                module.datetime = Shifted  # type: ignore[attr-defined]
        time.time = lambda: real_time() + shift.total_seconds()
        moment = f"{int(time.time())} +0000"
        os.environ |= {"GIT_AUTHOR_DATE": moment, "GIT_COMMITTER_DATE": moment}

    return install


def clock_set_back(nights: Nights, steps: Iterable[str] = STEPS) -> Iterator[Outcome]:
    """Two days earlier, for a whole step, and for what follows a kill in the middle of it."""
    fault = set_back(datetime.timedelta(days=-2))
    for step in steps:
        for place in (None, "stages:train_classifier") if "round" in step else (None,):
            nights.restore(step)
            if place:
                nights.run(step, fault=children.after_step(place))
            ended = nights.run(step, fault=fault)
            yield settle(nights, step, "clock set back", f"{step} {place or ''}", [ended], tried=1)


def settings_changed(nights: Nights) -> Iterator[Outcome]:
    """`params.yaml` is edited while a round runs (it ends by the settings it began with), and between kill and rerun.

    A round that had not been staged goes by the new settings then; one that had goes by the old ones.
    """
    step = "second round"
    path = nights.root / "params.yaml"
    nights.restore(step)
    before = path.read_text()
    after = before.replace("budget: 4", "budget: 3").replace("epochs: 15", "epochs: 14")

    def edit() -> None:
        path.write_text(after)

    nights.run_well(step, edit)
    path.write_text(before)
    old, new = nights.facts[step], facts(nights.folder)
    for place in ("stages:intake", "stages:train_classifier", "tracking:register", "rounds:stage", "reached:committed"):
        staged = place.startswith(("rounds", "reached"))
        for during in (True, False):
            nights.restore(step)
            deed: Callable[[], None] = edit if during else children.die
            ended = nights.run(step, fault=children.after_step(place, deed))
            told = [ended]
            if not during:
                path.write_text(after)
                told.append(nights.run(step))
            path.write_text(before)
            nights.facts[step] = old if during or staged else new
            broken = compared(nights, step)
            if wrong := [ended.said[-300:] for ended in told if not ended.in_one_line]:
                broken["one line"] = wrong[0]
            if told[-1].code != 0:
                broken["got out"] = told[-1].said[-300:]
            yield Outcome("settings changed", f"{place}, {'during' if during else 'between'}", 1, broken)
    nights.facts[step] = old
