"""What happens to training images at random, beside crops from padding and mirroring: torchvision's transforms.

Axes: N samples, H x W x K images.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

_LEAST_AREA: Final = 0.6  # of a cut-out; its sides' ratio stays close to the image's
_RATIO: Final = (0.9, 1.1)
_JITTER: Final = 0.2  # of brightness and contrast


def changed(images_N_H_W_K: Tensor, kinds: Sequence[str]) -> Tensor:
    """uint8 images of the same shape, each changed by itself, by `kinds` in their order.

    Draws from torch's global generator.
    """
    from torchvision.transforms import v2  # noqa: PLC0415 -- half a second

    height, width = images_N_H_W_K.shape[1:3]
    makers: dict[str, Callable[[], list[Any]]] = {
        "crop": lambda: [v2.RandomResizedCrop((height, width), scale=(_LEAST_AREA, 1.0), ratio=_RATIO)],
        "mirror": lambda: [v2.RandomHorizontalFlip()],
        "turn": lambda: [_quarter_turns, v2.RandomHorizontalFlip()],
        "jitter": lambda: [v2.ColorJitter(brightness=_JITTER, contrast=_JITTER)],
        "erase": lambda: [v2.RandomErasing()],
    }
    change = v2.Compose([step for kind in kinds for step in makers[kind]()])
    images_N_K_H_W = images_N_H_W_K.permute(0, 3, 1, 2)
    return torch.stack([change(image) for image in images_N_K_H_W]).permute(0, 2, 3, 1)


def _quarter_turns(image_K_H_W: Tensor) -> Tensor:
    return torch.rot90(image_K_H_W, int(torch.randint(4, ())), (1, 2))
