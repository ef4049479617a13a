"""The files of infra/ that no test can run here: what can be said about them by reading."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.blocks import problem
from vabal.adapters import messages
from vabal.adapters.stack.folder import SERVICES, open_stack, write_environment
from vabal.adapters.stack.services import COMMANDS, QUIET

INFRA = Path(__file__).parents[3] / "infra"
PLACEHOLDER = re.compile(r"{{ (\w+) }}")


@pytest.fixture
def template() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((INFRA / "kubernetes-job-template.json").read_text())
    return loaded


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return loaded


def test_every_placeholder_of_the_job_template_is_a_declared_variable_and_every_variable_is_used(
    template: dict[str, Any],
) -> None:
    used = set(PLACEHOLDER.findall(json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


def test_the_job_holds_a_gpu_runs_as_no_root_and_has_what_prefect_demands(template: dict[str, Any]) -> None:
    manifest = template["job_configuration"]["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert (pod["parallelism"], pod["completions"], pod["restartPolicy"]) == (1, 1, "Never")
    assert pod["securityContext"]["runAsNonRoot"]
    container = pod["containers"][0]
    assert container["name"] == "prefect-job"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert template["variables"]["properties"]["gpus"]["minimum"] == 1


def test_no_secret_of_the_compose_file_has_a_default_and_no_port_is_open_to_others(compose: dict[str, Any]) -> None:
    text = json.dumps(compose)
    for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "PREFECT_AUTH"):
        uses = re.findall(rf"\${{{name}(.?.?)", text)
        assert uses, name
        assert set(uses) == {":?"}, name
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)


def test_the_compose_file_has_the_services_and_waits_until_they_are_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "s3", "bucket", "mlflow", "prefect", "worker", "notifier"}
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], (name, needed)


def test_the_notifier_runs_a_command_that_there_is_in_the_workers_workspace(compose: dict[str, Any]) -> None:
    notifier, worker = compose["services"]["notifier"], compose["services"]["worker"]
    assert problem(notifier["command"], INFRA.parent) is None
    assert notifier["volumes"] == worker["volumes"]
    assert notifier["volumes"][0].endswith(f":{notifier['command'][notifier['command'].index('--workspace') + 1]}")
    shared = [name for name in notifier["environment"] if name.startswith("PREFECT_")]
    assert {name: notifier["environment"][name] for name in shared} == {
        name: worker["environment"][name] for name in shared
    }
    assert {messages.WEBHOOK, messages.SMTP} < set(notifier["environment"])
    assert set(notifier) <= set(worker) | {"command"}  # keys of a service that the Compose specification has


def test_the_procfile_starts_what_vabal_up_starts_with_the_same_options_and_settings(
    tmp_path: Path,
) -> None:
    lines = (INFRA / "Procfile").read_text().splitlines()
    listed = dict(line.split(": ", 1) for line in lines if not line.startswith("#"))
    assert tuple(listed) == SERVICES
    stack, ports = open_stack(tmp_path), {"s3": 1, "mlflow": 2, "prefect": 3}
    known = write_environment(stack, ports).keys() | os.environ.keys() | QUIET.keys()
    # Of the user's own environment, and the servers' home; a worker's name tells one `vabal up` from another.
    known |= {"HOME", "PATH", "NO_PROXY", "no_proxy"}
    for service in SERVICES:
        command, environment = COMMANDS[service](stack, ports)
        words = [Path(word).name for word in shlex.split(listed[service])]
        options = {word for word in command if word.startswith("--") and word not in ("--name", "--workspace")}
        assert options == {word for word in words if word.startswith("--")}, service
        settings = {word.partition("=")[0] for word in shlex.split(listed[service]) if re.match(r"[A-Z0-9_]+=", word)}
        assert environment.keys() - known <= settings, service
    assert "sqlite:///mlflow.db" in listed["mlflow"]


def test_every_image_is_pinned_and_none_is_of_a_project_that_has_ended(compose: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    for name, image in images.items():
        assert "minio" not in image, name
        assert re.search(r"vabal|:(\$\{\w+:-)?\d", image), (name, image)


def test_the_image_runs_as_an_ordinary_user_and_its_context_leaves_data_and_keys_out() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 10001:10001"]
    assert lines.index(users[0]) > max(number for number, line in enumerate(lines) if line.startswith("RUN "))
    allowed = [line for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }
    assert {line.removeprefix("!") for line in allowed} == {name.removeprefix("./") for name in copied}
