"""The files that a clone of this repository has: tracked by git, or about to be (untracked and not ignored)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(*suffixes: str) -> list[Path]:
    """Paths relative to the root, those with one of `suffixes` where any are given."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = [Path(name) for name in listing.split("\0") if name]
    return sorted({path for path in paths if (ROOT / path).is_file() and (not suffixes or path.suffix in suffixes)})


def text_of(path: Path) -> str | None:
    """The file's text; None if it is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def layer(path: Path) -> str:
    """Which layer a file belongs to: flows, adapters, cli or core."""
    if path.parts[0] == "flows" or path.parts[:2] == ("vabal", "flows"):
        return "flows"
    if path.parts[:2] == ("vabal", "adapters"):
        return "adapters"
    return "cli" if path.parts[1].startswith("cli") else "core"


def core_modules() -> list[str]:
    """The names of the modules that import no vendor."""
    paths = [path for path in files(".py") if path.parts[0] == "vabal" and layer(path) == "core"]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]


def build_wheel(folder: Path) -> Path:
    """The package's wheel, built into `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel
