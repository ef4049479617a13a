"""A command that needs a package of an extra says which, and how it is installed."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.rules.repository import ROOT
from vabal.errors import EXTRAS, missing_extra

DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(set(DECLARED) - {"dev"}))
def test_every_package_of_an_extra_is_known_by_the_name_that_is_imported(extra: str) -> None:
    imported = packages_distributions()
    for requirement in DECLARED[extra]:
        name = re.split(r"[\[<>=!~ ]", requirement)[0]
        names = {
            module
            for module, distributions in imported.items()
            if name in {re.sub(r"[-_.]+", "-", distribution).lower() for distribution in distributions}
        }
        assert not names or names & set(EXTRAS[extra]), f"{name}: imported as one of {sorted(names)}"


def test_an_extra_that_is_advised_can_be_installed() -> None:
    assert set(EXTRAS) <= set(DECLARED)


def test_another_missing_module_is_a_bug() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'vabl'", name="vabl")) is None
    said = missing_extra(ModuleNotFoundError("No module named 'mlflow.pyfunc'", name="mlflow.pyfunc"))
    assert said == "this needs mlflow, which is not installed: `pip install 'vabal[pipeline]'`"


WITHOUT = """
import sys
package = sys.argv[1]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from vabal.cli.app import main
sys.argv = ["vabal", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("boto3", ["init", "--source", "digits"]),
        ("psutil", ["up"]),
        ("psutil", ["status"]),
        ("mlflow", ["bench", "--source", "digits", "--out", "results"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_extra_is_one_line(package: str, command: list[str], tmp_path: Path) -> None:
    run = [sys.executable, "-c", WITHOUT, package, *command]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"vabal: this needs {package}, which is not installed: `pip install 'vabal[pipeline]'`\n"
