"""The local stack, and rounds on it while its servers fail: S3 and MLflow behind a proxy, Prefect and worker killed.

Where the proxy fails, the round runs without Prefect's engine, hence without its retries: the failure is seen at once.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from benchmarks.faults import children
from benchmarks.faults.nights import Nights, facts, in_order, save_images
from benchmarks.faults.outcomes import Outcome, compared
from tests.support.faulty_server import FAULTS, seen, tell
from vabal.adapters import processes, stack

PATIENCE = {
    "VABAL_SILENCE_S": "3",
    "VABAL_TRANSFER_S": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}
CHAIN = 6
# When Prefect's server or the worker dies: once this is below `.vabal`.
MOMENTS = {"while it trains": "stages/train-classifier", "while it publishes": "publish"}


def everything(folder: Path, seed: int) -> Iterator[Outcome]:
    root = folder / "stack"
    root.mkdir()
    save_images(folder / "some.npz")
    try:
        yield killed_up(root)
        addresses = stack.Stack(root / ".vabal").environment()
        os.environ |= addresses
        yield from prefect_and_worker_killed(folder, root, addresses, folder / "some.npz")
        yield from failing_servers(folder, addresses, folder / "some.npz", seed, 10)
    finally:
        stack.down(root)


class OnStack(Nights):
    """A workspace of its own name on the running stack, whose MLflow it asks."""

    def __init__(self, folder: Path, name: str, addresses: dict[str, str], strategy: str = "margin") -> None:
        super().__init__(folder / name, strategy)
        self.name = name
        self.addresses = addresses

    @property
    def environment(self) -> dict[str, str]:
        return {**self.addresses, **PATIENCE}

    def words(self, step: str) -> list[str]:
        words = super().words(step)
        return [*words, "--name", self.name, "--set", f"storage.bucket=faults-{self.name}"] if step == "init" else words

    def begin(self, source: Path) -> None:
        """Round 0, undisturbed."""
        self.root.mkdir(parents=True)
        shutil.copy(source, self.folder / "some.npz")
        ended = self.run("init", real_dvc=True)
        if ended.code != 0:
            raise RuntimeError(ended.said)
        lines = [f"{name}={value}\n" for name, value in self.addresses.items()]
        (self.root / ".vabal" / "env").write_text("".join(lines))

    def registry(self) -> list[str]:
        client = MlflowClient()
        model = f"{self.name}-vabal-classifier"
        experiment = client.get_experiment_by_name(f"{self.name}-vabal")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        versions = client.search_model_versions(f"name = '{model}'")
        aliases = client.get_registered_model(model).aliases if versions else {}
        return in_order(
            [(run.info.run_name, run.info.status) for run in runs],
            [int(version.version) for version in versions if "vabal.status" not in version.tags],
            [(alias, int(version)) for alias, version in aliases.items()],
        )


@contextmanager
def behind_proxies(folder: Path, addresses: dict[str, str]) -> Iterator[tuple[dict[str, str], dict[str, Path]]]:
    """The same addresses, S3 and MLflow behind proxies; and the files that tell those what to do."""
    started: list[subprocess.Popen[str]] = []
    changed, controls = dict(addresses), {}
    try:
        for server, name in (("s3", "AWS_ENDPOINT_URL"), ("mlflow", "MLFLOW_TRACKING_URI")):
            control = controls[server] = folder / f"{server}.json"
            tell(control)
            command = [sys.executable, "-m", "tests.support.faulty_server", addresses[name], str(control)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            started.append(process)
            assert process.stdout is not None
            changed[name] = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        yield changed, controls
    finally:
        for process in started:
            process.kill()
            process.wait()


def failing_servers(folder: Path, addresses: dict[str, str], source: Path, seed: int, count: int) -> Iterator[Outcome]:
    """Each history: a round that `CHAIN` faults break off one after the other, at requests drawn by the seed."""
    drawn = random.Random(seed)  # noqa: S311 -- repeatable
    with behind_proxies(folder, addresses) as (proxied, controls):
        calm = OnStack(folder, "calm", proxied)
        calm.begin(source)
        for control in controls.values():
            tell(control)
        children_run(calm, "round")
        requests = {server: seen(control) for server, control in controls.items()}
        print(f"an undisturbed round's requests: {requests}", flush=True)
        expected = facts(calm.folder, calm.registry())
        faults = [(server, fault) for server in requests for fault in FAULTS]
        for number in range(count):
            nights = OnStack(folder, f"torn{number}", proxied)
            nights.begin(source)
            nights.facts["round"] = expected
            told, tried, where = [], 0, []
            for place in range(CHAIN):
                server, fault = faults[(number * CHAIN + place) % len(faults)]
                after = drawn.randrange(requests[server] // (place + 1))  # what is done already is not asked for again
                tell(controls[server], fault, after, 1000)
                ended = nights.run("round", real_dvc=True)
                tell(controls[server])
                if ended.code != 0:
                    told.append(ended)
                    tried += 1
                where.append(f"{server} {fault} after {after} requests")
                if ended.code == 0:
                    break
            yield _settled(nights, "S3 and MLflow failing", "; ".join(where), told, tried)


def children_run(nights: OnStack, step: str) -> None:
    ended = nights.run(step, real_dvc=True)
    if ended.code != 0:
        raise RuntimeError(ended.said)


def _settled(nights: OnStack, kind: str, where: str, told: list[children.Ended], tried: int) -> Outcome:
    broken: dict[str, str] = {}
    if wrong := [ended for ended in told if not ended.in_one_line]:
        broken["one line"] = f"exit {wrong[0].code} after {wrong[0].seconds:.0f} s: {wrong[0].said[-500:]}"
    if not (nights.root / "data" / "rounds" / "0001").exists() or (nights.root / ".vabal" / "publish").exists():
        ended = nights.run("round", real_dvc=True)
        if ended.code != 0:
            broken["got out"] = f"exit {ended.code}: {ended.said[-500:]}"
    return Outcome(kind, where, tried, broken | compared(nights, "round", nights.registry()))


# -- the stack itself ---------------------------------------------------------------------------------------------


def killed_up(root: Path) -> Outcome:
    """`vabal up` dies after each server that it starts, and while it waits; the last call finds what runs."""
    told, tried = [], 0
    for _ in range(len(stack.SERVICES)):
        ended = children.run(root, "up", fault=_dies_after_start, real_dvc=True)
        tried += ended.killed
        told += [] if ended.killed else [ended]
    for seconds in (1.0, 3.0):
        ended = children.run(root, "up", after_s=seconds, real_dvc=True)
        tried += ended.killed
    ended = children.run(root, "up", real_dvc=True)
    broken = {} if ended.code == 0 else {"got out": ended.said[-500:]}
    if wrong := [item for item in [*told, ended] if not item.in_one_line]:
        broken["one line"] = wrong[0].said[-500:]
    rows = stack.status(root)
    if [row["state"] for row in rows] != ["running"] * len(stack.SERVICES):
        broken["nothing lost"] = str([(row["service"], row["state"]) for row in rows])
    doubled = {service: len(_tops(root, service)) for service in stack.SERVICES}
    if set(doubled.values()) != {1}:
        broken["nothing doubled"] = str(doubled)
    return Outcome("SIGKILL, up", "after each start, and waiting", tried, broken)


def _dies_after_start() -> None:
    start = processes.start

    def dying(*arguments: Any, **options: Any) -> Any:
        start(*arguments, **options)
        children.die()

    processes.start = dying


def _tops(root: Path, service: str) -> list[psutil.Process]:
    """The service's processes that no other of its processes started."""
    marked = processes.marked(stack.Stack(root / ".vabal").marks(service))
    pids = {process.pid for process in marked}
    return [process for process in marked if process.ppid() not in pids]


