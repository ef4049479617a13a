"""Where learning runs, and on how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from vabal.errors import UserError
from vabal.settings.models import Params


def device_of(params: Params) -> torch.device:
    """Raises UserError if a GPU is asked for and there is none."""
    if params.compute.threads:
        torch.set_num_threads(params.compute.threads)
    name = params.compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"compute.device is {name!r}, but this machine has no usable GPU: set it to auto or cpu")
    return torch.device(name)


SMALL_STEP = 2**19  # numbers


@contextmanager
def threads_of_step(device: torch.device, numbers: int) -> Iterator[None]:
    """One thread for training steps whose first map has few numbers; two would take longer together than one."""
    with one_thread(device) if numbers < SMALL_STEP else nullcontext():
        yield


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Small layers gain nothing from more threads, and wait for each other where the cores are busy."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
