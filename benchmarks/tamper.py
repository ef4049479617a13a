"""Random changes below `data/`, and which the audit finds: `python -m benchmarks.tamper WORKSPACE [--changes N]`.

Each change is made in a copy, one at a time, in one of three ways: `blunt` (nothing else is changed), `forged`
(digests, manifests and their chain are made to agree, the tags stay), `forged with tags` (the tags are rewritten as
well, so that only what the record says of itself can contradict it). The exit code is 1 if a change of the first two
was not found.
"""

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vabal import audit, rounds
from vabal.adapters.versioning import Versioning
from vabal.files import canonical_json, file_sha256, sha256

WAYS = ("blunt", "forged", "forged with tags")
RECORD = "promotions.jsonl"


@dataclass(frozen=True)
class Attempt:
    """A change: the way, the kind, what was changed, and whether the audit found it."""

    way: str
    kind: str
    what: str
    found: bool


def tamper(data: Path, tags: Mapping[str, str], folder: Path, *, changes: int, seed: int) -> Iterator[Attempt]:
    """So many changes, the ways in turn; `folder` is where the copy is changed and put back.

    Raises ValueError if the record is not intact before.
    """
    copy = folder / "data"
    shutil.copytree(data, copy)
    if (data.parent / RECORD).exists():
        shutil.copyfile(data.parent / RECORD, folder / RECORD)
    before = audit.verify(copy, tags)
    if not before.ok:
        raise ValueError(f"the record is not intact: {before.findings[0]}")
    numbers = random.Random(seed)  # noqa: S311 -- nothing secret
    done = 0
    while done < changes:
        way = WAYS[done % len(WAYS)]
        forged = dict(tags)
        with Restored(folder) as kept:
            said = _change(numbers, copy, way)
            if way != "blunt":
                _forge(copy, forged)
            if said is None or kept.is_whole():  # the cell was empty, or a digest that is made to agree again
                continue
            report = audit.verify(copy, forged if way == WAYS[2] else tags)
        done += 1
        yield Attempt(way, *said, not report.ok)


