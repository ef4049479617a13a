"""README's and the docs' blocks, run as they are written; `tests/rules/test_blocks.py` counts those that are not."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import RunningStack
from sklearn.datasets import load_digits
from workspaces import answer_requests, done, nursery_of, run

from flows import demo
from tests.rules.repository import ROOT, files
from tests.support import typed
from tests.support.blocks import IN_DEMO, Block, blocks

OF_THE_STACK = {"env", "stack.json", "stack.lock", "logs", "s3", "mlflow", "prefect", "home"}
# Of the demo, quicker; what it is like otherwise is `flows.demo`'s.
QUICKER = (
    "classifier.learner=probe",
    "backbone.sizes=[32]",
    "images.size=64",
    "pool.near_copies=0",
    "vae.epochs=2",
    "vae.min_steps=20",
)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ONE_AFTER_THE_OTHER = re.compile(r"0 0(?:, 0 0)*")  # picks by class: as many as there happen to be


class Shell:
    """A folder in which somebody types; variables that a block exports are there for the next."""

    def __init__(self, folder: Path, address: str, environment: dict[str, str]) -> None:
        self.folder, self.address, self.environment = folder, address, environment

    def type(self, block: Block) -> None:
        if block.language == "python":
            self.run(block, "python", "-c", block.text)
        elif block.language == "sh":
            self.run_sh(block, block.text)
        else:
            for command, shown in block.transcript():
                check_is_said(shown, self.run_sh(block, command), f"{block}: $ {command}")

    def run_sh(self, block: Block, text: str) -> str:
        kept = self.folder / ".vabal" / "exported"
        said = self.run(block, "bash", "-e", "-c", f"{text}\nenv -0 >{kept}")
        pairs = (entry.split("=", 1) for entry in kept.read_text().split("\0") if "=" in entry)
        self.environment = dict(pairs)
        kept.unlink()
        return said

    def run(self, block: Block, *command: str) -> str:
        """What it says on both streams; fails with that if it ends otherwise than well."""
        programs = self.folder.parent / "programs"
        typed.put_on_path(programs, ROOT, self.address, block.settings)
        path = os.pathsep.join([str(programs), self.environment["PATH"]])
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{block}: ended with {ended.returncode}\n{block.text}\n{ended.stdout}"
        return ended.stdout


def check_is_said(shown: list[str], said: str, where: str) -> None:
    """Every line that is shown was said, in this order, up to numbers; a line that ends in `...` went on."""
    told, place = loosened(said), 0
    for line in shown:
        place = told.find(loosened(line.removesuffix("...")), place)
        assert place >= 0, f"{where}\nshown: {line}\nsaid: {said}"


def loosened(text: str) -> str:
    return ONE_AFTER_THE_OTHER.sub("0 0", NUMBER.sub("0", " ".join(text.split())))


def of_page(page: str) -> list[Block]:
    found = blocks(page, (ROOT / page).read_text(encoding="utf-8"))
    shown = [block for block in found if block.language in ("sh", "python") or block.text.startswith("$ ")]
    return [block for block in shown if block.is_run]


PAGES = [str(path) for path in files(".md") if of_page(str(path))]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing of ours but the programs of `make setup` on the path, as in an environment that was activated."""
    (tmp_path / "home").mkdir()
    ours = ("AWS_", "MLFLOW_", "PREFECT_", "VABAL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, "HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "1"}


@pytest.fixture(scope="module")
def after_two_nights(running_stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace like the demo's, before its third night."""
    root = tmp_path_factory.mktemp("demo") / "demo"
    (root / ".vabal").mkdir(parents=True, mode=0o700)
    shutil.copyfile(running_stack.root / ".vabal" / "env", root / ".vabal" / "env")
    settings = [word for setting in (*demo.SETTINGS, *QUICKER) for word in ("--set", setting)]
    done(run(root, "init", *demo.INIT, *settings))
    for number in (1, 2):
        done(run(root, "round"))
        answer_requests(root, f"requests/{number:04d}")
    return root


@pytest.fixture
def empty_folder(running_stack: RunningStack) -> Iterator[Path]:
    """One in which the local stack may be started, for it runs already; class folders with images lie beside it."""
    root = running_stack.root
    parts = root.parent / "parts"
    found = load_digits()
    for row in range(400):
        path = parts / f"part-{found.target[row]}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(found.images[row] * 16, 0, 255).astype(np.uint8)).save(path)
    leave_the_stack_alone_in(root)
    yield root
    leave_the_stack_alone_in(root)
    shutil.rmtree(parts)


def leave_the_stack_alone_in(root: Path) -> None:
    for path in (*root.iterdir(), *(root / ".vabal").iterdir()):
        if path != root / ".vabal" and not (path.parent.name == ".vabal" and path.name in OF_THE_STACK):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_as_it_is_written(
    page: str, stack: RunningStack, after_two_nights: Path, empty_folder: Path, environment: dict[str, str]
) -> None:
    nursery = nursery_of(stack.root, {})
    assert nursery is not None
    address = nursery.address
    in_demo = Shell(after_two_nights, address, environment)
    for block in of_page(page):
        if block.mark == IN_DEMO:
            in_demo.type(block)
        else:
            leave_the_stack_alone_in(empty_folder)
            Shell(empty_folder, address, environment).type(block)
