"""Workspaces for integration tests: made, run and answered by the commands that people use."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image
from running import RunningStack
from sklearn.datasets import load_digits

from tests.support import forking
from tests.support.repositories import git
from tests.support.small_sources import few_digits
from vabal.adapters.orchestration import Server
from vabal.cli import app
from vabal.labels.oracle import answer
from vabal.settings.params import override, read_yaml
from vabal.workspace import Workspace

# Narrow and short: a round's time is then that of its processes and its bookkeeping.
SETTINGS: dict[str, Any] = {
    "classifier.learner": "scratch",
    "classifier.width": 4,
    "classifier.epochs": 3,
    "vae.epochs": 1,
    "vae.min_steps": 20,
    "probabilities.draws": 5,
    "probabilities.members": 2,
    "selection.budget": 12,
    "selection.control_share": 0.0,  # its own tests draw one
    "compute.threads": 1,
}
DIGITS = ("--imbalance", "dominant:0:0.3", "--initial", "40")


# -- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def run(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
    """The command in a process of its own, as flows need it: Prefect reads its address when it is imported.

    It is a child of a process that has imported all, Prefect with this workspace's address: see `support.forking`.
    """
    given = {**os.environ, **(environment or {})}
    if (nursery := nursery_of(root, given)) is None:
        return run_alone(root, *arguments, environment=environment)
    return Said(*nursery.run(["vabal", *arguments], folder=root, environment=given))


def run_program(root: Path, program: str, *arguments: str) -> Said:
    """A program of a test's in such a process; there must be a Prefect server."""
    nursery = nursery_of(root, os.environ)
    assert nursery is not None
    return Said(*nursery.run(["python", program, *arguments], folder=root, environment=os.environ))


def nursery_of(root: Path, given: Mapping[str, str]) -> forking.Nursery | None:
    """The one whose Prefect has the address of the environment, or else of the workspace; None where there is none."""
    stack = RunningStack(root)
    known = {**(stack.environment if stack.is_known else {}), **given}
    address = known.get("PREFECT_API_URL", "")
    if not address:
        return None
    if address not in _nurseries:
        _nurseries[address] = forking.Nursery("vabal", known)
    return _nurseries[address]


_nurseries: dict[str, forking.Nursery] = {}  # by Prefect's address


def close_nurseries() -> None:
    while _nurseries:
        _nurseries.popitem()[1].close()


def run_alone(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
    """The command as a shell starts it: eight seconds of imports where it runs a flow."""
    done = subprocess.run(
        [sys.executable, "-m", "vabal.cli", *arguments],
        cwd=root,
        env={**os.environ, **(environment or {})},
        check=False,
        capture_output=True,
        text=True,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def call(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Said:
    """The command in this process, which is much quicker; what is no message for users is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(root),
        mock.patch.dict(os.environ, environment or {}),
        mock.patch.object(sys, "argv", ["vabal", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            app.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def done(said: Said) -> Said:
    """The same; fails with its words unless it ended well."""
    assert said.code == 0, f"ended with {said.code}\n{said.out}\n{said.err}"
    return said


def ask(root: Path, *arguments: str) -> Any:
    """What a reading command answers with `--json`."""
    return json.loads(done(call(root, *arguments, "--json")).out)


def runs_of(server: Server, deployment: str) -> list[dict[str, Any]]:
    """Prefect's runs of it."""
    found = server.call("GET", f"/deployments/name/{deployment}")
    return [run for run in server.flow_runs({}) if run["deployment_id"] == found["id"]]


def until(condition: Callable[[], Any], seconds: float, what: str, every: float = 0.1) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(every)
    return value


# -- a workspace --------------------------------------------------------------------------------------------------


def make_workspace(
    stack: RunningStack, root: Path, name: str, *source: str, settings: Mapping[str, Any] | None = None
) -> Said:
    """`vabal init` in the new folder `root`, whose bucket and MLflow names are its own; default source: a few digits.

    The stack's addresses and keys lie in the workspace's `.vabal/env`, as `vabal up` leaves them.
    """
    (root / ".vabal").mkdir(parents=True, mode=0o700)
    shutil.copyfile(stack.root / ".vabal" / "env", root / ".vabal" / "env")
    chosen = {**SETTINGS, "storage.bucket": f"vabal-{name}", **(settings or {})}
    options = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    # The environment is read before there is a workspace: this first command needs it told.
    words = source or ("--source", few_digits(), *DIGITS)
    return done(call(root, "init", *words, "--name", name, *options, environment=stack.environment))


def change_settings(root: Path, changes: Mapping[str, Any]) -> None:
    """Edit `params.yaml` as people do."""
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(override(read_yaml(path.read_text()), dict(changes)), sort_keys=False))


def oracle(root: Path) -> dict[str, str]:
    """The labels that people would give, by sample_id."""
    with (root / ".vabal" / "oracle.csv").open(encoding="utf-8", newline="") as file:
        return {row["sample_id"]: row["label"] for row in csv.DictReader(file)}


def answer_requests(root: Path, folder: str) -> int:
    """Export the open requests, let the oracle fill them in, import them; how many it knew."""
    done(call(root, "labels", "export", folder))
    filled = answer(root / folder / "requests.csv", Workspace(root))
    done(call(root, "labels", "import", f"{folder}/requests.csv"))
    return filled


def write_labels(path: Path, *lines: tuple[str, str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("sample_id", "label", "annotator"), *lines])
    return path


def picks(root: Path, number: int) -> bytes:
    return (root / "data" / "rounds" / f"{number:04d}" / "selection.parquet").read_bytes()


def picked_ids(root: Path, number: int) -> list[str]:
    return [pick["sample_id"] for pick in ask(root, "audit", str(number))]


def tags(root: Path) -> list[str]:
    return git(root, "tag").split()


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a workspace or of its `data/`, the bookkeeping of git, DVC and `.vabal` left out."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if name.split("/")[0] not in (".git", ".vabal", ".dvc")
    }


# -- two nights ---------------------------------------------------------------------------------------------------


@dataclass
class TwoNights:
    """A workspace after two rounds, with much in between; and what its commands said. Copy it before changing it."""

    root: Path
    name: str
    said: dict[str, Said] = field(default_factory=dict)
    data: dict[int, dict[str, str]] = field(default_factory=dict)  # digests of data/ as each round left it
    names: dict[str, str] = field(default_factory=dict)  # sample ids with a story

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.root, to, symlinks=True)
        return to


