"""Who reads images that stay where they are: told to every process that works on a workspace."""

from vabal import objects


def reach_objects() -> None:
    """Images that stay in S3 are read through boto3, which is loaded when the first of them is needed."""
    objects.reach(_s3)


def _s3() -> objects.Store:
    from vabal.adapters.storage import Objects  # noqa: PLC0415 -- boto3

    return Objects()
