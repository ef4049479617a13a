"""Random views of an image, which self-supervised learning takes for one and the same thing.

By torchvision's transforms, an image at a time, so that no two share a crop. Axes: N images, K channels, H x W pixels,
S x S pixels of a view.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from vabal.settings.learners import PretrainSettings


class Views:
    """Draws a view of each image, normalised as the network wants it: a crop, mirrored or turned, in other colours.

    All draws come from torch's global generator, as torchvision has it: seed that, and give it back.
    """

    def __init__(
        self, settings: PretrainSettings, size: int, *, channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """`mean` and `std` are in units of 0..1, for three channels; grey images have theirs three times."""
        self._change = v2.Compose([*_places(settings, size), *_colours(settings, channels)])
        self._mean, self._std = (255 * torch.tensor(tuple(values)).view(1, 3, 1, 1) for values in (mean, std))

    def __call__(self, images_N_K_H_W: Tensor) -> Tensor:
        """views_N_3_S_S of raw images, uint8, on their device."""
        views = torch.stack([self._change(image) for image in images_N_K_H_W]).expand(-1, 3, -1, -1)
        mean, std = self._mean.to(views.device), self._std.to(views.device)
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def _places(settings: PretrainSettings, size: int) -> list[v2.Transform]:
    """What part of the image is seen, and from which side."""
    cut: list[v2.Transform] = [v2.RandomResizedCrop(size, scale=(settings.crop, 1.0), antialias=True)]
    if settings.crop == 1.0:
        cut = [v2.Resize((size, size), antialias=True)]
    if settings.views == "plain":
        return cut
    if settings.views == "mirrored":
        return [*cut, v2.RandomHorizontalFlip()]
    quarter = v2.RandomApply([v2.Lambda(lambda image: image.transpose(-1, -2))])
    return [*cut, v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), quarter]


def _colours(settings: PretrainSettings, channels: int) -> list[v2.Transform]:
    strength = settings.colour
    if not strength:
        return []
    if channels == 1:
        return [v2.RandomApply([v2.ColorJitter(0.8 * strength, 0.8 * strength)], p=0.8)]
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return [v2.RandomApply([jitter], p=0.8), v2.RandomGrayscale(p=0.4 * strength)]
