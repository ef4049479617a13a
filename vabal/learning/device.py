"""Where learning runs, in which precision, on how many threads, by which seeds; how numbers get there and back."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.errors import UserError
from vabal.settings.models import Params

_UNDER_WAY: Final = 4  # answers of a GPU that may be on their way here
_RESIDENT: Final = 0.25
Item = TypeVar("Item")


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


def device_name(device: torch.device) -> str:
    """Whose bits they are: a GPU's own name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# -- precision ----------------------------------------------------------------------------------------------------


def precision_of(params: Params, device: torch.device) -> torch.dtype:
    """What networks that see images multiply in (the setting `compute.precision`)."""
    if params.compute.precision == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if params.compute.precision == "bfloat16" else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it is a GPU that does so by itself."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def multiplying(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Within it convolutions and products are of this precision, by torch's autocast; float32 is as it comes."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


# -- there and back -----------------------------------------------------------------------------------------------


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on `device`. On their way to a GPU nobody waits for them: they leave from memory that is pinned,
    which torch does not give to others before they have arrived."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may stay on `device` while others come and go: a quarter of what a GPU has free."""
    return device.type != "cuda" or size <= _RESIDENT * torch.cuda.mem_get_info(device)[0]


def brought(answers: Iterable[tuple[Item, tuple[Tensor, ...]]]) -> Iterator[tuple[Item, tuple[NDArray[Any], ...]]]:
    """The tensors of each answer as arrays, in order. A GPU is asked on while answers are on their way."""
    coming: deque[tuple[Item, tuple[Tensor, ...], torch.cuda.Event | None]] = deque()
    for item, tensors in answers:
        on_gpu = tensors[0].is_cuda
        here = tuple(tensor.to("cpu", non_blocking=on_gpu) for tensor in tensors)
        coming.append((item, here, torch.cuda.current_stream(tensors[0].device).record_event() if on_gpu else None))
        if len(coming) > (_UNDER_WAY if on_gpu else 0):
            yield _arrived(*coming.popleft())
    while coming:
        yield _arrived(*coming.popleft())


def _arrived(
    item: Item, tensors: tuple[Tensor, ...], arrival: torch.cuda.Event | None
) -> tuple[Item, tuple[NDArray[Any], ...]]:
    if arrival is not None:
        arrival.synchronize()
    return item, tuple(tensor.numpy() for tensor in tensors)


# -- threads ------------------------------------------------------------------------------------------------------

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


def derived_seed(seed: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
