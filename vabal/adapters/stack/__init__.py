"""The local stack: S3 (rclone), MLflow, Prefect and one worker, as processes of this user on the loopback interface."""

from vabal.adapters.stack.lifecycle import down, status, up
from vabal.adapters.stack.ports import SERVICES, Stack, choose_ports, write_private

__all__ = ["SERVICES", "Stack", "choose_ports", "down", "status", "up", "write_private"]
