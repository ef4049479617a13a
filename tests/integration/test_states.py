"""States that people and cut-off commands leave, and the ways out that the messages tell: real git, real DVC, folders as remotes."""

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from workspaces import call, done, git

from vabal import rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError
from vabal.initial import initialise
from vabal.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round 0 of sixty images, in a bare repository and a folder: `remote.git` and `pools` beside the workspace."""
    folder = tmp_path_factory.mktemp("states")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(folder / "some.npz", images=images, labels=np.arange(60) % 3)
    root = folder / "work"
    root.mkdir()
    with pytest.MonkeyPatch.context() as without_servers:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
            without_servers.delenv(name, raising=False)
        initialise(
            root,
            source=f"npz:{folder / 'some.npz'}",
            **{"imbalance": None, "initial": 9, "holdout": 0.2, "seed": 5, "classes": None, "name": None},
            settings={"classifier.width": 4, "classifier.epochs": 1, "selection.budget": 4},
            versions=Versioning(root),
            prepare=lambda _storage: None,
        )
    return folder
