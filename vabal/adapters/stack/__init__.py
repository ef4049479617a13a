"""The local stack: S3 (rclone), MLflow, Prefect and one worker, as processes of this user on the loopback interface."""

from vabal.adapters.stack.folder import SERVICES, Stack, write_private
from vabal.adapters.stack.lifecycle import down, status, up

__all__ = ["SERVICES", "Stack", "down", "status", "up", "write_private"]
