"""What stands in the place of the `vabal` on a shell's path while pages' blocks are run.

The command runs in a child of a nursery. A block's own settings are added to `init`; and before answers are imported
somebody has filled in the requests: the oracle.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import forking

PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.support.typed import main
sys.exit(main({address!r}, {settings!r}, sys.argv[1:]))
"""


def put_on_path(folder: Path, root: Path, address: str, settings: Sequence[str]) -> None:
    """A program `vabal` in `folder`; `root` is the repository's, `address` the nursery's."""
    folder.mkdir(exist_ok=True)
    program = folder / "vabal"
    given = {"python": sys.executable, "root": str(root), "address": address, "settings": list(settings)}
    program.write_text(PROGRAM.format(**given))
    program.chmod(0o755)


def main(address: str, settings: Sequence[str], words: Sequence[str]) -> int:
    command = [*words]
    if command[:1] == ["init"]:
        command += [word for setting in settings for word in ("--set", setting)]
    if command[:2] == ["labels", "import"]:
        _fill_in(Path(command[2]))
    code, out, err = forking.run_at(address, ["vabal", *command], folder=Path.cwd(), environment=os.environ)
    sys.stdout.buffer.write(out)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(err)
    return code


def _fill_in(requests: Path) -> None:
    from vabal.labels.oracle import answer
    from vabal.workspace import Workspace

    answer(requests, Workspace(Path()))
