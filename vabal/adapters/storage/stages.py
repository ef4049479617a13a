"""The stage store that several machines share: stage outputs in S3."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from vabal.adapters.storage.client import explained, make_bucket
from vabal.adapters.storage.shared import S3Files
from vabal.errors import UserError
from vabal.files import Remote, canonical_json, found, touched
from vabal.rounds.stage_store import MARK, PARTS, SHARED, STAGES, LocalStageStore

MARKER = "_complete"


class S3StageStore:
    """Stage outputs below an `s3://bucket/prefix`, with this machine's store as cache.

    The same interface as `vabal.rounds.stage_store.LocalStageStore`. S3 has no rename, so an output counts as finished
    once its marker object is there, which is written last. Two machines that finish the same stage write the same
    bytes. Nothing is read or written but below the prefix, and nothing in S3 is ever deleted.
    """

    def __init__(self, address: str, cache: LocalStageStore) -> None:
        """`address` is `s3://bucket/prefix`; downloaded and produced outputs are kept in `cache`.

        Raises UserError if `address` is no such address.
        """
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.netloc:
            raise UserError(f"stages: `{address}` is no s3://bucket/prefix")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        self.cache = cache
        self.shared = S3Files(self.bucket, self.prefix)

    def claim(self) -> None:
        """Mark the prefix as a stage store's.

        Raises UserError if something else lies below it, Unavailable if S3 is away or the keys may not write there.
        """
        self.cache.claim()
        make_bucket(self.shared.s3, self.bucket)
        if self.shared.has(MARK):
            return
        with explained(self.bucket, "write stages to"):
            found = self.shared.s3.list_objects_v2(Bucket=self.bucket, Prefix=self.shared.key(""))
        names = [item["Key"].removeprefix(self.shared.key("")) for item in found.get("Contents", [])]
        foreign = [name for name in names if name.split("/")[0] not in (*STAGES, *SHARED)]
        if foreign:
            where = f"s3://{self.bucket}/{self.prefix}"
            raise UserError(f"stages: {where} holds other things (as {foreign[0]}): name another prefix")
        self.shared.write(MARK, canonical_json({"stages": 1}))

    def get(self, stage: str, key: str) -> Path | None:
        """The finished output as a local folder, downloaded if need be, or None. Raises Unavailable if S3 is."""
        place = self.cache.get(stage, key)
        if place is not None:
            return place
        names = self._names(stage, key)
        if MARKER not in names:
            return None
        with self.cache.produce(stage, key) as temporary:
            for name in sorted(names - {MARKER}):
                part = self._part(stage, key, name)
                if touched(part):
                    part.rename(temporary / name)
                else:
                    self.shared.fetch(f"{stage}/{key}/{name}", temporary / name)
        return self.cache.get(stage, key)

    def has(self, stage: str, key: str) -> bool:
        """Whether the output is finished, without fetching it."""
        return self.cache.get(stage, key) is not None or self.shared.has(f"{stage}/{key}/{MARKER}")

    def file(self, stage: str, key: str, name: str) -> Path | Remote | None:
        """One file of a finished output: here, or where it lies."""
        place = self.cache.get(stage, key)
        if place is not None:
            return place / name
        return found(self.shared, f"{stage}/{key}/{name}", self._part(stage, key, name))

    def _part(self, stage: str, key: str, name: str) -> Path:
        """Where a file of an output is kept that was fetched alone."""
        return self.cache.folder / PARTS / f"{stage}-{key}-{name}"

    @contextmanager
    def produce(self, stage: str, key: str) -> Iterator[Path]:
        """A temporary folder to fill; when the block ends without an error its files are uploaded, the marker last.

        Raises Unavailable if S3 cannot be written to; then the stage counts as not done, here as well.
        """
        with self.cache.produce(stage, key) as temporary:
            yield temporary
            self._upload(stage, key, temporary)

    def publish(self, stage: str, key: str) -> None:
        """What this machine made by itself, for all to find: the files of the output's folder, no folders in it."""
        place = self.cache.get(stage, key)
        if place is not None and not self.shared.has(f"{stage}/{key}/{MARKER}"):
            self._upload(stage, key, place)

    def _upload(self, stage: str, key: str, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self.shared.publish(f"{stage}/{key}/{path.name}", path)
        self.shared.write(f"{stage}/{key}/{MARKER}", b"")

    def forget(self, before: float) -> int:
        """Remove outputs from before that time (seconds since 1970) from this machine's cache; S3 keeps everything.

        Other machines may still need an output, so the bucket is cleaned by a lifecycle rule of its own.
        """
        return self.cache.forget(before)

    def _names(self, stage: str, key: str) -> set[str]:
        """The files of an output. Raises UserError for a name that no stage gives, which could lead elsewhere."""
        names = self.shared.names(f"{stage}/{key}")
        strange = sorted(name for name in names if name != Path(name).name or name in ("", ".", ".."))
        if strange:
            raise UserError(
                f"stages: s3://{self.bucket}/{self.shared.key(stage, key, '')} holds {strange[0]!r}, which no stage "
                "put there: remove it, or name another prefix"
            )
        return names
