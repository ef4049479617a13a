"""How commands declare many options, and what a shell completes behind them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from vabal import strategies
from vabal.benchmark.protocols import PROTOCOLS
from vabal.cli import complete
from vabal.cli.options import taking

# The command under its own name, which a shell knows its completion by.
RUN = "import sys; sys.argv = ['vabal', *sys.argv[1:]]; from vabal.cli.app import main; main()"
VABAL = [sys.executable, "-c", RUN]


@dataclass(frozen=True)
class Options:
    wanted: Annotated[str, typer.Argument(help="What.")]
    often: Annotated[int, typer.Option(help="How often.")] = 1
    loud: Annotated[bool, typer.Option("--loud")] = False


def test_a_command_is_given_its_options_as_one_value() -> None:
    given: list[Options] = []
    app = typer.Typer()

    @app.command()
    @taking(Options)
    def command(options: Options) -> None:
        """Told in the help."""
        given.append(options)

    assert CliRunner().invoke(app, ["this", "--often", "3", "--loud"]).exit_code == 0
    assert CliRunner().invoke(app, ["that"]).exit_code == 0
    assert given == [Options("this", 3, True), Options("that")]
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert "Told in the help." in told
    assert "How often." in told


def test_strategies_are_completed_also_behind_a_comma_and_in_a_wrapper() -> None:
    assert complete.strategies("") == strategies.names()
    assert complete.strategies("lear") == ["learning_loss"]
    assert complete.strategies("random,lear") == ["random,learning_loss"]
    assert complete.strategies("random,balanced:lear") == ["random,balanced:learning_loss"]
    assert complete.strategies("frobnicate") == []


def test_sources_layouts_and_protocols_are_completed() -> None:
    assert complete.sources("n") == ["npz:", "neu:"]
    assert complete.sources("dig") == ["digits"]
    assert complete.sources("e") == ["elpv"]
    assert complete.layouts("s") == ["splits"]
    assert complete.protocols("") == list(PROTOCOLS)


def completed(words: str) -> list[str]:
    """What bash is told for a command line that ends in `words`."""
    asked = {"_VABAL_COMPLETE": "complete_bash", "COMP_WORDS": f"vabal {words}", "COMP_CWORD": str(len(words.split()))}
    done = subprocess.run(VABAL, env=os.environ | asked, capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rol", ["rollback"]),
        ("labels ex", ["export"]),
        ("round --strategy marg", ["margin"]),
        ("bench --protocol cifar100-", [name for name in PROTOCOLS if name.startswith("cifar100-")]),
    ],
)
def test_a_shell_completes_commands_and_names(words: str, expected: list[str]) -> None:
    assert completed(words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_by_the_command_itself(shell: str, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [*VABAL, "--install-completion", shell], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert any("_VABAL_COMPLETE" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