def prefect_and_worker_killed(folder: Path, root: Path, addresses: dict[str, str], source: Path) -> Iterator[Outcome]:
    """The real flow, in the command's process and in a worker's; Prefect's server or the worker dies meanwhile."""
    calm = OnStack(folder, "quiet", addresses)
    calm.begin(source)
    children_run(calm, "round")
    expected = facts(calm.folder, calm.registry())
    for service, words in (("prefect", ["round"]), ("worker", ["round", "--worker"])):
        for when, place in MOMENTS.items():
            nights = OnStack(folder, f"{service}-{len(when)}", addresses)
            nights.begin(source)
            nights.facts["round"] = expected
            if service == "worker":
                _vabal(nights, "deploy")
            with _begun(nights, *words) as process:
                _until_over_or_there(process, nights.root / ".vabal" / place)
                tried = int(process.poll() is None)
                _kill(root, service)
                if service == "worker":
                    stack.up(root)  # tells the run, and who waits for it, that it has crashed
                ended = _end_of(process, nights.folder / "said")
            stack.up(root)
            yield _settled(nights, f"SIGKILL, {service} during a round", when, [ended] * tried, tried)


def _kill(root: Path, service: str) -> None:
    for victim in _tops(root, service):
        for one in [victim, *victim.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)


def _vabal(nights: OnStack, *words: str) -> None:
    with _begun(nights, *words) as process:
        ended = _end_of(process, nights.folder / "said")
    if ended.code != 0:
        raise RuntimeError(ended.said)


@contextmanager
def _begun(nights: OnStack, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process of its own; what it says goes to the file `said`."""
    command = [sys.executable, "-m", "vabal.cli", *words]
    with (nights.folder / "said").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=nights.root, env={**os.environ, **nights.addresses}, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end_of(process: subprocess.Popen[bytes], said: Path) -> children.Ended:
    started = time.monotonic()
    code: int | None = None
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(timeout=children.LIMIT_S)
    return children.Ended(code, said.read_text(errors="replace"), 0, time.monotonic() - started)


def _until_over_or_there(process: "subprocess.Popen[bytes]", place: Path) -> None:
    _until(lambda: process.poll() is not None or place.exists())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + children.LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the round did not come that far")
        time.sleep(0.05)
