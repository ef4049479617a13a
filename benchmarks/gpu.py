"""What a GPU should reach, measured where there is one: `python -m benchmarks.gpu [--out FILE]`.

Features of a million small images against a bare forward pass in the same precision; a round of the paper's CIFAR-10
size; the likelihood against bare products of the same shapes. `--device cpu` runs the same, small: it shows that all of
it runs, and judges nothing.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vabal import vae as vaes
from vabal.benchmark import simulation
from vabal.images.rows import RowWriter, row_batches
from vabal.learning.device import device_name, multiplies_bfloat16, multiplying
from vabal.learning.features import extract
from vabal.learning.network import ResNetClassifier
from vabal.learning.recipe import pieces, place
from vabal.probabilities import estimate_likelihood, products_of
from vabal.settings import params

SIZE, CHANNELS, CLASSES, DRAWS = 32, 3, 10, 10


class Sizes(NamedTuple):
    """Of what is measured; `width` and `epochs` are the classifier's."""

    images: int
    batch: int
    width: int
    labeled: int
    unlabeled: int
    epochs: int
    rows: int
    repeats: int


FULL = Sizes(images=1_000_000, batch=2048, width=64, labeled=3000, unlabeled=47_000, epochs=200, rows=2**18, repeats=5)
SMALL = Sizes(images=96, batch=32, width=4, labeled=30, unlabeled=60, epochs=1, rows=64, repeats=2)


