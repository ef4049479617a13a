"""A round's manifest: what it says, and the chain that it is part of."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from vabal import pools
from vabal.errors import BRING_BACK, UserError
from vabal.files import canonical_json, file_sha256, sha256
from vabal.settings.bounds import parse_json

# Of the rounds that record all that their scores take; round 0 and rounds of earlier versions of the package have 1.
MANIFEST_VERSION = 2
FIRST_VERSION = 1


def tag_name(round_number: int) -> str:
    return f"round/{round_number:04d}"


def number_of(tag: str) -> int | None:
    """The round that a tag stands for; None where it is no round's."""
    found = re.fullmatch(r"round/(\d{4,})", tag)
    return int(found[1]) if found else None


def derive_seed(seed: int, round_number: int, purpose: str) -> int:
    """A seed for one purpose in a round, from the setting `seed`."""
    return int(sha256(f"{seed}/{round_number}/{purpose}".encode())[:8], 16) >> 1


def round_folder(data: Path, round_number: int) -> Path:
    return data / "rounds" / f"{round_number:04d}"


# -- what a manifest says -----------------------------------------------------------------------------------------


class _Part(BaseModel):
    """Strict, and faithful: what this version does not know is kept, what was not said is not written."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class ModelRecord(_Part):
    """The version that the round registered; `files`, which earlier versions lack, are those that loading it reads."""

    name: str | None = None
    version: str | None = None
    sha256: str | None = None
    files: dict[str, str] | None = None


class Times(_Part):
    """ISO 8601, UTC."""

    started: str
    finished: str


class Manifest(_Part):
    """What `manifest.json` says of a round; its bytes are canonical JSON, its digest is the sha256 of them.

    Fields with a default may be missing in some version: `lacking` says which of them should be there. Round 0 has no
    model, no code and no clock.
    """

    version: int
    round: int
    parent: str | None  # the digest of the manifest before
    strategy: str
    seed: int | None = None
    settings: dict[str, Any]
    code: str | None
    class_terms: dict[str, Any] | None  # `probabilities.ClassTerms`
    selection: dict[str, Any] | None = None  # rule, beta, budget, seed, shortlist; round 0 has none
    pools_before: dict[str, str] | None
    pools_after: dict[str, str]  # digests of the tables' values
    tables: dict[str, str]  # sha256 of the tables' files
    files: dict[str, str]  # sha256 of the files in the round's folder
    shards: dict[str, str]
    counts: dict[str, int]  # `pools.counts`
    intake: dict[str, int] | None = None
    model: ModelRecord | None = None
    mlflow_run: str | None = None
    prefect_flow_run: str | None = None
    metrics: dict[str, int | float] | None = None
    times: Times | None = None
    environment: dict[str, str] | None = None
    promotions: dict[str, Any] | None = None  # the head of the promotion record, None while that is empty

    _content: bytes = PrivateAttr(b"")

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises ValueError, in one line, for what is no manifest of any version."""
        document = parse_json(content)
        if not isinstance(document, dict):
            raise ValueError("no mapping")  # noqa: TRY004
        missing = [name for name, field in cls.model_fields.items() if field.is_required() and name not in document]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        try:
            read = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None
        read._content = content
        return read

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def content(self) -> bytes:
        """The bytes that were read, or that are to be written."""
        return self._content or canonical_json(self.to_json())

    @property
    def digest(self) -> str:
        return sha256(self.content)

    @property
    def unknown(self) -> list[str]:
        """Keys that this version does not know."""
        return sorted(self.model_extra or {})

    @property
    def lacking(self) -> list[str]:
        """Keys that a manifest of its version has."""
        wanted = set(type(self).model_fields) - {"promotions"} if self.version > FIRST_VERSION else set()
        return sorted(wanted - self.model_fields_set)

    @property
    def tag_message(self) -> str:
        """What the annotated tag says: the head of the manifest chain stands here too, outside `data/`."""
        return (
            f"round {self.round}: {self.counts['picks']} picks ({self.strategy}), "
            f"{self.counts['labeled']} labeled, {self.counts['unlabeled']} unlabeled\n\nmanifest sha256:{self.digest}"
        )

    def files_below_data(self) -> dict[str, str]:
        """The sha256 of its round's files, the manifest included, by their paths below `data/`."""
        here = round_folder(Path(), self.round).as_posix()
        return {f"{here}/{name}": digest for name, digest in self.files.items()} | {
            f"{here}/manifest.json": self.digest
        }

    def shard_files(self) -> dict[str, str]:
        """The sha256 of the images' files, by their paths below `data/`."""
        return {f"images/{name}.parquet": digest for name, digest in self.shards.items()}


# -- the manifests below data/ ------------------------------------------------------------------------------------


def manifest_numbers(data: Path) -> list[int]:
    """Rounds that have a folder in `data/rounds`, ascending."""
    return sorted(int(path.name) for path in (data / "rounds").glob("[0-9][0-9][0-9][0-9]*") if path.is_dir())


def read_manifest(data: Path, round_number: int) -> Manifest:
    """Raises UserError if the manifest is missing, no longer JSON or no manifest."""
    path = round_folder(data, round_number) / "manifest.json"
    try:
        return Manifest.parse(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"round {round_number} has no manifest at {path}: see `vabal audit` for the rounds") from None
    except ValueError:
        raise UserError(f"{path} is damaged: {BRING_BACK}") from None


def head(data: Path) -> Manifest:
    """That of the newest published round. Raises UserError if there is none."""
    numbers = manifest_numbers(data)
    if not numbers:
        raise UserError(f"{data} holds no round: make round 0 with `vabal init --source ...`")
    return read_manifest(data, numbers[-1])


def describe_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a round's folder but the manifest itself."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def table_files(folder: Path) -> dict[str, str]:
    """The sha256 of each table's file, as published."""
    return {name: file_sha256(folder / name) for name in pools.table_files(folder)}


def is_published(data: Path, message_of: Callable[[str], str]) -> bool:
    """Whether every file in `data/` is as a round left it whose tag (`message_of` reads it) names its manifest.

    Then nothing is lost by going to another round. Reads every file.
    """
    try:
        manifests = [read_manifest(data, number) for number in manifest_numbers(data)]
    except UserError:
        return False
    if not manifests or manifests[-1].digest not in message_of(tag_name(manifests[-1].round)):
        return False
    expected = manifests[-1].tables | manifests[-1].shard_files()
    for manifest in manifests:
        expected |= manifest.files_below_data()
    found = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if not path.is_dir()}
    return found.keys() == expected.keys() and all(file_sha256(found[name]) == expected[name] for name in found)
