"""infra/kubernetes-job-template.json as prefect-kubernetes renders it for a night, held against Kubernetes' models.

A process of its own, with the packages of `make test-team` on its path: `python -m benchmarks.team.kubernetes`.
"""

import asyncio
import json
import re
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from kubernetes_asyncio import client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from benchmarks.team.services import INFRA

# prefect-kubernetes demands these in the pod's part, where Kubernetes does not know them and drops them with a warning;
# a job has one of each anyway.
DEMANDED = {"job.spec.template.spec.parallelism", "job.spec.template.spec.completions"}
NO_SERVER = "http://127.0.0.1:9/api"  # named, else Prefect starts one; none is asked
VALUES = {
    "image": "registry.example.org/vabal@sha256:" + 64 * "0",
    "command": "python -m prefect.engine",
    "env": {"VABAL_SILENCE_S": "60"},
    "labels": {"team": "vision"},
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "service_account_name": "vabal",
    "job_watch_timeout_seconds": 86400,
}


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """The manifest that prefect-kubernetes hands to the cluster for a flow run."""
    template = json.loads((INFRA / "kubernetes-job-template.json").read_text())
    with temporary_settings({PREFECT_API_URL: NO_SERVER}):
        made = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template, values))
        made.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="Nightly round", state=None))
    manifest: dict[str, Any] = made.job_manifest
    return manifest


def wrong(value: Any, kind: str, path: str) -> Iterator[str]:
    """What of `value` Kubernetes' model `kind` does not have, or has with another type or range."""
    if (items := re.fullmatch(r"list\[(.*)\]", kind)) and isinstance(value, list):
        for place, item in enumerate(value):
            yield from wrong(item, items[1], f"{path}[{place}]")
    elif (items := re.fullmatch(r"dict[\[(]str, (.*)[\])]", kind)) and isinstance(value, dict):
        quantities = path.endswith(("limits", "requests"))  # the cluster takes a number for a quantity as well
        for name, item in value.items():
            yield from wrong(str(item) if quantities else item, items[1], f"{path}.{name}")
    elif (model := getattr(client, kind, None)) and isinstance(value, dict):
        names = {theirs: ours for ours, theirs in model.attribute_map.items()}
        yield from (f"{path}.{name}: Kubernetes does not know it" for name in value.keys() - names.keys())
        known = {name: item for name, item in value.items() if name in names}
        for name, item in known.items():
            yield from wrong(item, model.openapi_types[names[name]], f"{path}.{name}")
        try:
            model(**{names[name]: item for name, item in known.items()})
        except ValueError as error:
            yield f"{path}: {error}"
    elif not isinstance(value, {"str": str, "int": int, "bool": bool}.get(kind, ())):
        yield f"{path}: {value!r} is no {kind}"


def main() -> int:
    found = []
    for values in ({"image": VALUES["image"]}, VALUES):
        manifest = rendered(values)
        found += [line for line in wrong(manifest, "V1Job", "job") if line.partition(":")[0] not in DEMANDED]
        broken = json.loads(json.dumps(manifest).replace('"workingDir"', '"workingdir"'))
        assert any("workingdir" in line for line in wrong(broken, "V1Job", "job"))  # the check can fail
    print(
        "\n".join(found) or "the Kubernetes job, as prefect-kubernetes renders it, is what Kubernetes' models describe"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
