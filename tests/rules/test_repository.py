"""What does not belong in the repository: paths of one machine, addresses in the lock, data, models, stale pages."""

import re
from pathlib import Path

import pytest

from tests.rules.repository import ROOT, files, text_of
from vabal.settings import reference

# -- paths of one machine ---------------------------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.$}/:-])/(?:root|home|tmp|work|Users|mnt)(?:/[\w.-]+|\b(?=[\"'`\s,;)]))")
# Paths inside a container are the image's own.
CONTAINER = re.compile(r"^infra/")
CONTAINER_PATH = re.compile(r"^/home/vabal")


def machine_paths(path: Path, text: str) -> list[str]:
    found = [match.group() for match in MACHINE_PATH.finditer(text)]
    return [item for item in found if not (CONTAINER.match(path.as_posix()) and CONTAINER_PATH.match(item))]


# This file's own examples; and in a .gitignore a leading slash is the folder that it lies in.
PASSED_OVER = ("test_repository.py", ".gitignore")


@pytest.mark.parametrize("path", [path for path in files() if path.name not in PASSED_OVER], ids=str)
def test_no_file_names_a_path_of_one_machine(path: Path) -> None:
    text = text_of(path)
    assert text is not None, f"{path} is not text"
    assert machine_paths(path, text) == []


@pytest.mark.parametrize("text", ["see /root/notes", "open('/home/ann/x')", "`/tmp/demo`", "cd /work/main", "/mnt/d/x"])
def test_a_path_of_one_machine_is_found(text: str) -> None:
    assert len(machine_paths(Path("docs/page.md"), text)) == 1


@pytest.mark.parametrize(
    "text", ["https://host/home/page", "docs/tmp/x", "s3://bucket/work/x", ".dvc/tmp/rwlock", "/config"]
)
def test_an_address_or_a_relative_path_is_none(text: str) -> None:
    assert machine_paths(Path("docs/page.md"), text) == []


# -- the lock ---------------------------------------------------------------------------------------------------

LOCK_LINE = re.compile(
    r"""^(
        \#.*                                                        # a comment: who asked for the package above
        | [ ]{4}\#.*
        | [a-z0-9._-]+(\[[a-z0-9,-]+\])?==[^ ]+([ ];[ ][^@]+)?[ ]\\  # name==version ; marker
        | [ ]{4}--hash=sha256:[0-9a-f]{64}([ ]\\)?
    )$""",
    re.VERBOSE,
)


def odd_lock_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not LOCK_LINE.match(line) or "://" in line]


def test_the_lock_holds_names_versions_and_hashes_and_no_addresses() -> None:
    assert odd_lock_lines((ROOT / "requirements.lock").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://registry.example/simple",
        "numpy @ file:///wheels/numpy.whl",
        "numpy==2.0",
        "# from https://registry.example/simple",
        "    --hash=sha256:12",
    ],
)
def test_an_address_or_an_unhashed_package_in_the_lock_is_found(line: str) -> None:
    assert odd_lock_lines(line) == [line]


# -- data and models --------------------------------------------------------------------------------------------

BINARY = re.compile(
    r"\.(png|jpe?g|gif|bmp|tiff?|webp|pdf|np[yz]|parquet|arrow|h5|hdf5|db|sqlite3?|pt2?|pth|ckpt|onnx|safetensors"
    r"|pkl|pickle|joblib|zip|t?gz|tar|whl)$",
    re.IGNORECASE,
)
LARGEST_KB = 200


def does_not_belong(path: Path, size: int) -> bool:
    if BINARY.search(path.name) or {"mlruns", "data", "__pycache__"} & set(path.parts[:-1]):
        return True
    return size > LARGEST_KB * 1000 and path.name != "requirements.lock"


def test_no_image_database_or_model_is_committed() -> None:
    assert [path for path in files() if does_not_belong(path, (ROOT / path).stat().st_size)] == []


@pytest.mark.parametrize("name", ["docs/a.PNG", "mlruns/0/meta.yaml", "mlflow.db", "data/classes.json", "model.pt"])
def test_data_and_models_are_found(name: str) -> None:
    assert does_not_belong(Path(name), 10)


def test_a_large_file_is_found() -> None:
    assert does_not_belong(Path("docs/log.txt"), 200_001)
    assert not does_not_belong(Path("docs/log.txt"), 199_999)


# -- the settings' page -----------------------------------------------------------------------------------------


def test_the_settings_page_is_what_the_models_say() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == reference.page(), "docs/settings.md is stale: run `python -m vabal.settings.reference`"


def test_every_setting_stands_on_the_page_with_its_range_and_default() -> None:
    page = reference.page()
    assert "| `budget` | whole number ≥ 1 | `100` | Samples a round asks labels for. |" in page
    assert "| `batch` | `topk`, `gumbel`, `quota`, `spread`, `quota_spread`, `coverage` | `coverage` |" in page
    assert "| `vae.learning_rate` | `0.01` | `0.01` | `0.0001` | `0.01` |" in page


def test_writing_the_page_puts_it_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reference", str(tmp_path / "settings.md")])
    reference.main()
    assert (tmp_path / "settings.md").read_text(encoding="utf-8") == reference.page()


def test_no_test_module_imports_another_one() -> None:
    """What two of them need stands in `tests/support` (or `tests/integration/workspaces.py`)."""
    test_module = re.compile(r"^\s*(?:from|import) +(?:tests\.\w+\.)*(?:\w+\.)*test_\w+", re.MULTILINE)
    assert test_module.search("from tests.unit.labels.test_inbox import taken")
    found = [path for path in files(".py") if path.parts[0] == "tests" and test_module.search(text_of(path) or "")]
    assert found == []
