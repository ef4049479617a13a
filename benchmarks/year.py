"""What a year of nights weighs, and what its audit costs: `python -m benchmarks.year OUT`.

Makes a workspace in `OUT/N` for each number of candidates N: round after round, published as the flow does it, but that
nothing is trained: logits and likelihoods are random, the strategy is the default one, and what it selects is real, as
are pools, tables, manifests, `data.dvc` with its listing, git's commits and tags. Labels of a request come in the next
round. When a workspace has as many rounds as one of `--rounds` says, it is measured: bytes a candidate by file, and
CPU seconds (with those of the git processes) and memory of each command in processes of their own, the medians.

Points gather in `OUT/points.json` over calls; through all of them a sum is fitted of parts that grow with nothing, the
rounds R, their square, the candidates N, and R x N, none below zero. From at least three sizes of both it is continued
to `YEAR`: that is an extrapolation, and called so.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks import random_pool
from tests.support.small_books import SEED, Books
from vabal import pools, rounds, strategies
from vabal.adapters.versioning import Versioning
from vabal.rounds.manifests import round_folder
from vabal.strategies.base import Listed
from vabal.strategies.coverage import labeled_distances
from vabal.workspace import PINS

YEAR: Final = (365, 1_000_000)
BUDGET, LABELED, HOLDOUT = 100, 200, 500
WIDTH: Final = 512  # of the last stage's features, as a ResNet-18's
ROWS: Final = 50_000  # candidates seen at once

# -- the workspace ------------------------------------------------------------------------------------------------


class Year(Books):
    """A workspace with its git repository; a round more with each call of `night`."""

    image_shape = (random_pool.SIZE, random_pool.SIZE)
    shard_rows = 100_000

    def __init__(self, root: Path, candidates: int, classes: int) -> None:
        super().__init__(root)
        self.candidates, self.classes = candidates, tuple(f"class-{index:03d}" for index in range(classes))
        self._versions, self._md5 = Versioning(root), dict[str, str]()

    def begin_year(self) -> "Year":
        self.data.mkdir(parents=True)
        (self.root / "params.yaml").write_text(f"workspace:\n  name: year\nseed: {SEED}\n")
        made = self._versions.init("s3://nowhere/year")
        self._versions.commit(["params.yaml", *made], "Workspace of a benchmark")
        self.begin(labeled=LABELED, holdout=HOLDOUT, total=HOLDOUT + LABELED + self.candidates)
        self._commit()
        return self

    def night(self) -> None:
        """One round: of the last request all answers but two come, two of them rejections."""
        asked = self.picked(self.number) if self.number else []
        answers: dict[str, str | None] = dict.fromkeys(asked[:2])
        answers |= {name: self.classes[place % len(self.classes)] for place, name in enumerate(asked[2:-2])}
        self.round("vabal", labels=answers, budget=BUDGET)
        self._commit()

    def _commit(self) -> None:
        """`data.dvc` and the listing that it names, as DVC has them; commit and tag."""
        files = [path for path in self.data.rglob("*") if path.is_file()]
        for path in files:
            name = path.relative_to(self.data).as_posix()
            if name not in self._md5 or "/" not in name:  # what lies in a folder is never written over
                with path.open("rb") as stream:
                    self._md5[name] = hashlib.file_digest(stream, "md5").hexdigest()
        listing = json.dumps([{"md5": md5, "relpath": name} for name, md5 in sorted(self._md5.items())], sort_keys=True)
        digest = Versioning.listing_digest(self._md5)
        cached = self.root / ".dvc/cache" / Versioning.object_name(digest)
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(listing)
        size = sum(path.stat().st_size for path in files)
        out = {"md5": digest, "size": size, "nfiles": len(files), "hash": "md5", "path": "data"}
        (self.root / PINS).write_text(yaml.safe_dump({"outs": [out]}, sort_keys=False))
        tag = rounds.tag_name(self.number)
        self._versions.commit([PINS], self.tags[tag])
        self._versions.create_tag(tag, self.tags[tag], "HEAD")

    # -- what is random ---------------------------------------------------------------------------------------

    def _contents(self, count: int) -> Iterable[bytes]:
        return (content for _, content in random_pool.encoded_images(count))

    def _seen(self, ids: Any, classes: int) -> Iterable[strategies.Shard]:
        return _Candidates(ids, classes, self.number)

    def _listed(self, sample_ids: NDArray[Any]) -> Listed:
        numbers = np.random.default_rng([SEED, self.number])
        labeled_L_D = numbers.normal(size=(len(self.pools.labeled), WIDTH)).astype(np.float32)
        features_N_D = numbers.normal(size=(len(sample_ids), WIDTH)).astype(np.float32)
        return Listed(features_N_D, labeled_distances(features_N_D, labeled_L_D))


class _Candidates:
    """Shards that are drawn again on each pass: memory holds one."""

    def __init__(self, ids: NDArray[Any], classes: int, number: int) -> None:
        self.ids, self.classes, self.number = ids, classes, number

    def __iter__(self) -> Iterator[strategies.Shard]:
        for start in range(0, max(len(self.ids), 1), ROWS):
            ids = self.ids[start : start + ROWS]
            numbers = np.random.default_rng([SEED, self.number, start])
            own = numbers.integers(self.classes, size=(len(ids), 1))
            logits_N_C = 1.5 * numbers.standard_normal((len(ids), self.classes), dtype=np.float32)
            np.put_along_axis(logits_N_C, own, np.take_along_axis(logits_N_C, own, axis=1) + 4, axis=1)
            level_N = numbers.normal(-700, 50, (len(ids), 1)).astype(np.float32)
            likelihood_N_C = level_N + 5 * numbers.standard_normal((len(ids), self.classes), dtype=np.float32)
            vae_class_N = likelihood_N_C.argmax(axis=1).astype(np.int32)
            yield strategies.Shard(
                ids, logits_N_C=logits_N_C, log_likelihood_N_C=likelihood_N_C, vae_class_N=vae_class_N
            )


# -- what it weighs and costs -------------------------------------------------------------------------------------


def measure(root: Path, repeats: int, only: Iterable[str] = ()) -> dict[str, Any]:
    """What each command costs there. Raises ValueError where the audit finds something."""
    sample = _never_picked(root)
    commands = {"audit": ["audit"], "sample": ["audit", "--sample", sample], "verify": ["audit", "--verify", "--json"]}
    found: dict[str, Any] = {}
    for name, command in commands.items():
        if only and name not in only:
            continue
        runs = [_run(root, command) for _ in range(repeats)]
        found[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return found


def _never_picked(root: Path) -> str:
    """A sample that was a candidate in every round: it has the longest history."""
    waiting = pools.read_one(root / "data", "unlabeled")
    available = waiting.loc[waiting["status"] == pools.AVAILABLE, "sample_id"]
    return str(available.iloc[len(available) // 2])


def _run(root: Path, command: list[str]) -> dict[str, float]:
    """CPU seconds of the process and those that it ran, seconds by the clock, and its peak of memory in MB."""
    with tempfile.TemporaryFile("w+") as said:
        started, run = os.times().elapsed, [sys.executable, "-c", _COMMAND, *command]
        process = subprocess.Popen(run, cwd=root, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode, seconds = os.waitstatus_to_exitcode(status), os.times().elapsed - started
        said.seek(0)
        told = said.read()
    if process.returncode:
        raise ValueError(f"vabal {' '.join(command)}: {told[-2000:]}")
    return {"cpu": used.ru_utime + used.ru_stime, "seconds": seconds, "mb": int(told.split()[-1]) / 1024}


# The memory is asked of the process itself: what `wait4` says of it includes that of the one which started it.
_COMMAND = """
import re, runpy, sys
try:
    runpy.run_module("vabal.cli", run_name="__main__")
