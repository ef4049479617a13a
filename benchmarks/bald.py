"""Monte-Carlo dropout's columns against the plain way, the whole network once a pass: `python -m benchmarks.bald`.

Both run in one process, on the same network and images; with the same masks they must agree.

Memory is each way's in a process of its own: what the peak of resident memory is above what was there with the network
and the images, after two passes of another network (which bring in some 12 MB of the libraries' code, of any way);
what is freed goes back to the system at once. CPU is a second process's, which keeps it. `published` goes the way of
published code (ej0cl6/deep-active-learning, `predict_prob_dropout_split` and BALD's formula): one pass over all batches
after the other with torch's own dropout, T x N x C posteriors held; its batches are as large as our pieces.
"""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_above
from benchmarks.threads import one_thread
from vabal.learning import committee
from vabal.learning.dropout_passes import DropoutPasses
from vabal.learning.network import ResNetClassifier
from vabal.learning.recipe import Images, pieces, place
from vabal.strategies import Needs

DROPOUT, PASSES = 0.25, 100
SIZE, CHANNELS, CLASSES = 32, 3, 10
SEED = 0
BATCH = 64  # images of SIZE in a piece
MEMORY = ((16, 64, 20), (16, 8, PASSES), (64, 64, 4))  # width, images, passes
MOST_MEMORY = 1.0  # of the published way's


def run(
    *, images: int = 64, width: int = 16, passes: int = PASSES, repeats: int = 3, device: str = "cpu"
) -> dict[str, Any]:
    """Seconds of each way, the best of `repeats` in turns, and how often each runs what stands before the stages.

    `ratio` is against the plain way with our masks, `ratio_own_masks` against it with torch's dropout layers, which
    draw a mask for every sample.
    """
    there = torch.device(device)
    classifier = ResNetClassifier(num_classes=CLASSES, image_size=SIZE, channels=CHANNELS, width=width).eval()
    needs = Needs(dropout=DROPOUT, passes=passes)
    ours = committee.build(needs, classifier.config, first=classifier, seed=SEED)
    network = place(ours.networks["dropout"], there).eval()
    pixels = np.random.default_rng(0).integers(256, size=(images, SIZE, SIZE, CHANNELS), dtype=np.uint8)
    _fill_batch_norm(network, pixels)
    masked = _with_our_masks(network, passes, there)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: ours.columns(pixels, device=device),
        "plain": lambda: plain(masked, pixels, passes, there),
        "plain_own_masks": lambda: plain(network, pixels, passes, there),
    }
    ours.columns(pixels[:1], device=device)  # draws the masks
    seconds, results, stem_calls = _best_of(ways, {"ours": network, "plain": masked}, repeats)
    difference = max(float(np.abs(results["ours"][name] - results["plain"][name]).max()) for name in results["plain"])
    assert difference < 1e-4, difference
    return {
        "name": "bald",
        "images": images,
        "image": f"{SIZE}x{SIZE}x{CHANNELS}",
        "network": f"resnet18, width {width}",
        "passes": passes,
        "device": device,
        "threads": torch.get_num_threads(),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "ratio": seconds["plain"] / seconds["ours"],
        "ratio_own_masks": seconds["plain_own_masks"] / seconds["ours"],
        "stem_calls_a_piece": stem_calls["ours"] / _pieces(classifier, pixels, there),
        "stem_calls_a_piece_plain": stem_calls["plain"] / _pieces(classifier, pixels, there),
        "largest_difference": difference,
    }


def run_with_memory() -> dict[str, Any]:
    """What `run` says, and megabytes of each way; `memory_ratio` is the largest of ours to the published's."""
    rows = {}
    for width, images, passes in MEMORY:
        row: dict[str, Any] = {way: _in_a_process(way, width, images, passes) for way in ("ours", "published")}
        row["memory_ratio"] = row["ours"]["megabytes"] / row["published"]["megabytes"]
        row["ratio"] = row["published"]["cpu_seconds"] / row["ours"]["cpu_seconds"]
        rows[f"width {width}, {images} images, {passes} passes"] = row
    return {**run(), "memory": rows, "memory_ratio": max(row["memory_ratio"] for row in rows.values())}


