"""The code version covers the modules that can change a stage's output, and the libraries that decide it: no more."""

import ast
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vabal
from vabal.rounds.stage_store import STAGE_LIBRARIES, StageKey, code_version, decides_outputs

PACKAGE = Path(vabal.__file__).parent


def path_of(name: str) -> str | None:
    """The file of a module, relative to the package: `vabal.images` is images/__init__.py."""
    path = Path(*name.split(".")[1:])
    for found in (path / "__init__.py", path.with_suffix(".py")):
        if (PACKAGE / found).is_file():
            return found.as_posix()
    return None


def bindings(tree: ast.Module) -> dict[str, str]:
    """What a module's imports bind: the name here, and the dotted name that it stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(alias.asname or alias.name): f"{node.module}.{alias.name}" for alias in node.names}
    return found


def used(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module uses: what it imports, and what it takes of that (`images.encoded`)."""
    bound = bindings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            yield f"{bound[node.value.id]}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^(vabal(?:\.\w+)+):\w+$", node.value)  # imported when asked for, by its name
    yield from bound.values()


def modules_behind(name: str) -> Iterator[str]:
    """The files that a dotted name leads to: a facade, and the module behind it that defines the name."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        path = path_of(".".join(parts[:length]))
        if path is None:
            continue
        yield path
        rest = parts[length:]
        if path.endswith("__init__.py") and rest:
            tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
            behind = bindings(tree).get(rest[0])
            if behind is not None and behind.startswith("vabal"):
                yield from modules_behind(behind)
        return


def _defines(path: str) -> bool:
    """Whether a facade has code of its own, which may use everything that it imports."""
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def reached() -> set[str]:
    """Files of the package that the steps' code leads to."""
    waiting = [path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "rounds" / "steps").glob("*.py")]
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.endswith("__init__.py") and not _defines(path):
            continue  # what is behind it was resolved from the names that are used
        tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
        waiting += [module for name in used(tree) if name.startswith("vabal") for module in modules_behind(name)]
    return found


# Reached from the steps, and without a say in what they put out.
WITHOUT_A_SAY = {
    "errors.py": "what is told to people",
    "objects.py": "where bytes are read from, which are compared with their sha256",
    "progress.py": "what is told to people",
    "rounds/manifests.py": "seeds and digests, which are inputs of keys",
    "rounds/opened.py": "the round's number, parent and inbox, which are inputs of keys",
    "rounds/stage_store.py": "where outputs lie",
    "settings/base.py": "the settings' values, which are inputs of keys",
    "settings/bounds.py": "which settings are refused",
    "settings/cron.py": "which settings are refused",
    "settings/learners.py": "the settings' values, which are inputs of keys",
    "settings/models.py": "the settings' values, which are inputs of keys",
    "settings/params.py": "where settings are read from",
    "settings/presets.py": "the settings' values, which are inputs of keys",
    "settings/yaml.py": "where settings are read from",
    "workspace.py": "where files lie",
}
# Imported by code that has a say, and deciding no number of an output.
CARRIERS = {
    "matplotlib": "draws figures for people",
    "pandas": "tables: rows in the order of their ids",
    "pyarrow": "tables: rows in the order of their ids",
    "safetensors": "weights, bit for bit",
    "threadpoolctl": "how many threads compute",
}
IMPORTED_AS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def covered() -> set[str]:
    paths = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    return {path for path in paths if decides_outputs(path)}


def _has_code(path: str) -> bool:
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    return any(not isinstance(node, ast.Expr) for node in tree.body)


def test_the_code_that_the_steps_lead_to_is_covered_or_has_no_say() -> None:
    found = reached()
    assert {path for path in covered() if _has_code(path)} == found - set(WITHOUT_A_SAY)
    assert set(WITHOUT_A_SAY) <= found
    assert not covered() & set(WITHOUT_A_SAY)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from vabal import images\nimages.encoded()", "images/shards.py"),
        ("from vabal.images import encoded", "images/shards.py"),
        ("from vabal import vae\nvae.fit()", "vae/training.py"),
        ("def f():\n    from vabal.strategies import badge", "strategies/badge.py"),
        ("x = 'vabal.strategies.badge:BadgeStrategy'", "strategies/badge.py"),
    ],
)
def test_an_import_of_any_kind_is_followed_behind_the_facades(source: str, found: str) -> None:
    names = [name for name in used(ast.parse(source)) if name.startswith("vabal")]
    assert found in {path for name in names for path in modules_behind(name)}
    assert "images/near_copies.py" not in {path for name in names for path in modules_behind(name)}


def test_the_libraries_that_decide_a_number_are_named() -> None:
    names = set()
    for path in covered():
        tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
        names |= {name.partition(".")[0] for name in bindings(tree).values()}
    libraries = {IMPORTED_AS.get(name, name) for name in names - sys.stdlib_module_names - {"vabal"}}
    assert libraries == set(STAGE_LIBRARIES) | set(CARRIERS)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that the code version is taken of."""
    there = tmp_path / "vabal"
    shutil.copytree(PACKAGE, there, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(vabal, "__file__", str(there / "__init__.py"))
    code_version.cache_clear()
    yield there
    code_version.cache_clear()


def key_after(change: str, package: Path) -> str:
    with (package / change).open("a", encoding="utf-8") as file:
        file.write("# a comment\n")
    code_version.cache_clear()
    return StageKey("train-vae", {}, {}).digest


@pytest.mark.parametrize(
    "path",
    ["sources/folders.py", "images/near_copies.py", "cli/app.py", "workspace.py", "learning/pretraining/training.py"],
)
def test_a_comment_in_what_has_no_say_changes_no_key(package: Path, path: str) -> None:
    before = StageKey("train-vae", {}, {}).digest
    assert key_after(path, package) == before


def test_a_comment_in_what_has_a_say_changes_keys(package: Path) -> None:
    before = StageKey("train-vae", {}, {}).digest
    found = {key_after(path, package) for path in sorted(covered())}
    assert before not in found
    assert len(found) == len(covered())


@pytest.mark.parametrize("library", STAGE_LIBRARIES)
def test_another_version_of_a_library_changes_keys(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = StageKey("train-vae", {}, {}).digest
    version = importlib.metadata.version

    def other(name: str) -> str:
        return version(name) + (".1" if name == library else "")

    monkeypatch.setattr(importlib.metadata, "version", other)
    code_version.cache_clear()
    assert StageKey("train-vae", {}, {}).digest != before
    code_version.cache_clear()
