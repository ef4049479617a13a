"""What an installation is made of: one package with its flows and the files of infra/, and no demo."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.rules.repository import ROOT, build_wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build_wheel(folder)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_an_installation_claims_one_name(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"vabal"}


def test_the_flows_are_installed_and_the_demo_is_not(installed: Path) -> None:
    assert (installed / "vabal/flows/round.py").is_file()
    assert list(installed.rglob("demo*")) == []


def test_types_licence_and_every_file_of_infra_are_installed(installed: Path) -> None:
    assert (installed / "vabal/py.typed").is_file()
    assert [path.parent.parent.suffix for path in installed.rglob("LICENSE")] == [".dist-info"]
    assert {path.name for path in (installed / "vabal/_infra").iterdir()} == {
        path.name for path in (ROOT / "infra").iterdir()
    }


def test_an_installation_finds_its_own_infra_folder(installed: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); "
        "from vabal.flows.deploy import infra_folder; print(infra_folder())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=installed, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(installed / "vabal/_infra")


WITHOUT_RAY = """
import importlib, sys
from vabal.errors import UserError
sys.modules["prefect_ray"] = None
try:
    importlib.import_module(sys.argv[1])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("module", ["vabal.flows.on_ray", "vabal.flows.benchmark"])
def test_where_ray_is_missing_one_line_says_what_installs_it(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, module], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("needs Ray: install it with `pip install 'vabal[ray]'`\n")
    assert len(done.stdout.splitlines()) == 1
