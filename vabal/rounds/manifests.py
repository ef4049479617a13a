"""A round's manifest: what it says, and the chain that it is part of."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vabal import pools
from vabal.errors import BRING_BACK, UserError
from vabal.files import file_sha256
from vabal.settings.bounds import parse_json

# Of the rounds that record all that their scores take; round 0 and rounds of earlier versions of the package have 1.
MANIFEST_VERSION = 2
FIRST_VERSION = 1
MANIFEST_KEYS = (
    *("version", "round", "parent", "strategy", "seed", "settings", "code", "class_terms", "selection"),
    *("pools_before", "pools_after", "tables", "files", "shards", "counts", "intake", "model", "mlflow_run"),
    *("prefect_flow_run", "metrics", "times", "environment", "promotions"),
)


def tag_name(round_number: int) -> str:
    return f"round/{round_number:04d}"


def number_of(tag: str) -> int | None:
    """The round that a tag stands for; None where it is no round's."""
    found = re.fullmatch(r"round/(\d{4,})", tag)
    return int(found[1]) if found else None


def derive_seed(seed: int, round_number: int, purpose: str) -> int:
    """A seed for one purpose in a round, from the setting `seed`."""
    digest = hashlib.sha256(f"{seed}/{round_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def round_folder(data: Path, round_number: int) -> Path:
    return data / "rounds" / f"{round_number:04d}"


# -- manifests --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The newest published round: its number, its manifest and the digest of the manifest's bytes."""

    round: int
    manifest: dict[str, Any]
    digest: str


def manifest_numbers(data: Path) -> list[int]:
    """Rounds that have a folder in `data/rounds`, ascending."""
    return sorted(int(path.name) for path in (data / "rounds").glob("[0-9][0-9][0-9][0-9]*") if path.is_dir())


def read_manifest(data: Path, round_number: int) -> Head:
    """Raises UserError if the manifest is missing or no longer JSON."""
    path = round_folder(data, round_number) / "manifest.json"
    try:
        content = path.read_bytes()
        manifest = parse_json(content)
    except FileNotFoundError:
        raise UserError(f"round {round_number} has no manifest at {path}: see `vabal audit` for the rounds") from None
    except ValueError:
        raise UserError(f"{path} is damaged: {BRING_BACK}") from None
    return Head(round_number, manifest, digest_of(content))


def head(data: Path) -> Head:
    """The newest round. Raises UserError if there is none."""
    numbers = manifest_numbers(data)
    if not numbers:
        raise UserError(f"{data} holds no round: make round 0 with `vabal init --source ...`")
    return read_manifest(data, numbers[-1])


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a round's folder but the manifest itself."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def is_published(data: Path, message_of: Callable[[str], str]) -> bool:
    """Whether every file in `data/` is as a round left it whose tag (`message_of` reads it) names its manifest.

    Then nothing is lost by going to another round. Reads every file.
    """
    numbers = manifest_numbers(data)
    if not numbers:
        return False
    expected: dict[str, str] = {}
    for number in numbers:
        try:
            newest = read_manifest(data, number)
            here = f"rounds/{number:04d}"
            expected |= {f"{here}/{name}": sha256 for name, sha256 in newest.manifest["files"].items()}
            expected[f"{here}/manifest.json"] = newest.digest
        except (UserError, KeyError, AttributeError):
            return False
    if newest.digest not in message_of(tag_name(numbers[-1])):
        return False
    expected |= newest.manifest["tables"]
    expected |= {f"images/{name}.parquet": sha256 for name, sha256 in newest.manifest["shards"].items()}
    found = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if not path.is_dir()}
    return found.keys() == expected.keys() and all(file_sha256(found[name]) == expected[name] for name in found)


def tag_message(manifest: Mapping[str, Any], digest: str) -> str:
    """What the annotated tag says: the head of the manifest chain stands here too, outside `data/`."""
    counts = manifest["counts"]
    return (
        f"round {manifest['round']}: {counts['picks']} picked by {manifest['strategy']}, "
        f"{counts['labeled']} labeled, {counts['unlabeled']} unlabeled\n\nmanifest sha256:{digest}"
    )


def counts_of(after: pools.Pools, picks: int) -> dict[str, int]:
    """The pools' arithmetic, as it stands in a manifest."""
    status = after.unlabeled["status"].value_counts()
    return {
        "catalog": len(after.catalog),
        "labeled": len(after.labeled),
        "unlabeled": len(after.unlabeled),
        "available": int(status.get(pools.AVAILABLE, 0)),
        "requested": int(status.get(pools.REQUESTED, 0)),
        "rejected": int(status.get(pools.REJECTED, 0)),
        "holdout": len(after.holdout),
        "picks": picks,
    }


def table_files(folder: Path) -> dict[str, str]:
    """The sha256 of each table's file, as published."""
    names = [*(f"{name}.parquet" for name in pools.SCHEMAS), "classes.json"]
    return {name: file_sha256(folder / name) for name in names}
