"""The wheel in an environment that has the core's dependencies and nothing of the extras."""

import re
import subprocess
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.rules.repository import ROOT, build_wheel, core_modules
from vabal.errors import EXTRAS

BENCH = (
    *("bench", "--source", "digits", "--strategies", "random", "--seeds", "1", "--rounds", "2", "--budget", "10"),
    *("--initial", "20", "--set", "classifier.network=resnet10", "--set", "classifier.width=4"),
    *("--set", "classifier.epochs=1", "--no-mlflow", "--jobs", "1", "--out", "out"),
)
# What the README's example takes as given.
GIVEN = """
import torch
features_N_D, posterior_N_C = torch.rand(40, 960), torch.softmax(torch.randn(40, 10), dim=1)
labeled_features, labels = torch.rand(40, 960), torch.arange(40) % 10
"""


def add_what_is_needed(package: Distribution, extras: set[str], target: Path, done: set[str]) -> None:
    """Link what `package` requires, and all that requires, from this process's environment to the folder `target`."""
    for line in package.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        key = f"{requirement.name}{sorted(requirement.extras)}"
        if key not in done:
            done.add(key)
            found = distribution(requirement.name)
            link(found, target)
            add_what_is_needed(found, requirement.extras, target, done)


def link(package: Distribution, target: Path) -> None:
    for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
        if not name.endswith(".pth") and not (target / name).exists():
            (target / name).symlink_to(Path(str(package.locate_file(name))))


@pytest.fixture(scope="module")
def core_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of such an environment."""
    place = tmp_path_factory.mktemp("core")
    wheel = build_wheel(place)
    venv.create(place / "env", with_pip=True, symlinks=True)
    programs = place / "env" / "bin"
    install: list[str | Path] = [programs / "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    [packages] = place.glob("env/lib/python*/site-packages")
    [installed] = packages.glob("vabal-*.dist-info")
    add_what_is_needed(Distribution.at(installed), set(), packages, set())
    return programs


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


DRAWING = ("vabal.pages.figures", "vabal.pages.sections", "vabal.pages.svg")  # with matplotlib


def test_every_core_package_imports_and_no_extra_is_there(core_alone: Path, tmp_path: Path) -> None:
    program = f"""
import importlib, importlib.util
for name in {core_modules()!r}:
    if name not in {DRAWING!r}:
        importlib.import_module(name)
print([name for name in {sum(EXTRAS.values(), ())!r} if importlib.util.find_spec(name)])
"""
    done = run(core_alone / "python", "-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_readme_s_example_of_the_method_runs(core_alone: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    [example] = [block for block in blocks if "from vabal import" in block]
    head, body = example.split("\n\n", 1)
    done = run(
        core_alone / "python",
        "-c",
        f"{head}\n{GIVEN}\n{body}\nprint(score_N.shape, len(set(picks.tolist())))",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([40]) 10\n"


def test_strategies_are_compared_and_the_report_s_absence_is_told(core_alone: Path, tmp_path: Path) -> None:
    assert "bench" in run(core_alone / "vabal", "--help", cwd=tmp_path).stdout
    done = run(core_alone / "vabal", *BENCH, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "results.csv").is_file()
    assert "report.html is left out: this needs matplotlib, which is not installed" in done.stderr
    assert "summary.json" in done.stdout


@pytest.mark.parametrize("command", [("up",), ("status",), ("init", "--source", "digits")], ids=" ".join)
def test_a_command_that_needs_an_extra_says_which(core_alone: Path, command: tuple[str, ...], tmp_path: Path) -> None:
    done = run(core_alone / "vabal", *command, cwd=tmp_path)
    assert done.returncode == 1
    advice = r"`pip install 'vabal\[pipeline\]'`"
    assert re.fullmatch(rf"vabal: this needs \w+, which is not installed: {advice}\n", done.stderr)
    assert not (tmp_path / "data").exists()
