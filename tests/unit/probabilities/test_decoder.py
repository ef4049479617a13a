"""Which product the decoder's layers take: packed weights where the processor has AVX, the plain one elsewhere."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vabal.probabilities import decoder

CAN_PACK = torch.backends.cpu.get_cpu_capability().startswith("AVX") and torch.backends.mkldnn.is_available()
packs = pytest.mark.skipif(not CAN_PACK, reason="needs a processor with AVX, and oneDNN")


class Operations(TorchDispatchMode):
    """Writes down the operations of torch that run within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32, on leaving
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def product(kind: torch.dtype, *, bias: bool, relu: bool) -> tuple[Tensor, list[str]]:
    """What a layer gives by hand-written weights, and the operations that it took."""
    weight_O_I = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 4.0]]).to(kind)
    layer = decoder._Linear(weight_O_I, torch.tensor([1.0, 0.0, -3.0]) if bias else None, torch.zeros(0, dtype=kind))
    values_M_I = torch.tensor([[1.0, 1.0], [2.0, -1.0]]).to(kind)
    with Operations() as operations:
        outputs_M_O = layer(values_M_I, relu=relu)
    return outputs_M_O, operations.seen


def by_hand(*, bias: bool, relu: bool) -> list[list[float]]:
    plain = [[3.0, -0.5, 4.0], [0.0, 2.0, -4.0]]
    shifted = [[a + 1, b, c - 3] for a, b, c in plain] if bias else plain
    return [[max(0.0, value) for value in row] for row in shifted] if relu else shifted


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_in_float32_the_product_is_one_operation_on_packed_weights(bias: bool, relu: bool) -> None:
    outputs_M_O, operations = product(torch.float32, bias=bias, relu=relu)
    assert operations == ["mkldnn::_linear_pointwise"]
    assert outputs_M_O.tolist() == by_hand(bias=bias, relu=relu)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_elsewhere_it_is_the_plain_product(bias: bool, relu: bool) -> None:
    expected = ["aten::addmm" if bias else "aten::mm", *(["aten::relu_"] if relu else [])]
    in_float64 = product(torch.float64, bias=bias, relu=relu)
    with without_onednn():
        in_float32 = product(torch.float32, bias=bias, relu=relu)
    for outputs_M_O, operations in (in_float64, in_float32):
        assert operations == expected
        assert outputs_M_O.tolist() == by_hand(bias=bias, relu=relu)


@packs
@pytest.mark.parametrize(("capability", "packed"), [("AVX2", True), ("AVX512", True), ("DEFAULT", False)])
def test_weights_are_packed_by_what_the_processor_is_capable_of(
    capability: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert decoder._can_pack(torch.zeros(0)) is packed
    assert decoder._can_pack(torch.zeros(0, dtype=torch.float64)) is False
    assert decoder._can_pack(torch.zeros(0, device="meta")) is False
    with without_onednn():
        assert decoder._can_pack(torch.zeros(0)) is False