finally:
    sys.stdout.flush()
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def weight(root: Path, number: int, candidates: int) -> dict[str, Any]:
    """Bytes: of the newest round's files a candidate, of the pools' tables an image, and of all in `data/`, in git and
    in DVC's listings."""
    data = root / "data"
    newest = sorted(round_folder(data, number).iterdir())
    tables = [path for path in sorted(data.iterdir()) if path.is_file()]
    images = candidates + LABELED + HOLDOUT
    return {
        "a_candidate": {path.name: path.stat().st_size / candidates for path in newest},
        "an_image": {path.name: path.stat().st_size / images for path in tables},
        "in_all": {name: _size(root / name) for name in ("data", ".git", ".dvc")},
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- how it grows -------------------------------------------------------------------------------------------------


def fit(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each command's CPU: the parts, what they come to at `YEAR`, and how far off the worst point lies."""
    told = {}
    for name in ("audit", "sample", "verify"):
        there = [point for point in points if name in point]
        sizes = [len({point[key] for point in there}) for key in ("rounds", "candidates")]
        if min(sizes) < 3:
            continue
        parts_P_F = np.array([_parts(point["rounds"], point["candidates"]) for point in there])
        cpu_P = np.array([point[name]["cpu"] for point in there])
        share_F, _ = nnls(parts_P_F / cpu_P[:, None], np.ones(len(cpu_P)))  # errors relative to each point
        off_P = parts_P_F @ share_F / cpu_P - 1
        told[name] = {
            "parts": dict(zip(PARTS, share_F.tolist(), strict=True)),
            "extrapolated_to": {"rounds": YEAR[0], "candidates": YEAR[1], "cpu": float(_parts(*YEAR) @ share_F)},
            "worst_error": float(np.abs(off_P).max()),
        }
    return told


PARTS = ("once", "a round", "rounds squared", "a candidate", "a candidate and round")


def _parts(number: int, candidates: int) -> NDArray[np.float64]:
    return np.array([1.0, number, number**2, candidates, number * candidates])


def table(points: list[dict[str, Any]], fitted: dict[str, Any]) -> str:
    names = ("audit", "sample", "verify")
    lines = [f"{'rounds':>7} {'candidates':>11} " + " ".join(f"{name:>9}" for name in names) + "   CPU s"]
    for point in points:
        told = [f"{point[name]['cpu']:9.2f}" if name in point else f"{'':>9}" for name in names]
        lines.append(f"{point['rounds']:7d} {point['candidates']:11,d} " + " ".join(told))
    if fitted:
        told = [f"{fitted[name]['extrapolated_to']['cpu']:9.1f}" if name in fitted else f"{'':>9}" for name in names]
        lines.append(f"{YEAR[0]:7d} {YEAR[1]:11,d} " + " ".join(told) + "   extrapolated, not measured")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.year", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 10, 20], help="measured after so many")
    parser.add_argument("--candidates", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="0: only make the workspaces")
    parser.add_argument("--only", nargs="*", default=(), choices=("audit", "sample", "verify"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / "points.json"
    points = json.loads(kept.read_text()) if kept.exists() else []
    for candidates in asked.candidates:
        root = asked.out / str(candidates)
        if root.exists():
            parser.error(f"{root} is there already")
        year = Year(root, candidates, asked.classes).begin_year()
        for number in sorted(asked.rounds):
            while year.number < number:
                year.night()
            if not asked.repeats:
                continue
            point = {"rounds": number, "candidates": candidates, "classes": asked.classes}
            point |= measure(year.root, asked.repeats, asked.only)
            point["bytes"] = weight(year.root, number, candidates)
            points.append(point)
            kept.write_text(json.dumps(points, indent=1))
            print(table([point], {}), flush=True)
    fitted = fit(points)
    print(json.dumps({"points": points, "fitted": fitted}, indent=1))
    print(table(points, fitted))


if __name__ == "__main__":
    main()
