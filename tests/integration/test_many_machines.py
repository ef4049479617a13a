"""A round on Ray nodes that share nothing with the workspace but S3, MLflow and Prefect."""

import json
import os
import subprocess
import sys
from pathlib import Path

from running import RunningStack
from workspaces import done, make_workspace, picks, run

PROGRAM = Path(__file__).parent / "ray_cluster.py"
SHARDS = {"pool.shard_rows": 25}


def test_nodes_that_share_only_s3_pick_the_same_though_two_die(stack: RunningStack, tmp_path: Path) -> None:
    alone, many, nodes = tmp_path / "alone", tmp_path / "many", tmp_path / "nodes"
    make_workspace(stack, alone, "alone", settings=SHARDS)
    spread = {"stages": "s3://stages-many/nights", "compute.task_runner": "ray"}
    make_workspace(stack, many, "many", settings=SHARDS | spread)
    nodes.mkdir()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    words = [sys.executable, str(PROGRAM), str(many), str(nodes)]
    said = subprocess.run(words, cwd=many, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    told = json.loads(said.stdout.splitlines()[-1])
    assert not told["sees"], "a node could read the workspace"
    assert "Published" in told["said"]

    done(run(alone, "round"))
    assert picks(many, 1) == picks(alone, 1)
    assert 0 < len(told["finished"]) < len(told["after"])
    assert told["after"] | told["finished"] == told["after"], "what was finished was made again"
    assert told["used"]["first"] + told["used"]["second"]
    assert told["used"]["late"]
