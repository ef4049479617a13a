"""`make demo`: three nights on the embedded stack, by the commands that people use and nothing else.

The images are photographs of solar cells of two types, functional and defective ones, not equally common.

A workspace of its own lies under `.vabal/demo/`. The only part played here is the annotators': the oracle's labels
answer each request's CSV, and come in through `vabal labels import`.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from vabal.errors import UserError
from vabal.labels.oracle import answer
from vabal.workspace import Workspace

ROUNDS = 3
# What lies in the demo's folder when it ends or is stopped: only such a folder is removed for the next one.
MADE = {
    *(".vabal", ".git", ".dvc", ".dvcignore", ".gitignore", ".gitattributes", "params.yaml", "data", "data.dvc"),
    *("inbox", "quarantine", "requests", "reports", "promotions.jsonl", "mlruns"),
}
# Everything else is as `vabal init` chooses it; it tries no turned views, which see each image eight times.
SETTINGS = ("selection.budget=100", "backbone.views=plain")
INIT = ("--source", "elpv:two-levels", "--initial", "100")

console = Console(width=min(Console().width, 100), highlight=False)


class Demo:
    """Runs commands in the demo's workspace, saying each as one would type it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vabal = [sys.executable, "-m", "vabal.cli"]

    def say(self, *arguments: str, may_refuse: bool = False) -> None:
        console.print(f"\n[bold]$ vabal {' '.join(arguments)}[/]", soft_wrap=True)
        subprocess.run([*self.vabal, *arguments], cwd=self.root, check=not may_refuse)


def main() -> int:
    """Run the demo; returns the exit code."""
    started = time.monotonic()
    demo = Demo(Path(__file__).resolve().parent.parent / ".vabal" / "demo")
    try:
        _start_afresh(demo)
    except UserError as error:
        console.print(str(error), style="bold red", soft_wrap=True)
        return 1
    _say_what_comes()
    try:
        demo.say("up")
        demo.say("init", *INIT, *(word for setting in SETTINGS for word in ("--set", setting)))
        for number in range(1, ROUNDS + 1):
            _night(demo, number)
        console.rule("the morning after")
        demo.say("promote", may_refuse=True)  # the gate may hold the newest version back: an answer, not an error
        demo.say("audit")
        demo.say("audit", "--verify")
        demo.say("curve")  # what the labels bought
        _say_where_to_look(demo)
    except subprocess.CalledProcessError as error:
        console.print(
            f"\n[bold red]That command failed (exit code {error.returncode}).[/] Logs: {demo.root}/.vabal/logs"
        )
        return 1
    finally:
        demo.say("down")
    page = os.path.relpath(Workspace(demo.root).report(ROUNDS))
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. For a browser: {page}", soft_wrap=True)
    return 0


def _start_afresh(demo: Demo) -> None:
    if demo.root.is_symlink() or (demo.root.exists() and not demo.root.is_dir()):
        raise UserError(f"{demo.root} is no folder of the demo: move it away")
    if demo.root.exists():
        foreign = sorted({path.name for path in demo.root.iterdir()} - MADE)
        if foreign:
            raise UserError(f"{demo.root} holds {foreign[0]}, which the demo did not make: move it away")
        subprocess.run([*demo.vabal, "down"], cwd=demo.root, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(demo.root)
    demo.root.mkdir(parents=True)


def _say_what_comes() -> None:
    console.print(
        f"{ROUNDS} nights of active learning on photographs of solar cells. What follows a $ is a command, as one\n"
        "would type it in a workspace; the oracle, which knows every label, plays the people who answer the requests.",
        soft_wrap=True,
    )


def _night(demo: Demo, number: int) -> None:
    console.rule(f"night {number}")
    demo.say("round")
    requests = f"requests/{number:04d}"
    demo.say("labels", "export", requests)
    filled = demo.root / requests / "requests.csv"
    answer(filled, Workspace(demo.root))
    console.print(f"[dim]the oracle fills in {requests}/requests.csv[/]")
    demo.say("labels", "import", f"{requests}/requests.csv")


def _say_where_to_look(demo: Demo) -> None:
    here = os.path.relpath(demo.root)
    console.print(
        f"\n[bold]Where to look[/] (workspace {here})\n"
        f"  vabal -C {here} up          start the stack again; it says where MLflow and Prefect answer\n"
        f"  vabal -C {here} deploy      put the nightly round, and the promotion after it, on the schedule\n"
        f"  vabal -C {here} audit 2     what round 2 picked, and why\n"
        f"  git -C {here} tag -n        the rounds, as annotated tags\n"
        f"  {here}/data/rounds/         each round's manifest, candidates and picks\n"
        f"  {here}/params.yaml          every setting",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
