"""Threads that wait for one another sleep, unless the user says otherwise; small steps have one."""

import os
import subprocess
import sys

import pytest
import torch

from vabal.learning.device import SMALL_STEP, threads_of_step

POLICY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def asked(code: str, **own: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as the policy takes hold when torch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in POLICY}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | own, capture_output=True, text=True, check=True
    )


def test_openmp_lets_threads_sleep_that_wait_once_the_package_was_imported_first() -> None:
    told = asked("import vabal.learning.device", OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("torch has another OpenMP here")
    assert "GOMP_SPINCOUNT = '0'" in told


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")])
def test_what_the_user_says_of_waiting_stands(name: str, value: str) -> None:
    code = f"import os, vabal; print({{name: os.environ.get(name) for name in {POLICY}}})"
    found = eval(asked(code, **{name: value}).stdout)  # noqa: S307 -- printed two lines above
    assert found == {other: value if other == name else None for other in POLICY}


@pytest.mark.parametrize(
    "entry", ["vabal.cli.app", "vabal.flows.round", "vabal.flows.benchmark", "vabal.flows.promote"]
)
def test_no_entry_loads_torch_before_the_policy_stands(entry: str) -> None:
    """What is imported after torch is not waited for: the policy takes hold then."""
    code = (
        "import importlib, os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os._exit(os.environ.get('OMP_WAIT_POLICY') != 'PASSIVE')\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"importlib.import_module({entry!r})\n"
    )
    asked(code)


@pytest.mark.parametrize(("numbers", "threads"), [(SMALL_STEP - 1, 1), (SMALL_STEP, 2)])
def test_a_small_step_has_one_thread_and_a_large_one_all(numbers: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_of_step(torch.device("cpu"), numbers):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
