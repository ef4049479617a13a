"""The `vabal` command as one meets it: quick, with an example everywhere, and 80 columns wide."""

import errno
import gc
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import vabal
from vabal.cli import app
from vabal.cli.options import assignments
from vabal.errors import UserError, os_error_line

HEAVY = ("torch", "torchvision", "pandas", "numpy", "pyarrow", "sklearn", "PIL", "mlflow", "prefect", "dvc", "boto3")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app.app)))


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from vabal.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_the_commands_are_those_that_scripts_rely_on() -> None:
    assert {" ".join(path) for path in COMMANDS} >= {
        *("init", "ingest", "labels export", "labels import", "up", "down", "status", "round", "deploy"),
        *(
            "audit",
            "curve",
            "forecast",
            "show",
            "promote",
            "rollback",
            "champion",
            "labels agreement",
            "labels suspects",
        ),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_commands_help_has_an_example_and_fits_80_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app.app, [*path, "--help"], env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert f"vabal {' '.join(path)}" in result.stdout.split("Example:")[1]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout  # nothing is cut


@pytest.mark.parametrize(
    "path",
    [
        *[("audit",), ("curve",), ("control",), ("forecast",), ("champion",), ("status",), ("ingest",)],
        *[("labels", name) for name in ("export", "import", "agreement", "suspects")],
    ],
    ids=" ".join,
)
def test_reading_commands_speak_json(path: tuple[str, ...]) -> None:
    assert "--json" in [option for parameter in COMMANDS[path].params for option in parameter.opts]


def test_the_version_is_told_without_a_command() -> None:
    result = CliRunner().invoke(app.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{vabal.__version__}\n")


def test_a_command_does_not_look_for_cycles_among_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(700)
        assert run_main(monkeypatch, "--version") == 0
        assert gc.get_threshold()[0] >= 50_000
    finally:
        gc.set_threshold(*before)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vabal", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_a_users_mistake_is_one_line_whatever_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise UserError("first\n  second")

    monkeypatch.setattr("vabal.workspace.Workspace.find", fail)
    assert run_main(monkeypatch, "audit") == 1
    assert capsys.readouterr() == ("", "vabal: first second\n")


def test_ctrl_c_is_one_line_and_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vabal.workspace.Workspace.find", interrupt)
    for command in (["audit"], ["labels", "export", "x"]):
        assert run_main(monkeypatch, *command) == 130
        assert capsys.readouterr() == ("", "vabal: stopped; nothing is lost: run the same command again to go on\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("vabal.workspace.Workspace.find", fail)
    monkeypatch.setattr(sys, "argv", ["vabal", "audit"])
    with pytest.raises(ZeroDivisionError):
        app.main()


def test_a_workspace_is_named_with_an_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_main(monkeypatch, "-C", str(tmp_path), "audit") == 1
    assert capsys.readouterr().err.startswith(f"vabal: {tmp_path} is no workspace")
    assert run_main(monkeypatch, "--workspace", str(tmp_path), "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)


def test_settings_on_the_command_line_are_yaml_values() -> None:
    pairs = ["classifier.width=16", "vae.learning_rate=1e-4", "classifier.horizontal_flip=true", "stages=s3://a/b=c"]
    assert assignments(pairs) == {
        "classifier.width": 16,
        "vae.learning_rate": 1e-4,
        "classifier.horizontal_flip": True,
        "stages": "s3://a/b=c",
    }


def test_a_value_that_is_no_yaml_is_told_as_the_text_that_is() -> None:
    with pytest.raises(UserError, match="is no value in YAML") as caught:
        assignments(["schedule.cron=*/5 * * * *"])
    _, pair = shlex.split(str(caught.value).partition("as text: ")[2])
    assert assignments([pair]) == {"schedule.cron": "*/5 * * * *"}


@pytest.mark.parametrize("pair", ["classifier.width", "a=[1"])
def test_a_setting_that_is_none_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match=r"^--set "):
        assignments([pair])


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vabal.cli", *arguments],
        cwd=cwd,
        env=dict(os.environ) | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("folder", ["/proc", "/dev/null/x", "/dev/full"])
def test_what_the_system_refuses_is_one_line(folder: str, tmp_path: Path) -> None:
    done = run("-C", folder, "init", "--source", "digits", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("vabal: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vabal.cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "Traceback" not in done.stderr
    assert os_error_line(OSError(errno.ENOSPC, "No space left on device", "a.parquet")) == (
        "a.parquet: No space left on device: make room, then run the same command again; "
        "nothing that was taken in is lost"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_the_same_document_in_every_encoding(encoding: str) -> None:
    program = "from vabal.cli.render import print_json; print_json({'größe': '\\u6f22 \\udce9'})"
    done = subprocess.run(
        [sys.executable, "-c", f"# -*- coding: utf-8 -*-\n{program}"],
        env=dict(os.environ) | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout.decode(encoding)) == {"größe": "漢 \udce9"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learner", "best"], "--learner best: it is one of auto, scratch, probe, finetune"),
        (["--learner", "probe", "--set", "classifier.learner=scratch"], "contradicts --set classifier.learner=scratch"),
    ],
)
def test_a_learner_that_is_none_or_named_twice_is_refused_by_its_option(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app.app, ["init", "--source", "digits", *arguments])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)
    assert not any(tmp_path.iterdir())
