"""The blocks that the estimates work in, side by side on the cores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from vabal.errors import UserError
from vabal.probabilities.checks import first_of
from vabal.vae import FeatureVAE, to_tensor

_LATENT_ELEMENTS = 2**22  # of the latents held at once ...
_BLOCK_ROWS = 1024  # ... and samples: memory does not grow with a shard
_ELSEWHERE = 64  # times as many on a GPU, to keep it busy

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """Maps in order, on as many threads as torch has on a CPU, each of which then does all of a product by itself.

    Threads that share one product wait for each other at the end of each: where the cores are busy, for far longer
    than it takes. A few items are in work at once, so that memory stays bounded.
    """
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu":
        yield from map(work, items)
        return
    torch.set_num_threads(1)  # threads that begin now take this over
    try:
        with ThreadPoolExecutor(threads) as executor:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(executor.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def blocks_of(features: Any, encoder: FeatureVAE, draws: int, where: str) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a shard, and their features_N_D in the encoder's precision: as many as are worked on at once."""
    if getattr(features, "ndim", None) != 2:
        raise ValueError(f"{where}: expected features N x D, found shape {getattr(features, 'shape', 'none')}")
    weight = encoder.reconstruction.weight
    size = block_rows(draws * encoder.num_latents, weight.device)
    finite: list[Tensor] = []
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        features_N_D = to_tensor(features[rows], weight.device, weight.dtype)
        finite.append(torch.isfinite(features_N_D).all(dim=1))
        # A GPU is asked once a shard, for it would have to finish all that it has to do.
        if weight.device.type == "cpu" or rows.stop >= len(features):
            wrong = (~torch.cat(finite)).nonzero()[:, 0] + start + len(features_N_D) - sum(map(len, finite))
            if len(wrong):
                raise UserError(
                    f"{where}: the features of rows {first_of(wrong.tolist())} are not finite: "
                    "extract them again, look at these images"
                )
            finite.clear()
        yield rows, features_N_D


def block_rows(latents: int, device: torch.device) -> int:
    """Samples that are worked on at once, each of which has so many latents."""
    times = 1 if device.type == "cpu" else _ELSEWHERE
    return max(1, min(times * _BLOCK_ROWS, times * _LATENT_ELEMENTS // latents))


def rounded(value: float) -> float:
    return float(f"{value:.9g}")