def _in_a_process(way: str, width: int, images: int, passes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bald", way, str(width), str(images), str(passes)]
    told: list[dict[str, float]] = []
    at_once = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # and asked for again, which takes time
    for more in (at_once, {}):
        done = subprocess.run(command, env=os.environ | more, check=True, capture_output=True, text=True)
        told.append(json.loads(done.stdout))
    return {"megabytes": told[0]["megabytes"], "cpu_seconds": told[1]["cpu_seconds"]}


def measure(way: str, width: int, images: int, passes: int) -> dict[str, float]:
    """This process's megabytes and CPU seconds of one way, on one thread."""
    classifier = ResNetClassifier(num_classes=CLASSES, image_size=SIZE, channels=CHANNELS, width=width).eval()
    pixels = np.random.default_rng(0).integers(256, size=(images, SIZE, SIZE, CHANNELS), dtype=np.uint8)

    def work(passes: int) -> Callable[[], object]:
        needs = Needs(dropout=DROPOUT, passes=passes)
        ours = committee.build(needs, classifier.config, first=classifier, seed=SEED)
        network = place(ours.networks["dropout"], torch.device("cpu")).eval()
        return {"ours": lambda: ours.columns(pixels), "published": lambda: published(network, pixels, passes)}[way]

    with one_thread(), torch.inference_mode():
        work(2)()
        whole = work(passes)
        start = time.process_time()
        megabytes = peak_above(whole)
    return {"megabytes": megabytes, "cpu_seconds": time.process_time() - start}


def published(network: ResNetClassifier, pixels: Images, passes: int) -> Tensor:
    """information_N, by a pass over all batches after the other."""
    network.dropouts.train()
    probabilities_T_N_C = torch.zeros(passes, len(pixels), CLASSES)
    for number in range(passes):
        for start in range(0, len(pixels), BATCH):
            rows = slice(start, start + BATCH)
            probabilities_T_N_C[number, rows] += torch.softmax(network(_batch(pixels[rows])), dim=1)
    network.dropouts.eval()
    mean_N_C = probabilities_T_N_C.mean(0)
    entropy_N = (-mean_N_C * torch.log(mean_N_C)).sum(1)
    return entropy_N - (-probabilities_T_N_C * torch.log(probabilities_T_N_C)).sum(2).mean(0)


def _batch(pixels: Images) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


@torch.inference_mode()
def plain(network: ResNetClassifier, pixels: Images, passes: int, device: torch.device) -> dict[str, Any]:
    """The whole network once a pass, with its dropout layers alone in training mode; N x T x C posteriors are held."""
    network.dropouts.train()
    parts = []
    for images_P_K_H_W in pieces(pixels, network, device):
        logits = []
        for number in range(passes):
            for layer in network.dropouts:
                if isinstance(layer, OurMask):
                    layer.number = number
            logits.append(network(images_P_K_H_W))
        parts.append(torch.stack(logits, dim=1).double())
    network.dropouts.eval()
    log_N_T_C = torch.cat(parts).log_softmax(dim=2)
    entropy_N_T = -(log_N_T_C.exp() * log_N_T_C).sum(dim=2)
    return {
        "predictive_N_C": log_N_T_C.exp().mean(dim=1).cpu().numpy(),
        "expected_entropy_N": entropy_N_T.mean(dim=1).cpu().numpy(),
    }


class OurMask(nn.Module):
    """In a dropout layer's place: the masks that `DropoutPasses` has there, that of pass `number`."""

    def __init__(self, passes: DropoutPasses, index: int) -> None:
        super().__init__()
        self.passes, self.index, self.number = passes, index, 0

    def forward(self, maps: Tensor) -> Tensor:
        return maps * (self.passes.masks(self.index, tuple(maps.shape[1:]))[self.number] / (1 - DROPOUT))


def _with_our_masks(network: ResNetClassifier, passes: int, device: torch.device) -> ResNetClassifier:
    masked = copy.deepcopy(network)
    drawn = DropoutPasses(network, passes, seed=SEED, device=device)
    masked.dropouts = nn.ModuleList(OurMask(drawn, index) for index in range(len(network.dropouts)))
    return masked


def _fill_batch_norm(network: ResNetClassifier, pixels: Images) -> None:
    """So that its statistics are not those of a network that saw nothing."""
    network.train()
    with torch.no_grad():
        network(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(network.mean.device))
    network.eval()


def _best_of(
    ways: dict[str, Callable[[], dict[str, Any]]], networks: dict[str, ResNetClassifier], repeats: int
) -> tuple[dict[str, float], dict[str, Any], dict[str, int]]:
    """Seconds, results, and the calls of the stem of each way's network."""
    seconds = dict.fromkeys(ways, float("inf"))
    calls = dict.fromkeys(ways, 0)
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            seen: list[int] = []
            stem = networks.get(name, networks["ours"]).stem
            hook = stem.register_forward_hook(lambda *_, seen=seen: seen.append(1))
            start = time.perf_counter()
            results[name] = way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            calls[name] = len(seen)
            hook.remove()
    return seconds, results, calls


def _pieces(network: ResNetClassifier, pixels: Images, device: torch.device) -> int:
    return sum(1 for _ in pieces(pixels, network, device))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:5]))))
    else:
        print(json.dumps(run_with_memory(), indent=2))
