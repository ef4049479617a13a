"""Monte-Carlo dropout: the passes of a trained network, some at a time, on a CPU few maps at a time.

Axes: P samples of a piece, T passes, S of them at once, C classes, K channels, H x W pixels.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vabal.learning.device import derived_seed
from vabal.learning.network import ResNetClassifier
from vabal.learning.recipe import memory_format

_PIXELS_AT_ONCE = 2**16  # a channel, of a piece times its passes: what fits a CPU's caches, as in `classifier.pieces`
_PIXELS_AT_ONCE_ELSEWHERE = 2**20
_PIXELS_IN_STAGES = 2**13  # of them, on a CPU, go through the stages together: their maps are what passes hold


class DropoutPasses:
    """Monte-Carlo dropout (Gal & Ghahramani 2016; paper, Section 4.2) of a trained network, in evaluation mode.

    Only the masks are random. Pass t has one mask for each dropout layer, of the shape of one sample's map and drawn
    from `seed`, which all samples share: one draw from the posterior of the weights, asked about every sample. A
    sample's own statistics are distributed as with masks of its own, and they cannot depend on the samples beside it.

    What stands before the first dropout runs once for all passes, and batch norm is folded into the convolutions, block
    by block. Passes of a small piece go together; on a CPU few maps at a time go through the stages, which changes no
    bit. Memory: the piece behind the stem, those few maps, one block's weights and one pass's masks.
    """

    def __init__(self, network: ResNetClassifier, passes: int, *, seed: int, device: torch.device) -> None:
        self.network, self.passes, self.seed, self.device = network, passes, seed, device
        self._masks: dict[tuple[int, ...], _Masks] = {}
        self._sent: dict[tuple[int, ...], Tensor] = {}  # to a GPU, whole

    def logits(self, images_P_K_H_W: Tensor) -> Iterator[Tensor]:
        """Yields logits_S_P_C until all T passes were made, S at once."""
        maps_P_K_H_W = self.network.before_stages(images_P_K_H_W)
        pixels = images_P_K_H_W.numel() // images_P_K_H_W.shape[1]
        most = _PIXELS_AT_ONCE if self.device.type == "cpu" else _PIXELS_AT_ONCE_ELSEWHERE
        at_once = max(1, most // pixels)
        for start in range(0, self.passes, at_once):
            passes = range(start, min(start + at_once, self.passes))
            pooled = [self._pooled(maps_P_K_H_W, passes, rows) for rows in self._parts(len(passes), images_P_K_H_W)]
            yield _by_pass(self.network.classifier(torch.cat(pooled)), len(maps_P_K_H_W))

    def _parts(self, passes: int, images_P_K_H_W: Tensor) -> Iterator[slice]:
        """Rows of pass behind pass, M = S * P, that go through the stages together.

        On a CPU more than one unless there is only one: oneDNN adds up a single image's products in another order.
        """
        samples, _, height, width = images_P_K_H_W.shape
        rows = passes * samples
        most = max(2, _PIXELS_IN_STAGES // (height * width)) if self.device.type == "cpu" else rows
        bounds = np.linspace(0, rows, max(1, rows // most) + 1).astype(int).tolist()
        return map(slice, bounds[:-1], bounds[1:])

    def _pooled(self, maps_P_K_H_W: Tensor, passes: range, rows: slice) -> Tensor:
        """pooled_M_D behind the last stage, of some rows of these passes."""
        samples = len(maps_P_K_H_W)
        there = range(rows.start // samples, (rows.stop - 1) // samples + 1)
        counts = [min(rows.stop, (at + 1) * samples) - max(rows.start, at * samples) for at in there]
        sample_M = torch.arange(rows.start, rows.stop, device=self.device) % samples
        maps_M_K_H_W = maps_P_K_H_W[sample_M]
        for index, stage in enumerate(self.network.residual_stages):
            scale_S_K_H_W = self._scales(index, maps_M_K_H_W, passes[there[0]], passes[there[-1]] + 1)
            for maps, scale_K_H_W in zip(maps_M_K_H_W.split(counts), scale_S_K_H_W, strict=True):
                maps.mul_(scale_K_H_W)
            del maps, scale_S_K_H_W, scale_K_H_W
            for block in stage.children():  # here, so that what went into one is gone behind it
                maps_M_K_H_W = _folded(block, maps_M_K_H_W)
        pooled_M_D: Tensor = maps_M_K_H_W.mean(dim=(2, 3), dtype=torch.float32)
        return pooled_M_D

    def masks(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """kept_T_K_H_W of the dropout before stage `index`, whose maps have the shape K x H x W."""
        return self._drawn(index, shape).kept(0, self.passes)

    def _drawn(self, index: int, shape: tuple[int, ...]) -> "_Masks":
        key = (index, *shape)
        if key not in self._masks:
            seed = derived_seed(self.seed, f"dropout before stage {index}")
            self._masks[key] = _Masks(shape, self.network.config["dropout"], seed)
        return self._masks[key]

    def _scales(self, index: int, maps: Tensor, first: int, stop: int) -> Tensor:
        """scale_S_K_H_W of the passes from `first` on, in the maps' order in memory."""
        shape = tuple(maps.shape[1:])
        if self.device.type == "cpu":
            kept_S_K_H_W = self._drawn(index, shape).kept(first, stop)
        else:
            key = (index, *shape)
            if key not in self._sent:
                self._sent[key] = self.masks(index, shape).to(self.device)
            kept_S_K_H_W = self._sent[key][first:stop]
        order = memory_format(self.network, self.device)
        scale_S_K_H_W: Tensor = kept_S_K_H_W.to(maps.dtype, memory_format=order)
        return scale_S_K_H_W.div_(1 - self.network.config["dropout"])


