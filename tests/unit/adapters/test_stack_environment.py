"""`.vabal/env` is written anew at every start of the local stack."""

from pathlib import Path

from vabal.adapters.stack.folder import Stack, write_environment
from vabal.workspace import ENVIRONMENT, OWN

PORTS = {"s3": 1, "mlflow": 2, "prefect": 3}


def test_a_start_keeps_what_people_wrote_there_and_the_credentials_of_the_first(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack.folder.mkdir(exist_ok=True)
    made = write_environment(stack, PORTS)
    assert made.keys() <= ENVIRONMENT
    with stack.env_file.open("a") as stream:
        stream.writelines(f"{name}=own-{name}\n" for name in OWN)
    again = write_environment(stack, {name: port + 10 for name, port in PORTS.items()})
    assert {name: again[name] for name in OWN} == {name: f"own-{name}" for name in OWN}
    assert again["AWS_SECRET_ACCESS_KEY"] == made["AWS_SECRET_ACCESS_KEY"]
    assert stack.environment() == again
    assert stack.env_file.stat().st_mode & 0o077 == 0
