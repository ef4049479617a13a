"""The stage store that several machines share: stage outputs in S3."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from vabal.adapters.storage.client import MISSING, client, error_code, explained
from vabal.errors import UserError
from vabal.files import canonical_json
from vabal.rounds.stage_store import MARK, STAGES, LocalStageStore

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
        self._s3 = client(attempts=4)

    def claim(self) -> None:
        """Mark the prefix as a stage store's.

        Raises UserError if something else lies below it, Unavailable if S3 is away or the keys may not write there.
        """
        self.cache.claim()
        mark = self._object(MARK)
        with explained(self.bucket, "write stages to"):
            if self._has(mark):
                return
            found = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=self._object(""))
            names = [item["Key"].removeprefix(self._object("")) for item in found.get("Contents", [])]
            foreign = [name for name in names if name.split("/")[0] not in STAGES]
            if foreign:
                where = f"s3://{self.bucket}/{self.prefix}"
                raise UserError(f"stages: {where} holds other things (as {foreign[0]}): name another prefix")
            self._s3.put_object(Bucket=self.bucket, Key=mark, Body=canonical_json({"stages": 1}))

    def _has(self, key: str) -> bool:
        try:
            self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error_code(error) in MISSING:
                return False
            raise
        return True

    def get(self, stage: str, key: str) -> Path | None:
        """The finished output as a local folder, downloaded if need be, or None. Raises Unavailable if S3 is."""
        place = self.cache.get(stage, key)
        if place is not None:
            return place
        with explained(self.bucket, "read stages from"):
            names = self._names(stage, key)
            if MARKER not in names:
                return None
            with self.cache.produce(stage, key) as temporary:
                for name in sorted(names - {MARKER}):
                    self._s3.download_file(self.bucket, self._object(stage, key, name), str(temporary / name))
        return self.cache.get(stage, key)

    @contextmanager
    def produce(self, stage: str, key: str) -> Iterator[Path]:
        """A temporary folder to fill; when the block ends without an error its files are uploaded, the marker last.

        Raises Unavailable if S3 cannot be written to; then the stage counts as not done, here as well.
        """
        with self.cache.produce(stage, key) as temporary:
            yield temporary
            with explained(self.bucket, "write stages to"):
                for path in sorted(temporary.iterdir()):
                    self._s3.upload_file(str(path), self.bucket, self._object(stage, key, path.name))
                self._s3.put_object(Bucket=self.bucket, Key=self._object(stage, key, MARKER), Body=b"")

    def forget(self, before: float) -> int:
        """Remove outputs from before that time (seconds since 1970) from this machine's cache; S3 keeps everything.

        Other machines may still need an output, so the bucket is cleaned by a lifecycle rule of its own.
        """
        return self.cache.forget(before)

    def _object(self, *names: str) -> str:
        return "/".join([*([self.prefix] if self.prefix else []), *names])

    def _names(self, stage: str, key: str) -> set[str]:
        """The files of an output. Raises UserError for a name that no stage gives, which could lead elsewhere."""
        prefix = self._object(stage, key, "")
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        names = {item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])}
        strange = sorted(name for name in names if name != Path(name).name or name in ("", ".", ".."))
        if strange:
            raise UserError(
                f"stages: s3://{self.bucket}/{prefix} holds {strange[0]!r}, which no stage put there: remove it, or "
                "name another prefix"
            )
        return names