class _Masks:
    """Of one dropout layer, pass behind pass. Only the newest is there: all of them would weigh as much as a small
    piece's maps, and to draw one takes a fortieth of eight images' pass."""

    def __init__(self, shape: tuple[int, ...], share: float, seed: int) -> None:
        self.shape, self.share, self.seed = shape, share, seed
        self._begin()

    def _begin(self) -> None:
        self._generator, self._number = torch.Generator().manual_seed(self.seed), -1

    def kept(self, first: int, stop: int) -> Tensor:
        """kept_S_K_H_W of the passes from `first` on: where the newest lies behind it, from pass 0 again."""
        if first < self._number:
            self._begin()
        return torch.stack([self._of(number) for number in range(first, stop)])

    def _of(self, number: int) -> Tensor:
        while self._number < number:
            self._newest = torch.rand(self.shape, generator=self._generator) >= self.share
            self._number += 1
        return self._newest


def _by_pass(values_M: Tensor, samples: int) -> Tensor:
    """What stands pass behind pass, M = S * P rows, as S x P; a view."""
    values_S_P: Tensor = values_M.unflatten(0, (-1, samples))
    return values_S_P


def _folded(block: nn.Module, maps: Tensor) -> Tensor:
    """What a residual block makes of the maps in evaluation, with its batch norms folded into the convolutions."""
    from torchvision.models.resnet import BasicBlock  # noqa: PLC0415 -- half a second

    if not isinstance(block, BasicBlock):
        raise TypeError(f"expected a BasicBlock, found {type(block).__name__}")
    inner = _convolved(block.conv2, block.bn2, _convolved(block.conv1, block.bn1, maps).relu_())
    shortcut = maps if block.downsample is None else _convolved(block.downsample[0], block.downsample[1], maps)
    return inner.add_(shortcut).relu_()


def _convolved(convolution: nn.Module, norm: nn.Module, maps: Tensor) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 -- a block's are
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None  # noqa: S101
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return nn.functional.conv2d(maps, weight, bias, convolution.stride, convolution.padding)
