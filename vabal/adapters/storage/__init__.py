"""S3 through boto3: the bucket, images that stay in one, a stage store that machines share, the record's anchor."""

from vabal.adapters.storage.anchor import Anchor
from vabal.adapters.storage.bucket import Bucket
from vabal.adapters.storage.client import client, make_bucket, preflight
from vabal.adapters.storage.objects import Objects
from vabal.adapters.storage.stages import S3StageStore

__all__ = ["Anchor", "Bucket", "Objects", "S3StageStore", "client", "make_bucket", "preflight"]
