"""A backbone of few weights, which no training has seen, in a file as a user's own would be."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

NAME = "timm:test_efficientnet"  # timm's own for its tests: 0.4 million weights, batch norm


def small_backbone(folder: Path, seed: int = 0) -> dict[str, object]:
    """The settings of the section `backbone` for it; its weights are a file in `folder`."""
    path = folder / f"small-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(NAME.removeprefix("timm:"))
    save_file(network.state_dict(), path)
    return {"name": NAME, "weights": f"file:{path}", "sizes": [32]}
