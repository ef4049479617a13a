"""A night on Ray nodes that have nothing in common with the workspace but S3, MLflow and Prefect.

Arguments: the workspace, and a folder for the nodes. Each node is started in a folder of its own, with a home and a
scratch folder there, and its processes may not open the workspace. The night begins on two; while it runs another node
joins, and in the middle of the shards the two are killed: what is left is for the late one. Prints what it saw as JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster

GUARD = Path(__file__).parent / "guard"
PATIENCE_S = 300.0
NIGHT = [sys.executable, "-c", "from vabal.cli.app import main; main()", "round"]


def add_node(cluster: Cluster, place: Path, workspace: Path) -> Any:
    for name in ("here", "home", "scratch"):
        (place / name).mkdir(parents=True)
    own = {
        "HOME": str(place / "home"),
        "VABAL_SCRATCH": str(place / "scratch"),
        "PYTHONPATH": os.pathsep.join([str(GUARD), os.environ.get("PYTHONPATH", "")]),
        "FORBIDDEN_FOLDER": str(workspace),
    }
    before = Path.cwd()
    os.chdir(place / "here")
    try:
        return cluster.add_node(num_cpus=1, env_vars=own)
    finally:
        os.chdir(before)


@ray.remote(num_cpus=1)
def sees(path: str) -> bool:
    """Whether a process of a node can open the file."""
    try:
        Path(path).read_bytes()
    except PermissionError:
        return False
    return True


def outputs(workspace: Path, stage: str) -> dict[str, str]:
    """The finished outputs of a stage in S3, and when they were finished."""
    from vabal.adapters import storage

    params = yaml.safe_load((workspace / "params.yaml").read_text())
    bucket, _, prefix = params["stages"].removeprefix("s3://").partition("/")
    storage.make_bucket(storage.client(), bucket)
    pages = storage.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/{stage}/")
    items = [item for page in pages for item in page.get("Contents", []) if item["Key"].endswith("/_complete")]
    return {item["Key"]: item["LastModified"].isoformat() for item in items}


def wait_for(what: Callable[[], Any], night: "subprocess.Popen[str]") -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (seen := what()):
        assert night.poll() is None, "the night ended before that"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return seen


def main(workspace: Path, nodes: Path) -> int:
    from vabal.workspace import Workspace

    Workspace(workspace).environment()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    early = [add_node(cluster, nodes / name, workspace) for name in ("first", "second")]
    ray.init(address=cluster.address, log_to_driver=False)
    seen = any(ray.get([sees.remote(str(workspace / "params.yaml")) for _ in range(2)]))
    ray.shutdown()
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    with subprocess.Popen(NIGHT, cwd=workspace, env=environment, stdout=subprocess.PIPE, text=True) as night:
        wait_for(lambda: outputs(workspace, "intake"), night)
        add_node(cluster, nodes / "late", workspace)
        finished = wait_for(lambda: outputs(workspace, "extract-features"), night)
        for node in early:
            cluster.remove_node(node, allow_graceful=False)
        said, _ = night.communicate()
    used = {place.name: len(list(place.glob("scratch/.vabal/stages/*"))) for place in nodes.iterdir()}
    after = outputs(workspace, "extract-features")
    told = {"sees": seen, "used": used, "finished": finished, "after": after, "said": said}
    sys.stdout.write(f"{json.dumps(told)}\n")
    cluster.shutdown()  # type: ignore[no-untyped-call]
    return night.returncode


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("COV")]:
        del os.environ[name]  # Ray starts a dozen processes: this one alone is measured
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