class Restored:
    """What stands in a folder is put back afterwards, byte for byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Restored":
        self.kept = self._contents()
        return self

    def is_whole(self) -> bool:
        """Whether nothing differs."""
        return self._contents() == self.kept

    def _contents(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def __exit__(self, *error: object) -> None:
        for path in [path for path in self.folder.rglob("*") if path.is_file()]:
            if path not in self.kept:
                path.unlink()
        for path, content in self.kept.items():
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


# -- changes ------------------------------------------------------------------------------------------------------


def _change(numbers: random.Random, data: Path, way: str) -> tuple[str, str] | None:
    """Makes one change; its kind and what was changed, None if it came to nothing."""
    files = [path for path in sorted(data.rglob("*")) if path.is_file()]
    kinds = {"cell": 6, "statement": 3, "row": 2}
    if way == "blunt":
        kinds |= {"bytes": 4, "file": 2}
    kind = numbers.choices(list(kinds), list(kinds.values()))[0]
    tables = [path for path in files if path.suffix == ".parquet"]
    if way != "blunt":  # of the pools: see `docs/audit.md`
        tables = [path for path in tables if path.parent.parent.name == "rounds"]
    path = numbers.choice(tables)
    if kind == "statement":
        path = numbers.choice([path for path in files if path.name == "manifest.json"])
        said = _statement(numbers, path)
    elif kind == "cell":
        said = _cell(numbers, path)
    elif kind == "row":
        said = _row(numbers, path)
    else:
        path = numbers.choice([*files, *((data.parent / RECORD,) if (data.parent / RECORD).exists() else ())])
        said = _bytes(numbers, path) if kind == "bytes" else _file(numbers, path)
    place = path.relative_to(data.parent).as_posix()
    place = place if kind in ("bytes", "file") else path.name
    return None if said is None else (kind, f"{place}: {said}")


def _bytes(numbers: random.Random, path: Path) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    path.write_bytes(content)
    return "a bit"


def _file(numbers: random.Random, path: Path) -> str:
    what = numbers.choice(("removed", "cut short", "a copy beside it"))
    if what == "removed":
        path.unlink()
    elif what == "cut short":
        path.write_bytes(path.read_bytes()[: numbers.randrange(path.stat().st_size)])
    elif path.name == RECORD:
        path.write_bytes(path.read_bytes() * 2)
    else:
        shutil.copyfile(path, path.with_name(f"copy-{path.name}"))
    return what


def _cell(numbers: random.Random, path: Path) -> str | None:
    table = pq.ParquetFile(path).read()
    if not table.num_rows:
        return None
    column: str = numbers.choice(table.schema.names)
    row = numbers.randrange(table.num_rows)
    value = table.column(column)[row].as_py()
    if value is None:
        return None
    others = [other for other in table.column(column).to_pylist() if other not in (value, None)]
    changed = _another(numbers, value, others)
    _write_cell(path, table, column, row, changed)
    _beside(path, table, column, row, changed)
    return column


def _write_cell(path: Path, table: pa.Table, column: str, row: int, value: Any) -> None:
    values = table.column(column).to_pylist()
    values[row] = value
    kind = table.schema.field(column)
    changed = table.set_column(table.schema.names.index(column), kind, pa.array(values, kind.type))
    pq.write_table(changed, path, store_schema=False)


def _beside(path: Path, table: pa.Table, column: str, row: int, value: Any) -> None:
    """The same in the other one of candidates and selection, as who knows the record would do."""
    other = {"candidates.parquet": "selection.parquet", "selection.parquet": "candidates.parquet"}.get(path.name)
    if other is None or not path.with_name(other).exists():
        return
    twin = pq.ParquetFile(path.with_name(other)).read()
    ids = twin.column("sample_id").to_pylist()
    sample = table.column("sample_id")[row].as_py()
    if column in twin.schema.names and sample in ids:
        _write_cell(path.with_name(other), twin, column, ids.index(sample), value)


def _another(numbers: random.Random, value: Any, others: Sequence[Any] = ()) -> Any:
    """Another value of the same type; for text one that stands elsewhere in the column."""
    if isinstance(value, list):
        place = numbers.randrange(len(value))
        return [_another(numbers, item) if index == place else item for index, item in enumerate(value)]
    if isinstance(value, str):
        return numbers.choice(others) if others else f"{value}x"
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + numbers.choice((-1, 1, 2))
    if isinstance(value, float) and math.isnan(value):
        value = 0.5  # it was left to be computed
    return value * 1.1 + 0.01 if isinstance(value, float) else value + timedelta(days=1)


def _row(numbers: random.Random, path: Path) -> str | None:
    table = pq.ParquetFile(path).read()
    if table.num_rows < 2:
        return None
    one, other = numbers.sample(range(table.num_rows), 2)
    order = list(range(table.num_rows))
    what = numbers.choice(("row removed", "row twice", "rows exchanged"))
    if what == "row removed":
        order.remove(one)
    elif what == "row twice":
        order.insert(one, other)
    elif path.name in ("candidates.parquet", "labeled.parquet"):
        return None  # their order means nothing
    else:
        order[one], order[other] = other, one
    pq.write_table(table.take(order), path, store_schema=False)
    return what


def _statement(numbers: random.Random, path: Path) -> str | None:
    document = json.loads(path.read_bytes())
    keys: list[Any] = []
    place: Any = document
    while isinstance(place, dict | list) and place:
        key = numbers.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        keys.append(key)
        above, place = place, place[key]
    if isinstance(place, dict | list) or place is None:
        return None
    above[keys[-1]] = _another(numbers, place)
    path.write_bytes(canonical_json(document))
    return ".".join(str(key) for key in keys)


# -- what follows -------------------------------------------------------------------------------------------------


def _forge(data: Path, tags: dict[str, str]) -> None:
    """Every manifest names the digests of its files as they are now, and of the manifest before it."""
    parent = None
    for number in rounds.manifest_numbers(data):
        path = rounds.round_folder(data, number) / "manifest.json"
        manifest = json.loads(path.read_bytes())
        for name in manifest["files"]:
            if (path.parent / name).exists():
                manifest["files"][name] = file_sha256(path.parent / name)
        manifest["parent"] = parent
        path.write_bytes(canonical_json(manifest))
        parent = sha256(path.read_bytes())
        tags[rounds.tag_name(number)] = f"round {number}\n\nmanifest sha256:{parent}"


# -- the table ----------------------------------------------------------------------------------------------------


def lines(attempts: Sequence[Attempt]) -> Iterator[str]:
    """A row for each way and kind, then what was not found."""
    yield f"{'way':<18} {'kind':<10} {'tried':>6} {'found':>6}"
    for way in WAYS:
        for kind in sorted({attempt.kind for attempt in attempts if attempt.way == way}):
            chosen = [attempt for attempt in attempts if (attempt.way, attempt.kind) == (way, kind)]
            yield f"{way:<18} {kind:<10} {len(chosen):>6} {sum(attempt.found for attempt in chosen):>6}"
    missed = Counter((attempt.way, attempt.what) for attempt in attempts if not attempt.found)
    yield from (f"not found, {way}: {what} ({times})" for (way, what), times in sorted(missed.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tamper", description=str(__doc__).partition("\n")[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--changes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    versions = Versioning(chosen.workspace)
    tags = {name: versions.tag_message(name) for name in versions.tags()}
    with tempfile.TemporaryDirectory() as folder:
        found = tamper(chosen.workspace / "data", tags, Path(folder), changes=chosen.changes, seed=chosen.seed)
        attempts = list(found)
    print("\n".join(lines(attempts)))
    return 0 if all(attempt.found for attempt in attempts if attempt.way != WAYS[2]) else 1


if __name__ == "__main__":
    sys.exit(main())
