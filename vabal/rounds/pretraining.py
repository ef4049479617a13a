"""`vabal pretrain`: a backbone learnt from the pool's own images, labelled or not, never from those of the holdout.

What it makes lies in `.vabal/pretrained/`, named for settings and images; beside it, while it is made, the training's
checkpoint. The nights may go on meanwhile: shards never change.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vabal.files import canonical_json, file_sha256, locked, private_folder, sha256, write_bytes
from vabal.images import DecodedShards
from vabal.learning.backbones import read_about, save_pretrained
from vabal.learning.device import device_of
from vabal.learning.pretraining.training import COLLAPSED, VERSION, Checkpoint, Pretraining
from vabal.pools import REJECTED, Pools
from vabal.progress import duration, track
from vabal.rounds.manifests import derive_seed
from vabal.settings.edits import changed
from vabal.settings.models import Params
from vabal.workspace import Workspace

_SMALLEST_VIEW = 64  # pixels, unless pretrain.size says less: the networks shrink an image by 32
_HALF_WRITTEN: Final = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pretrained:
    """A backbone that was learnt, or was there already."""

    weights: Path
    sha256: str
    network: str
    size: int
    images: int
    epochs: int
    loss: float
    spread: float
    seconds: float
    before: bool  # made by an earlier call

    def settings(self) -> dict[str, str]:
        """What `params.yaml` has to say for it."""
        weights = Path(*self.weights.parts[-3:])  # from the workspace on
        return {"backbone.name": self.network, "backbone.weights": f"file:{weights}"}

    def lines(self) -> Iterable[str]:
        made = "was learnt before" if self.before else f"learnt in {duration(self.seconds)}"
        yield (
            f"{self.weights}: {self.network} at {self.size} pixels, {made}: {self.images} images without the holdout, "
            f"{self.epochs} epochs, loss {self.loss:.3f}, spread of the features {self.spread:.2f}"
        )
        yield f"SHA-256 {self.sha256}"
        if self.spread < COLLAPSED:
            yield (
                "The features have collapsed: all images look alike to the network. Lower pretrain.learning_rate, or "
                "let views differ more (pretrain.crop, pretrain.colour)."
            )
        yield "In params.yaml, below `backbone`, these lines use it (`vabal pretrain --use` writes them):"
        yield f"  name: {self.network}"
        yield f"  weights: {self.settings()['backbone.weights']}"

    def to_json(self) -> Any:
        return {**asdict(self), "weights": str(self.weights), "settings": self.settings()}


class PoolImages:
    """The images of catalog rows, decoded, from the cache on the disk."""

    def __init__(self, shards: DecodedShards, catalog: pd.DataFrame) -> None:
        self._shards, self._catalog = shards, catalog

    def __len__(self) -> int:
        return len(self._catalog)

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._shards.gather(self._catalog.iloc[rows_N])


def pretrain(workspace: Workspace, pools: Pools, params: Params, tell: Tell) -> Pretrained:
    """The backbone that settings and images ask for: learnt, learnt to its end, or found as an earlier call left it.

    An unfinished training goes on with the images that are there now, as long as the settings are the same; other
    settings, and a pool that changed after the end, begin anew. `tell` hears which it is, and of each epoch.
    Raises UserError if another call is at work, if there are too few images, or if training diverges.
    """
    device = device_of(params)
    size = params.pretrain.size or max(_SMALLEST_VIEW, params.images.size)
    catalog = images_of(pools)
    about = {"settings": _settings_digest(params, size), "images": _images_digest(catalog)}
    folder = private_folder(workspace.state / "pretrained")
    name = params.pretrain.network.partition(":")[2]
    weights = folder / f"{name}-{sha256(canonical_json(about))[:12]}.safetensors"
    with locked(folder / ".lock", f"{folder}: another `vabal pretrain` is at work: wait for it to end"):
        _clear(folder)
        checkpoint = Checkpoint(folder / "unfinished.pt", about)
        if weights.exists():
            if (kept := checkpoint.read()) is not None and kept[0] == about:  # killed right after its end
                checkpoint.path.unlink()
            return _found(weights)
        training = _taken_up(lambda: _begun(params, size, device), checkpoint, tell)
        pictures = PoolImages(_decoded(workspace, params, catalog), catalog)
        start = time.monotonic()
        done = _run(training, pictures, checkpoint, tell)
        made = {"network": params.pretrain.network, "size": size, "images": len(catalog), **done}
        digest = save_pretrained(training.encoder.trunk, weights, made)
        checkpoint.path.unlink(missing_ok=True)
    return Pretrained(weights, digest, before=False, seconds=time.monotonic() - start, **made)


def use(workspace: Workspace, backbone: Pretrained) -> str:
    """Writes into `params.yaml` what uses the backbone; a line that says so. Raises UserError if a round is at work."""
    path = workspace.root / "params.yaml"
    with workspace.lock("vabal pretrain --use"):
        text = path.read_text(encoding="utf-8")
        write_bytes(path, changed(text, backbone.settings()).encode())
        learner = workspace.params().classifier.learner
    if learner == "scratch":
        return f"{path} names it; `scratch`, which learns without a backbone, is still its classifier.learner"
    return f"{path} names it: the next round learns with it"


def images_of(pools: Pools) -> pd.DataFrame:
    """The catalog's rows to learn from: all but the holdout's, and those that people rejected."""
    rejected = pools.unlabeled.loc[pools.unlabeled["status"] == REJECTED, "sample_id"]
    out = set(pools.holdout["sample_id"]) | set(rejected)
    return pools.catalog[~pools.catalog["sample_id"].isin(out)].reset_index(drop=True)


def _clear(folder: Path) -> None:
    """Removes what a call that was killed had half written: nobody else is at work."""
    for path in folder.iterdir():
        if _HALF_WRITTEN.fullmatch(path.name) and not path.is_symlink():
            path.unlink()


def _decoded(workspace: Workspace, params: Params, catalog: pd.DataFrame) -> DecodedShards:
    """The shards of the images, all of them decoded into the cache."""
    images = params.images
    shards = DecodedShards(
        workspace.data, workspace.decoded, images.size, images.channels, catalog=catalog, bit_depth=images.bit_depth
    )
    names = shards.names()
    for shard in track(names, "decode", len(names)):
        shards.keep(shard)
    return shards


def _begun(params: Params, size: int, device: torch.device) -> Pretraining:
    seed = derive_seed(params.seed, 0, "pretrain")
    return Pretraining(params.pretrain, size=size, channels=params.images.channels, seed=seed, device=device)


def _taken_up(begin: Callable[[], Pretraining], checkpoint: Checkpoint, tell: Tell) -> Pretraining:
    """The training where an unfinished one was left, or else at its beginning; `tell` hears which, and why."""
    training, kept = begin(), checkpoint.read()
    if kept is None:
        return training
    about, state = kept
    if about["settings"] != checkpoint.about["settings"]:
        tell("an unfinished pretraining had other settings: this one starts anew")
        return training
    try:
        training.restore(state)
    except (RuntimeError, ValueError, KeyError, TypeError):  # another version of the network's library
        tell("an unfinished pretraining cannot be taken up by the libraries of now: this one starts anew")
        return begin()
    more = "" if about["images"] == checkpoint.about["images"] else ", with the images that are there now"
    tell(f"an unfinished pretraining goes on in epoch {training.epoch} of {training.settings.epochs}{more}")
    return training


def _run(training: Pretraining, pictures: PoolImages, checkpoint: Checkpoint, tell: Tell) -> dict[str, Any]:
    """Trains to the end; what it came to."""
    start, before = time.monotonic(), training.steps(len(pictures))[0]
    epochs = training.settings.epochs
    values: dict[str, float] = {}
    for metric in training.run(pictures, lambda: checkpoint.keep(training.state)):
        values[metric.name] = metric.value
        if metric.name == "pretrain/spread":
            done, total = training.steps(len(pictures))
            left = (time.monotonic() - start) / max(1, done - before) * (total - done)
            tell(
                f"[{metric.step}/{epochs}] loss {values['pretrain/loss']:.3f}, spread of the features "
                f"{metric.value:.2f}; {duration(left)} left"
            )
    return {"epochs": epochs, "loss": values["pretrain/loss"], "spread": values["pretrain/spread"]}


def _found(weights: Path) -> Pretrained:
    return Pretrained(weights, file_sha256(weights), before=True, seconds=0.0, **read_about(weights))


def _settings_digest(params: Params, size: int) -> str:
    chosen = params.pretrain.model_dump() | {"size": size}
    images = params.images.model_dump(include={"size", "channels", "bit_depth"})
    return sha256(canonical_json({"version": VERSION, "pretrain": chosen, "images": images, "seed": params.seed}))


def _images_digest(catalog: pd.DataFrame) -> str:
    return sha256("\n".join(catalog["sha256"]).encode())
