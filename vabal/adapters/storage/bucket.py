"""The objects of a bucket: the audit reads them, images for people who label are written."""

from vabal.adapters.storage.client import client, explained


class Bucket:
    """The objects below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.s3 = client(attempts=4)

    def objects(self) -> dict[str, tuple[int, str]]:
        """Size and entity tag of every object, by its name below the prefix. Raises Unavailable if S3 is."""
        found: dict[str, tuple[int, str]] = {}
        with explained(self.bucket, "list"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    name = item["Key"].removeprefix(self.prefix)
                    found[name] = (int(item["Size"]), item.get("ETag", "").strip('"'))
        return found

    def read(self, name: str) -> bytes:
        """An object's bytes. Raises Unavailable if S3 is, or lacks it."""
        with explained(self.bucket, "read from"):
            return bytes(self.s3.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read())

    def write(self, name: str, content: bytes, media: str) -> None:
        """Write an object of that media type, over what is there. Raises Unavailable if S3 is."""
        with explained(self.bucket, "write to"):
            self.s3.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=content, ContentType=media)
