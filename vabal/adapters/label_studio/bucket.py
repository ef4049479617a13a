"""The bucket that Label Studio reads images from (`labelling.studio.images: s3`), and what it is told of it."""

import os
from collections.abc import Iterable
from typing import Any, Final

from vabal.adapters import storage
from vabal.errors import UserError

# Label Studio's own address of S3, and keys that may list and read the bucket. Never ours: those may write as well.
ENDPOINT: Final = "LABEL_STUDIO_S3_ENDPOINT"
KEYS: Final = ("LABEL_STUDIO_S3_ACCESS_KEY_ID", "LABEL_STUDIO_S3_SECRET_ACCESS_KEY")
LINK_MINUTES: Final = 60


class ImageBucket:
    """The images of one workspace as people who label may see them, by their blind names.

    A bucket that nothing else lies in: Label Studio gives whoever sees a project any key of its storage's bucket.
    """

    def __init__(self, wanted: str | None, workspace: str, pools: str) -> None:
        """The bucket `wanted` (None: beside that of the `pools`), below the workspace's name.

        Raises UserError for the bucket of the pools, and for half a pair of keys.
        """
        self.name = wanted or f"{pools}-labelling"
        if self.name == pools:
            raise UserError(
                f"labelling.studio.bucket: `{self.name}` holds the pools with their labels, which people who label "
                "could read there: name one of its own"
            )
        self._prefix = workspace
        self._keys = [os.environ.get(name, "").strip() for name in KEYS]
        if any(self._keys) and not all(self._keys):
            raise UserError(f"only one of {KEYS[0]} and {KEYS[1]} is set: set both, or neither (docs/labelling.md)")
        self._endpoint = os.environ.get(ENDPOINT, os.environ.get("AWS_ENDPOINT_URL", "")).strip()
        self._bucket = storage.Bucket(self.name, workspace)

    @property
    def address(self) -> str:
        return f"s3://{self.name}/{self._prefix}"

    @property
    def secrets(self) -> list[str]:
        """What no message may say."""
        return [key for key in self._keys if key]

    def open(self) -> None:
        """Make it if it is missing, and try to write. Raises Unavailable."""
        storage.preflight(self.name, self._prefix)

    def put(self, name: str, picture: bytes, media: str) -> str:
        """Write an image, over the same one if it is there already; its address. Raises Unavailable if S3 is away."""
        self._bucket.write(name, picture, media)
        return f"{self.address}/{name}"

    def lacks(self, addresses: Iterable[str]) -> set[str]:
        """Which of these addresses are of this bucket, and nothing lies there. Raises Unavailable if S3 is away."""
        ours = {address for address in addresses if address.startswith(f"{self.address}/")}
        return ours - {f"{self.address}/{name}" for name in self._bucket.objects()} if ours else set()

    def source(self) -> dict[str, Any]:
        """What Label Studio's source storage is to be. It lists nothing by itself: tasks are made by `labels sync`."""
        found: dict[str, Any] = {
            "title": "VaB-AL: images of requests",
            "bucket": self.name,
            "prefix": self._prefix,
            "presign": True,
            "presign_ttl": LINK_MINUTES,
            "use_blob_urls": False,
            "synchronizable": False,
            "region_name": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
            "s3_endpoint": self._endpoint or None,
        }
        if self.secrets:
            found |= dict(zip(("aws_access_key_id", "aws_secret_access_key"), self._keys, strict=True))
        return found

    def hint(self) -> str:
        """What somebody may do whose Label Studio does not get at the images."""
        where = self._endpoint or "Amazon S3"
        return (
            f"it has to reach {where} (else {ENDPOINT}; an address of a private network only where it runs with "
            f"SSRF_PROTECTION_ENABLED=false), with keys that may list and read the bucket ({KEYS[0]} and {KEYS[1]}, "
            "or some of its own)"
        )
