"""What compose.yaml's images bring along and the project's packages do not: Postgres, SeaweedFS, a driver."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Tools:
    """`packages`: a folder for Python's path; `paths`: folders of programs."""

    packages: Path
    paths: tuple[str, ...]


def find(folder: Path) -> Tools | None:
    """Those of `folder`, which `make test-team` fills, and the machine's newest Postgres; None where there is none."""
    postgres = _postgres()
    return None if postgres is None else Tools(folder, (str(folder / "bin"), str(postgres)))


def _postgres() -> Path | None:
    """The folder of `postgres` and `initdb`: on the path, or where Debian puts them."""
    on_path = shutil.which("initdb")
    if on_path and shutil.which("postgres"):
        return Path(on_path).resolve().parent
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(re.sub(r"\D", "", path.parts[-3]) or 0))
    return versions[-1].parent if versions and os.access(versions[-1], os.X_OK) else None