def four_digits(path: Path) -> Path:
    """An .npz of 8 x 8 images: 40 each of the digits 0, 1 and 2, four of the digit 3."""
    found = load_digits()
    rows = np.concatenate([np.flatnonzero(found.target == digit)[: 4 if digit == 3 else 40] for digit in range(4)])
    images = np.clip(found.images[rows] * 16, 0, 255).astype(np.uint8)
    np.savez(path, images=images, labels=found.target[rows])
    return path


def picture(seed: int, size: int = 8) -> bytes:
    """A PNG file of grey noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def camera(folder: Path) -> Path:
    """Three new images, one of them twice, and four files that are none."""
    folder.mkdir()
    for name, content in {
        "a.png": picture(1),
        "b.png": picture(2),
        "c.png": picture(3),
        "a-again.png": picture(1),
        "cut.png": picture(4)[:60],
        "empty.png": b"",
        "huge.png": picture(5, size=20),
        "notes.png": b"call the night shift",
    }.items():
        (folder / name).write_bytes(content)
    return folder


def interrupt_training(root: Path) -> Said:
    """A round whose training would take for ever, stopped with Ctrl-C."""
    before = (root / "params.yaml").read_bytes()
    change_settings(root, {"classifier.epochs": 10_000_000})
    command = [sys.executable, "-m", "vabal.cli", "round"]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stage = root / ".vabal" / "stages" / "train-classifier"
    try:
        until(lambda: process.poll() is not None or list(stage.glob(".*")), 600, "the training to begin")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    (root / "params.yaml").write_bytes(before)
    return Said(process.returncode, out, err)


def two_nights(stack: RunningStack, root: Path, name: str = "nights") -> TwoNights:
    """Night 1; a part of its labels, a rejection, a correction; new images; Ctrl-C; night 2."""
    nights = TwoNights(root, name)
    said = nights.said
    root.parent.mkdir(parents=True, exist_ok=True)
    source = four_digits(root.parent / "few.npz")
    settings = {
        "classifier.width": 8,
        "classifier.epochs": 60,
        "selection.budget": 8,
        "images.max_megapixels": 0.0001,  # 100 pixels
    }
    said["init"] = make_workspace(
        stack, root, name, "--source", f"npz:{source}", "--initial", "20", "--seed", "0", settings=settings
    )
    nights.data[0] = digests(root / "data")
    said["interrupted"] = interrupt_training(root)
    said["round 1"] = done(run(root, "round"))
    nights.data[1] = digests(root / "data")

    said["export"] = done(call(root, "labels", "export", "requests"))
    truth, asked = oracle(root), picked_ids(root, 1)
    wrong = next(label for label in ("0", "1") if label != truth[asked[0]])
    first = write_labels(
        root.parent / "first.csv",
        (asked[0], wrong, "ada"),
        (asked[1], truth[asked[1]], "ada"),
        (asked[2], "", "ada"),
        (asked[3], "", ""),
    )
    second = write_labels(root.parent / "second.csv", (asked[0], truth[asked[0]], "bob"))
    said["first"] = done(call(root, "labels", "import", str(first)))
    said["second"] = done(call(root, "labels", "import", str(second)))
    said["first again"] = done(call(root, "labels", "import", str(first)))
    said["ingest"] = done(call(root, "ingest", str(camera(root.parent / "camera"))))
    nights.names = {"corrected": asked[0], "labelled": asked[1], "rejected": asked[2], "open": asked[3], "wrong": wrong}

    said["round 2"] = done(run(root, "round", "--strategy", "entropy"))
    nights.data[2] = digests(root / "data")
    return nights
