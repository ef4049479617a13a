"""What others need to join: licence, hooks, forge, issue templates; each says what the Makefile says."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import vabal
from tests.rules.repository import ROOT, files

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VARIABLES = dict(re.findall(r"^(\w+) [:?]= ?(.*)$", MAKEFILE, re.MULTILINE))


def recipe(makefile: str, target: str) -> list[str]:
    """The commands of a target, with the Makefile's variables put in."""
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n?)*)", makefile, re.MULTILINE)
    assert lines is not None, f"no target {target}"
    return [_filled(line.strip()) for line in lines.group(1).splitlines()]


def _filled(text: str) -> str:
    while found := re.search(r"\$\((\w+)\)", text):
        text = text.replace(found.group(), VARIABLES[found.group(1)])
    return text


def checks() -> list[str]:
    """What `make check` runs: the commands of its two halves, side by side on two cores."""
    [both] = re.findall(r"^check:.*\n\t\$\(MAKE\) .* (\w+ \w+)$", MAKEFILE, re.MULTILINE)
    return [command for half in both.split() for command in recipe(MAKEFILE, half)]


def hooks(configuration: str) -> list[str]:
    """The commands of pre-commit's hooks, in their order."""
    return [hook["entry"] for repo in yaml.safe_load(configuration)["repos"] for hook in repo["hooks"]]


def _yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_git_s_hooks_run_what_make_check_runs() -> None:
    assert hooks((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")) == checks()


def test_a_command_that_only_make_check_runs_would_be_seen() -> None:
    lint = ".venv/bin/ruff check ."
    assert lint in checks()
    assert recipe("rules: setup\n\t$(BIN)/ruff check .\n\t$(BIN)/more\n\ntest:\n", "rules") == [
        lint,
        ".venv/bin/more",
    ]


def test_hooks_use_the_environment_of_make_setup_and_run_whatever_was_changed() -> None:
    for hook in _yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]:
        assert hook["language"] == "system", hook["id"]
        assert hook["always_run"], hook["id"]
        assert not hook["pass_filenames"], hook["id"]


def test_the_forge_runs_ci_s_script_and_may_only_read() -> None:
    workflow = _yaml(".github/workflows/ci.yml")
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["bug", "wish"])
def test_an_issue_template_is_a_form_that_forges_accept(name: str) -> None:
    form = _yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"]
    assert form["description"]
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert {item["type"] for item in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert len({item["id"] for item in fields}) == len(fields) > 0
    assert all(item["attributes"]["label"] for item in fields)


def test_the_licence_is_apache_2_and_the_package_says_so() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    for name in project["license-files"]:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
        assert "END OF TERMS AND CONDITIONS" in text
    assert (ROOT / "vabal/py.typed").is_file()
    assert "Typing :: Typed" in project["classifiers"]


def test_the_package_its_metadata_and_the_changelog_tell_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    headings = re.findall(r"^## \[([\d.]+)\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project["version"] == vabal.__version__ == headings[0]


@pytest.mark.parametrize("what", ["strategy", "source", "setting", "step", "vendor"])
def test_contributing_tells_where_each_kind_of_thing_is_added(what: str) -> None:
    assert any(what in row[0] and "`" in row[1] and row[2] for row in _rows())


def _rows() -> list[tuple[str, str, str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)


PLACE = re.compile(r"`((?:\w[\w.-]*/)+[\w.-]*|\w+\.(?:md|toml))`")


def test_every_place_that_contributing_names_is_there() -> None:
    places = {place for row in _rows() for place in PLACE.findall("".join(row))}
    assert len(places) > 15
    for place in places:
        path = ROOT / place
        assert path.parent.is_dir() if path.stem == "NAME" else path.exists(), place


FILE = re.compile(r"(?<![\w./])(?:tests|vabal|flows|benchmarks|infra|docs)/[\w/.-]+\.(?:py|md|json|yaml|svg)\b")


@pytest.mark.parametrize("page", [path for path in files(".md") if path.name != "CHANGELOG.md"], ids=str)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    named = {name for name in FILE.findall((ROOT / page).read_text(encoding="utf-8")) if "NAME" not in name}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_command_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for command in re.findall(r"^(\.\S+)", text, re.MULTILINE):
        assert Path(ROOT / command).is_file(), command