def run(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """The three measurements and their targets; `ok` of each is None where it was not run at full size."""
    precision = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    found = {
        "features": _features(device, precision, sizes),
        "round": _round(device, sizes),
        "estimate": _estimate(device, sizes),
    }
    for name, (key, sign, bound) in TARGETS.items():
        measured = found[name][key]
        kept = measured <= bound if sign == "<=" else measured >= bound
        found[name] |= {"target": f"{key} {sign} {bound:g}", "ok": kept if sizes == FULL else None}
    about = {"device": device_name(device), "precision": str(precision), "torch": torch.__version__}
    return {**about, **sizes._asdict(), **found}


TARGETS = {
    "features": ("share_of_bare", ">=", 0.6),
    "round": ("seconds", "<=", 180.0),
    "estimate": ("share_of_bare", ">=", 0.5),
}


def _features(device: torch.device, precision: torch.dtype, sizes: Sizes) -> dict[str, float]:
    """From decoded images in a file to features in files, against the network alone on a batch that is there."""
    network = ResNetClassifier(num_classes=CLASSES, image_size=SIZE, channels=CHANNELS, width=sizes.width)
    place(network, device).eval()
    numbers = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, multiplying(device, precision):
        folder = Path(name)
        with RowWriter(folder / "images.npy", sizes.images, SIZE * SIZE * CHANNELS, "|u1") as images:
            while images.written < sizes.images:
                rows = min(sizes.batch, sizes.images - images.written)
                images.append(numbers.integers(256, size=(rows, SIZE * SIZE * CHANNELS), dtype=np.uint8))

        def ours() -> None:
            read = row_batches(folder / "images.npy", sizes.batch)
            batches = ((start, rows.reshape(-1, SIZE, SIZE, CHANNELS)) for start, rows in read)
            extract(network, batches, sizes.images, folder, device)

        first = next(row_batches(folder / "images.npy", sizes.batch))[1].reshape(-1, SIZE, SIZE, CHANNELS)
        held = list(pieces(first, network, device))

        @torch.inference_mode()
        def bare() -> None:
            for _ in range(-(-sizes.images // sizes.batch)):
                for piece in held:
                    network.stages(piece)

        taken = _in_turn(device, sizes.repeats, ours=ours, bare=bare)
    return {"images_per_second": sizes.images / taken["ours"], "bare_per_second": sizes.images / taken["bare"]} | {
        "share_of_bare": taken["share"]
    }


def _round(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """One round of the preset `paper`: classifier, features, VAE, class terms, likelihood, picks. Its second run, for
    in the first a process meets the GPU."""
    total, numbers = sizes.labeled + sizes.unlabeled, np.random.default_rng(0)
    pool = simulation.SimulatedPool(
        classes=tuple(str(label) for label in range(CLASSES)),
        sample_ids=np.array([f"s{row}" for row in range(total + 2)], dtype=object),
        images_N_H_W_K=numbers.integers(256, size=(total + 2, SIZE, SIZE, CHANNELS), dtype=np.uint8),
        labels_N=np.arange(total + 2) % CLASSES,
        pool_P=np.arange(total),
        holdout_M=np.arange(total, total + 2),
        initial_L=np.arange(sizes.labeled),
    )
    settings: dict[str, Any] = {
        "method": {"preset": "paper"},
        "images": {"size": SIZE, "channels": CHANNELS},
        "classifier": {"width": sizes.width, "epochs": sizes.epochs, "crop_padding": 4, "horizontal_flip": True},
        "features": {"batch_size": sizes.batch},
        "selection": {"strategy": "vabal", "budget": min(1000, sizes.unlabeled // 2)},
        "compute": {"device": str(device)},
    }
    brief = {**settings, "classifier": {**settings["classifier"], "epochs": 1}}
    if sizes != FULL:
        settings["vae"] = brief["vae"] = {"epochs": 1, "min_steps": 2, "max_steps": 2}
    next(simulation.run(pool, params.parse(brief), rounds=2))
    since = time.perf_counter()
    played = next(simulation.run(pool, params.parse(settings), rounds=2))
    return {"seconds": time.perf_counter() - since, **played.seconds}


def _estimate(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Of features that are on the device, against the products of the decoder's square layers alone, in tiles that are
    there too."""
    numbers = np.random.default_rng(0)
    widths = tuple(sizes.width * 2**stage for stage in range(4))
    vae = vaes.build(widths, CLASSES, seed=0).to(device).eval()
    features_N_D = torch.from_numpy(np.maximum(numbers.normal(size=(sizes.rows, sum(widths))), 0)).float().to(device)
    asked = {"draws": DRAWS, "sampling": "independent", "products": "auto"}
    kind = products_of("auto", device)
    layers, hidden = vae.settings.hidden_layers, vae.settings.hidden_width
    tile = min(2**21, sizes.rows * DRAWS * CLASSES)
    values, weights = (torch.randn(rows, hidden, device=device, dtype=kind) for rows in (tile, hidden))

    def ours() -> None:
        for start in range(0, sizes.rows, 2**16):
            for _ in estimate_likelihood(vae, [features_N_D[start : start + 2**16]], generator=0, settings=asked):
                pass

    def bare() -> None:
        for _ in range(layers * -(-sizes.rows * DRAWS * CLASSES // tile)):  # hidden ones but one, and the last
            torch.mm(values, weights)

    taken = _in_turn(device, sizes.repeats, ours=ours, bare=bare)
    return {
        "rows_per_second": sizes.rows / taken["ours"],
        "products": str(kind),
        "share_of_bare": taken["share"],
    }


def _in_turn(
    device: torch.device, repeats: int, *, ours: Callable[[], None], bare: Callable[[], None]
) -> dict[str, float]:
    """Median seconds of both, and the median of the repeats' ratios; each was run once before."""
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for repeat in range(repeats + 1):
        for name, work in (("ours", ours), ("bare", bare)):
            since = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                seconds[name].append(time.perf_counter() - since)
    shares = [bare / ours for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
    return {name: statistics.median(values) for name, values in seconds.items()} | {"share": statistics.median(shares)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a small run that judges nothing")
    parser.add_argument("--out", type=Path, help="where the results go besides")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use is here: `--device cpu` runs the same, small, and judges nothing")
        return 2
    found = json.dumps(run(device, FULL if device.type == "cuda" else SMALL), indent=2)
    print(found)
    if asked.out:
        asked.out.write_text(found + "\n", encoding="utf-8")
    return int(any(json.loads(found)[name]["ok"] is False for name in TARGETS))


if __name__ == "__main__":
    sys.exit(main())
