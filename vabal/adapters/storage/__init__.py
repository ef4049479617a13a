"""S3 through boto3: the bucket, a stage store that several machines share, and the anchor of the record."""

from vabal.adapters.storage.anchor import Anchor
from vabal.adapters.storage.bucket import Bucket
from vabal.adapters.storage.client import client, make_bucket, preflight
from vabal.adapters.storage.stages import S3StageStore

__all__ = ["Anchor", "Bucket", "S3StageStore", "client", "make_bucket", "preflight"]
