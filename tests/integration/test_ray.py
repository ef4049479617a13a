"""A round whose learning tasks run on Ray's workers, on a local Ray of two CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import RunningStack
from workspaces import make_workspace, picks

RUN = """
import sys
import ray

if __name__ == "__main__":
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    from vabal.flows.on_ray import active_learning_round
    state = active_learning_round(sys.argv[1], return_state=True)
    print("ended as", state.name, state.message)
    sys.exit(0 if state.is_completed() else 1)
"""


@pytest.mark.timeout(400)
def test_a_round_on_ray_picks_what_a_local_one_picks(stack: RunningStack, tmp_path: Path) -> None:
    root, local = tmp_path / "spread", tmp_path / "alone"
    for place in (root, local):
        make_workspace(stack, place, place.name)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root)], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended as Published" in done.stdout

    subprocess.run([sys.executable, "-m", "vabal.cli", "round"], cwd=local, check=True, capture_output=True)
    assert picks(root, 1) == picks(local, 1)
