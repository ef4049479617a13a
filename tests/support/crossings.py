"""What would have a GPU wait, counted: numbers that Python reads out of tensors, and tensors that change devices."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
ELSEWHERE = torch.device("meta")  # stands for a GPU: has shapes and no numbers, so that reading one raises


class Crossings(TorchDispatchMode):
    """Counts, as long as it is entered: `reads` of single numbers (what `.item()`, `float()` and `bool()` come to), and
    `copies` from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = self.copies = 0

    def __torch_dispatch__(
        self, func: Any, _types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is _aten._local_scalar_dense.default:
            self.reads += 1
        elif func is _aten._to_copy.default:
            self.copies += args[0].device != made.device
        elif func is _aten.copy_.default:
            self.copies += args[0].device != args[1].device
        return made
