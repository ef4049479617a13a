"""A round whose learning tasks run on Ray's workers, on a Ray that the round starts for itself."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningStack
from workspaces import done, make_workspace, picks, run

RUN = """
import os
import sys

if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("COV")]:
        del os.environ[name]  # Ray starts a dozen processes: this one alone is measured
    from vabal.flows.on_ray import active_learning_round
    state = active_learning_round(sys.argv[1], return_state=True)
    print("ended as", state.name, state.message)
    sys.exit(0 if state.is_completed() else 1)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """Where Ray keeps its sockets, whose paths may have 107 letters. A cluster of somebody else's is noted there."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place:
        (Path(place) / "ray").mkdir()
        (Path(place) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        yield Path(place)


def test_a_round_on_ray_picks_what_a_local_one_picks(stack: RunningStack, tmp_path: Path, short: Path) -> None:
    root, local = tmp_path / "spread", tmp_path / "alone"
    for place in (root, local):
        make_workspace(stack, place, place.name)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path), "RAY_TMPDIR": str(short)}
    said = subprocess.run(
        [sys.executable, "-c", RUN, str(root)], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "ended as Published" in said.stdout

    done(run(local, "round"))
    assert picks(root, 1) == picks(local, 1)
