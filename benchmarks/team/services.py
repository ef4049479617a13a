"""The services of infra/compose.yaml as processes: their commands, environments and health checks as they stand there.

What a container engine would do is done here: the images' own entry points (`postgres`: makes the database; SeaweedFS:
puts the folder of its data on the command line), the names of the services (loopback, each with a port of its own), the
variables of the env file, the volumes (folders), and the settings of infra/Dockerfile's `ENV`.
"""

import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.team.tools import Tools
from vabal.adapters import processes

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
HOST = "127.0.0.1"
# A service's port in the compose file; the rest of SeaweedFS's listen on ports that are made up here.
PORTS = {"postgres": 5432, "s3": 8333, "mlflow": 5000, "prefect": 4200}
START_S = 300.0
SERVERS = ("postgres", "s3", "mlflow", "prefect")
_VARIABLE = re.compile(r"\$\{(\w+)(?::[-?][^}]*)?\}")


class Team:
    """All of compose.yaml below `folder`, with two workers where it has one: `start`, `kill`, `end` them by name."""

    def __init__(self, folder: Path, tools: Tools, webhook: str) -> None:
        self.folder = folder
        self.workspace = folder / "north"  # what lies under /workspace in the containers
        self._tools = tools
        self._services: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
        self._configs = yaml.safe_load((INFRA / "compose.yaml").read_text())["configs"]
        self.ports = {name: free_port() for name in PORTS}
        self._mark = {"VABAL_TEAM": secrets.token_hex(8)}
        self._running: dict[str, psutil.Process] = {}
        self._variables = {
            **{name: secrets.token_hex(16) for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")},
            "PREFECT_AUTH": f"team:{secrets.token_hex(16)}",
            "PREFECT_UI_API_URL": f"http://{HOST}:{self.ports['prefect']}/api",
            "VABAL_WORKSPACE": str(self.workspace),
            "VABAL_IMAGE": "vabal",
            "VABAL_NOTIFY_WEBHOOK": webhook,
            "VABAL_NOTIFY_SMTP": "",
        }

    # -- what the compose file says ---------------------------------------------------------------------------------

    def environment(self, service: str) -> dict[str, str]:
        """What a process of the service sees: the image's settings, those of the compose file, and nothing else."""
        home = self.folder / "homes" / service
        home.mkdir(parents=True, exist_ok=True)
        image = {} if service in ("postgres", "s3") else image_environment()
        given = {name: self.here(str(value)) for name, value in self._as_in(service).get("environment", {}).items()}
        paths = [str(Path(sys.executable).parent), *self._tools.paths, os.defpath]
        found = {
            **image,
            "PATH": os.pathsep.join(paths),
            "HOME": str(home),
            # Beside the packages of the lock: the driver that the image adds to them.
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self._tools.packages)]),
            "PREFECT_HOME": str(self.folder / "prefect" if service == "prefect" else home / "prefect"),
            **{name: self._volume(value) for name, value in given.items()},
            **self._mark,
        }
        threads = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # of the machine, not of the image
        return found | {name: os.environ[name] for name in threads if name in os.environ}

    def command(self, service: str) -> list[str]:
        """The command of the compose file, or else of the image, on this machine's addresses."""
        words = [self.here(str(word)) for word in self._as_in(service).get("command") or image_command()]
        words = [self._volume(word) for word in words]
        if service == "s3":
            return self._seaweedfs(words)
        if service == "worker":
            return [*words, "--name", service]
        return words

    def here(self, text: str) -> str:
        """A text of the compose file with its variables filled in, and its services' names as addresses of loopback."""
        text = _VARIABLE.sub(lambda found: self._variables.get(found[1], ""), text)
        for name, port in PORTS.items():
            text = re.sub(rf"\b(?:{name}|localhost|127\.0\.0\.1):{port}\b", f"{HOST}:{self.ports[name]}", text)
            text = re.sub(rf"^(--port=|){port}$", rf"\g<1>{self.ports[name]}", text)
        return text.replace("@postgres/", f"@{HOST}:{self.ports['postgres']}/").replace("0.0.0.0", HOST)  # noqa: S104

    def _as_in(self, service: str) -> dict[str, Any]:
        """The service's entry; a second worker is the first one again."""
        return self._services[service.partition("-")[0]]

    def _volume(self, text: str) -> str:
        text = re.sub("^/workspace$", str(self.workspace), text)
        return text.replace("/var/lib/prefect", str(self.folder / "prefect"))

    def _seaweedfs(self, words: list[str]) -> list[str]:
        """As the image's entry point: `server` gets the folder of the data, and no limit to its volumes."""
        data = self.folder / "s3"
        data.mkdir(exist_ok=True)
        words = [word.replace("-ip=s3", f"-ip={HOST}") for word in words]
        ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port")}
        ports |= {f"{name}.grpc": free_port() for name in (*ports, "s3.port")}
        own = [f"-s3.port={self.ports['s3']}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        more = [f"-dir={data}", "-volume.max=0", *own, *(f"-{name}={port}" for name, port in ports.items())]
        return ["weed", "-logtostderr=true", *words, *more]

    # -- processes --------------------------------------------------------------------------------------------------

    def up(self) -> dict[str, float]:
        """Start all but the notifier, each service once those it waits for are healthy; the seconds of each."""
        seconds = {}
        for service in (name for name in self._services if name != "notifier"):
            begun = time.monotonic()
            if self._services[service].get("restart") == "no":
                self.once(service)
            else:
                self.start(service)
            seconds[service] = time.monotonic() - begun
        return seconds

    def once(self, service: str) -> None:
        subprocess.run(self.command(service), cwd=self.folder, env=self.environment(service), check=True)

    def start(self, service: str) -> None:
        """Start it, as `restart: unless-stopped` does again after a crash, and wait until it is healthy."""
        command, environment = self.command(service), self.environment(service)
        if service == "postgres":
            command = self._postgres(environment)
        log = self.folder / "logs" / f"{service}.log"
        self._running[service] = processes.start(
            found(command, environment), environment=environment, folder=self.folder, log=log, private=False
        )
        if service == "postgres":
            self._wait(service, ["pg_isready", "--username", "vabal", "--dbname", "prefect"], environment)
            self._first_databases(environment)
        elif "healthcheck" in self._services.get(service, {}):
            check = self._services[service]["healthcheck"]["test"]
            assert check[0] == "CMD", check
            self._wait(service, [self.here(word) for word in check[1:]], environment)

    def pid(self, service: str) -> int:
        return self._running[service].pid

    def is_up(self, service: str) -> bool:
        return processes.is_running(self._running[service])

    def kill(self, service: str, *, tree: bool) -> None:
        """`kill -9`, of the process alone, or of all that it started as well, as where a machine loses its power."""
        process = self._running[service]
        for one in [*(process.children(recursive=True) if tree else []), process]:
            with suppress(psutil.NoSuchProcess):  # Postgres' processes come and go
                one.kill()
        psutil.wait_procs([process], timeout=10.0)

    def end(self) -> None:
        """End everything, workers first."""
        for service in reversed(list(self._running)):
            processes.end(self._running[service], grace=20.0)
        for process in processes.marked(self._mark):
            processes.end(process, grace=3.0)

    def _wait(self, service: str, check: list[str], environment: Mapping[str, str]) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < START_S and self.is_up(service):
            asked = subprocess.run(found(check, environment), env=dict(environment), capture_output=True, check=False)
            if asked.returncode == 0:
                return
            time.sleep(0.5)
        log = self.folder / "logs" / f"{service}.log"
        raise SystemExit(f"{service} did not become healthy by `{' '.join(check)}`:\n{processes.last_lines(log)}")

    # -- the database, as the image's entry point makes it ------------------------------------------------------------

    def _postgres(self, environment: dict[str, str]) -> list[str]:
        given = self._as_in("postgres")["environment"]
        data, as_user = self.folder / "postgres", []
        if os.geteuid() == 0:  # which Postgres refuses to be
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        environment |= {"PGHOST": HOST, "PGPORT": str(self.ports["postgres"])}
        environment |= {"PGUSER": given["POSTGRES_USER"], "PGPASSWORD": environment["POSTGRES_PASSWORD"]}
        if not data.exists():
            data.mkdir(mode=0o700)
            if as_user:
                shutil.chown(data, "postgres", "postgres")
            password = self.folder / "password"  # which `initdb` may read, whoever it runs as
            password.write_text(environment["POSTGRES_PASSWORD"])
            initdb = ["initdb", f"--pgdata={data}", f"--username={given['POSTGRES_USER']}", "--auth=scram-sha-256"]
            made = [*as_user, *found([*initdb, f"--pwfile={password}"], environment)]
            subprocess.run(made, env=environment, check=True, stdout=subprocess.DEVNULL)
            password.unlink()
        listens = ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
        server = ["postgres", "-D", str(data), "-p", environment["PGPORT"], *listens]
        return [*as_user, *found(server, environment)]

    def _first_databases(self, environment: dict[str, str]) -> None:
        """POSTGRES_DB, and what lies in `docker-entrypoint-initdb.d`: at the first start only."""
        done = self.folder / "databases"
        if not done.exists():
            first = f"CREATE DATABASE {self._as_in('postgres')['environment']['POSTGRES_DB']};"
            for statement in (first, self._configs["second_database"]["content"]):
                psql = found(["psql", "--quiet", "--dbname=postgres", "--command", statement], environment)
                subprocess.run(psql, env=environment, check=True)
            done.touch()


def image_environment() -> dict[str, str]:
    """ENV of infra/Dockerfile's last stage, but for PATH and PREFECT_HOME, which name the image's folders."""
    last = (INFRA / "Dockerfile").read_text().replace("\\\n", " ").split("\nFROM ")[-1]
    words = [word for line in last.splitlines() if line.startswith("ENV ") for word in line.split()[1:]]
    pairs = dict(word.split("=", 1) for word in words)
    return {name: value for name, value in pairs.items() if name not in ("PATH", "PREFECT_HOME")}


def image_command() -> list[str]:
    """CMD of infra/Dockerfile."""
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("CMD ")]
    words: list[str] = yaml.safe_load(line.removeprefix("CMD "))
    return words


def found(command: list[str], environment: Mapping[str, str]) -> list[str]:
    """The command with its program's whole path."""
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise SystemExit(f"`{command[0]}` is missing")
    return [program, *command[1:]]


def free_port() -> int:
    """One that nobody listens on, and below those that the system gives to connections."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind((HOST, port))
            return port
    raise SystemExit("no free port from 20000 to 29999")
