"""Where the shards of a pool lie: in folders of this machine, or where several machines share them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

import numpy as np
import pyarrow.parquet as pq

from vabal.errors import UserError
from vabal.files import Shared, found
from vabal.images.shards import digest_in, open_shard

FOLDER: Final = "shards"  # where several machines share them
_IDS: Final = ".ids"
_ABOUT: Final = b"vabal_shard"


class ShardFiles(Protocol):
    """The shards of a pool by their names."""

    def names(self) -> list[str]: ...

    def open(self, shard: str) -> pq.ParquetFile:
        """The shard's file, whose images are to be read."""

    def is_here(self, shard: str) -> bool:
        """Whether its images can be read without bringing them here."""

    def rows(self, shard: str) -> int:
        """How many images it holds."""

    def sample_ids(self, shard: str) -> np.ndarray:
        """The shard's sample ids, in row order (an object array of str)."""

    def digest(self, shard: str) -> str:
        """Of the shard's content."""


class ShardFolders:
    """Shards below `images/` of these folders, searched in turn.

    `names` follows the first folder's catalog.parquet, or else the file names."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)

    def names(self) -> list[str]:
        path = self._folders[0] / "catalog.parquet"
        if path.exists():
            return [str(name) for name in pq.read_table(path, columns=["shard"]).column("shard").unique().to_pylist()]
        return sorted(file.stem for folder in self._folders for file in (folder / "images").glob("*.parquet"))

    def open(self, shard: str) -> pq.ParquetFile:
        paths = [folder / "images" / f"{shard}.parquet" for folder in self._folders]
        return open_shard(next((path for path in paths if path.exists()), paths[0]))

    def is_here(self, shard: str) -> bool:  # noqa: ARG002 -- one that is missing is told of when it is opened
        return True

    def rows(self, shard: str) -> int:
        return int(self.open(shard).metadata.num_rows)

    def sample_ids(self, shard: str) -> np.ndarray:
        return _ids(self.open(shard))

    def digest(self, shard: str) -> str:
        return digest_in(self.open(shard), shard)


class SharedShards:
    """Shards that several machines share, by the sha256 of their files; fetched into `folder` when images are read.

    What a shard holds besides images is a small file beside it, so who only asks for that fetches no image. `own` is a
    folder with `images/` that may have the shards already.
    """

    def __init__(self, shared: Shared, sha256s: Mapping[str, str], folder: Path, own: Path | None = None) -> None:
        self._shared, self._sha256s, self._folder, self._own = shared, sha256s, folder, own
        self._about: dict[str, tuple[str, np.ndarray]] = {}

    def names(self) -> list[str]:
        return list(self._sha256s)

    def open(self, shard: str) -> pq.ParquetFile:
        if self._own is not None and (self._own / "images" / f"{shard}.parquet").exists():
            return open_shard(self._own / "images" / f"{shard}.parquet")
        return open_shard(self._fetched(shard, ".parquet"))

    def is_here(self, shard: str) -> bool:
        own = self._own is not None and (self._own / "images" / f"{shard}.parquet").exists()
        return own or (self._folder / f"{self._sha256s[shard]}.parquet").exists()

    def rows(self, shard: str) -> int:
        return len(self._told(shard)[1])

    def sample_ids(self, shard: str) -> np.ndarray:
        return self._told(shard)[1]

    def digest(self, shard: str) -> str:
        return self._told(shard)[0]

    def _told(self, shard: str) -> tuple[str, np.ndarray]:
        if shard not in self._about:
            file = pq.ParquetFile(self._fetched(shard, _IDS))
            about = json.loads((file.metadata.metadata or {})[_ABOUT])
            self._about = {shard: (str(about["digest"]), _ids(file))}  # of one: a pool's are many
        return self._about[shard]

    def _fetched(self, shard: str, kind: str) -> Path:
        name = f"{self._sha256s[shard]}{kind}"
        place = found(self._shared, f"{FOLDER}/{name}", self._folder / name)
        if place is None:
            raise UserError(f"shard {shard} is gone from the stage store ({FOLDER}/{name}): run the round again")
        return place if isinstance(place, Path) else place.here()


def share(shared: Shared, data: Path, sha256s: Mapping[str, str]) -> list[str]:
    """Put the shards below `data/images` that are not there yet where all machines find them; their names."""
    there = shared.names(FOLDER)
    missing = [name for name, sha256 in sha256s.items() if f"{sha256}{_IDS}" not in there]
    for name in missing:
        path = data / "images" / f"{name}.parquet"
        shared.publish(f"{FOLDER}/{sha256s[name]}.parquet", path)
        with _described(path, name) as about:
            shared.publish(f"{FOLDER}/{sha256s[name]}{_IDS}", about)  # last: where it is, the images are
    return missing


@contextmanager
def _described(path: Path, name: str) -> Iterator[Path]:
    """A file with what the shard at `path` holds besides images."""
    file = open_shard(path)
    table = file.read(columns=["sample_id"])
    about = json.dumps({"digest": digest_in(file, name)}).encode()
    with TemporaryDirectory(prefix="vabal-") as folder:
        described = Path(folder) / f"{name}{_IDS}"
        pq.write_table(table.replace_schema_metadata({_ABOUT: about}), described)
        yield described


def _ids(file: pq.ParquetFile) -> np.ndarray:
    ids: np.ndarray = file.read(columns=["sample_id"]).column("sample_id").to_numpy()
    return ids
