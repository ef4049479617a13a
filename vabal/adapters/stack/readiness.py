"""Whether a service of the stack answers, by its own protocol."""

import urllib.error
import urllib.request
from datetime import UTC, datetime

import psutil

from vabal.adapters import limits, processes
from vabal.adapters.orchestration import POOL, Server
from vabal.adapters.stack.folder import Stack
from vabal.adapters.stack.ports import HOST
from vabal.adapters.stack.services import worker_name
from vabal.errors import Unavailable


def started_at(process: psutil.Process) -> datetime:
    return datetime.fromtimestamp(process.create_time(), UTC)


def is_ready(stack: Stack, ports: dict[str, int], service: str, process: psutil.Process) -> bool:
    """Raises Unavailable where S3 lets anybody in."""
    if not processes.is_running(process):
        return False
    if service == "notifier":
        return True
    if service == "worker":
        return _worker_polls(stack, process)
    if service == "prefect":
        return prefect_server(stack.environment()).is_ready()
    return _answers(service, f"http://{HOST}:{ports[service]}")


def _answers(service: str, url: str) -> bool:
    """S3 must turn away a request without a signature: a server that lets anybody in is an error, not ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + ("/" if service == "s3" else "/health"), timeout=limits.glance()):
            if service == "s3":
                raise Unavailable(f"the S3 server at {url} lets anybody in: this rclone ignores RCLONE_AUTH_KEY")
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return service == "s3" and error.code in (400, 401, 403)
    except OSError:
        return False


def prefect_server(environment: dict[str, str]) -> Server:
    return Server(environment["PREFECT_API_URL"], environment["PREFECT_API_AUTH_STRING"])


def _worker_polls(stack: Stack, process: psutil.Process) -> bool:
    try:
        heartbeat = prefect_server(stack.environment()).last_heartbeat(POOL, worker_name())
    except Unavailable:
        return False
    return heartbeat is not None and heartbeat > started_at(process)
