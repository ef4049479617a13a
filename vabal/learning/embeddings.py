"""Embeddings of the pool's images, made once an image and kept: a night touches only what is new.

What a shard's images were turned into lies as one `.npy` file, named for the shard's content, the backbone and its
weights, the image settings and the libraries that compute it. Axes: N images, H x W x K, E numbers of an embedding.
"""

import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vabal.files import (
    Remote,
    Shared,
    canonical_json,
    file_sha256,
    found,
    locked,
    private_folder,
    remove,
    sha256,
    sync_file,
    write_bytes,
)
from vabal.images import DecodedShards
from vabal.images.rows import RowWriter, read_rows, row_batches
from vabal.learning import backbones, network
from vabal.learning.backbones import Backbone, Layer
from vabal.learning.device import brought, sent
from vabal.learning.needs import check_finite
from vabal.learning.probe import Embedded
from vabal.settings.learners import BackboneSettings

_FOLDER: Final = "embeddings"  # where several machines share them
_LIBRARIES: Final = ("torch", "timm", "torchvision")
_OURS: Final = re.compile(
    r"(.+-[0-9a-f]{16}(\.npy|\.json)?|\..+-[0-9a-f]{16}\..+)"
)  # a result, or one that is being made
_PIXELS_A_PIECE: Final = 2**18  # of one channel, over all sizes and views: what a CPU's caches bear
Batches = Iterable[tuple[int, NDArray[np.uint8]]]


class Embedder:
    """The backbone of the settings, loaded once it is needed, and the folder that keeps what it says."""

    def __init__(
        self, settings: BackboneSettings, device: torch.device | str, cache: Path, shared: Shared | None = None
    ) -> None:
        """With `shared` what one machine embedded is there for all."""
        self.settings, self.device, self.cache, self.shared = settings, torch.device(device), cache, shared

    @cached_property
    def backbone(self) -> Backbone:
        loaded = backbones.load(self.settings).to(self.device)
        return loaded.to(memory_format=torch.channels_last)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return backbones.identity(self.settings)

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that change whenever an embedding could, besides with its image."""
        document = {
            "backbone": self.identity,
            "device": self.device.type,
            "code": [file_sha256(Path(str(module.__file__))) for module in (backbones, network)],
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
        return sha256(canonical_json(document))[:16]

    @cached_property
    def embedded(self) -> Embedded:
        """What the numbers are; kept beside them, so that the backbone need not be loaded to know."""
        path = self.cache / f"layers-{self.key}.json"
        if not path.exists():
            about = {"layers": [list(layer) for layer in self.backbone.layers], **self.backbone.preparation}
            private_folder(self.cache)
            write_bytes(path, canonical_json(about))
        os.utime(path)
        about = json.loads(path.read_bytes())
        layers = tuple(Layer(*item) for item in about.pop("layers"))
        return Embedded({**self.identity, **about}, layers)

    def check(self) -> None:
        """Raises UserError for a backbone, weights or a size that are not there or do not fit."""
        _ = self.embedded

    def programs(self) -> list[Path]:
        """The backbone as programs that run without timm, one a size; exported once, and kept."""
        place = self.cache / f"programs-{self.key}"
        private_folder(self.cache)
        with locked(self.cache / f".programs-{self.key}.lock"):
            if not place.is_dir():
                temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=self.cache))
                try:
                    backbones.load(self.settings).export(temporary)
                    temporary.rename(place)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
        os.utime(place)
        return [place / f"trunk-{size}.pt2" for size in self.embedded.backbone["sizes"]]

    def embed(
        self, images_N_H_W_K: NDArray[np.uint8], sample_ids: Sequence[str] | NDArray[Any] | None = None
    ) -> NDArray[np.float32]:
        """embeddings_N_E. Raises UserError naming the images of which a number is not finite."""
        parts = [
            np.zeros((0, self.embedded.width), dtype=np.float32),
            *self._embedded([(0, images_N_H_W_K)], sample_ids),
        ]
        return np.concatenate(parts)

    def _embedded(
        self, batches: Batches, sample_ids: Sequence[str] | NDArray[Any] | None
    ) -> Iterator[NDArray[np.float32]]:
        """embeddings_P_E, a piece of a batch behind the other: a GPU is asked on while they are on their way."""
        for row, (embeddings_P_E,) in brought(self._answers(batches)):
            rows = range(row, row + len(embeddings_P_E))
            names = [f"row {place}" for place in rows] if sample_ids is None else sample_ids[rows.start : rows.stop]
            check_finite("what the backbone says", embeddings_P_E, names, "backbone.weights")
            yield embeddings_P_E

    def _answers(self, batches: Batches) -> Iterator[tuple[int, tuple[torch.Tensor]]]:
        views = {self.settings.views} if isinstance(self.settings.views, str) else set(self.settings.views)
        most = max({"plain": 1, "mirrored": 2, "turned": 8}[seen_as] for seen_as in views)
        pixels = most * max(layer.size for layer in self.embedded.layers) ** 2
        step = max(1, _PIXELS_A_PIECE // pixels) if self.device.type == "cpu" else 256
        for start, images_N_H_W_K in batches:
            for first in range(0, len(images_N_H_W_K), step):
                images = sent(torch.from_numpy(np.array(images_N_H_W_K[first : first + step])), self.device)
                with torch.inference_mode():
                    embeddings_P_E = self.backbone(images.permute(0, 3, 1, 2)).float()
                yield start + first, (embeddings_P_E,)

    def kept(
        self, name: str, rows: int, batches: Callable[[], Batches], sample_ids: NDArray[Any] | None = None
    ) -> Path:
        """The file of the embeddings that are called `name`; made from `batches` of images if it is not there."""
        place = self.find(name)
        if place is not None:
            return place if isinstance(place, Path) else place.here()
        path = self.cache / f"{name}-{self.key}.npy"
        private_folder(self.cache)
        with locked(self.cache / f".{name}-{self.key}.lock"):
            if not path.exists():
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                try:
                    with RowWriter(temporary, rows, self.embedded.width) as writer:
                        for embeddings_P_E in self._embedded(batches(), sample_ids):
                            writer.append(embeddings_P_E)
                    sync_file(temporary)
                    if self.shared is not None:
                        self.shared.publish(f"{_FOLDER}/{path.name}", temporary)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        return path

    def find(self, name: str) -> Path | Remote | None:
        """Where the embeddings that are called `name` lie; None where nobody has made them."""
        file = f"{name}-{self.key}.npy"
        return found(self.shared, f"{_FOLDER}/{file}", self.cache / file)


def forget(folder: Path, before: float) -> int:
    """Remove what no embedder has asked for since that time (seconds since 1970), finished or half-made: other
    backbones', other shards'. Returns how many. What bears no name that is given here stays."""
    if not folder.is_dir():
        return 0
    old = [path for path in folder.iterdir() if _OURS.fullmatch(path.name) and path.lstat().st_mtime < before]
    for path in old:
        remove(path)
    return len(old)


class EmbeddedShards:
    """The pool's embeddings, shard by shard, as `DecodedShards` has its images."""

    def __init__(self, shards: DecodedShards, embedder: Embedder, batch_size: int) -> None:
        """`batch_size`: images that are decoded at once."""
        self._shards, self.embedder, self._batch_size = shards, embedder, batch_size

    def rows(self, shard: str) -> int:
        return self._shards.rows(shard)

    def embed(self, shard: str, reported: Callable[[Batches], Batches] | None = None) -> Path:
        """The file of the shard's embeddings, made if it is not there, and brought here."""

        def images() -> Batches:
            batches = self._shards.batches(shard, self._batch_size)
            return reported(batches) if reported else batches

        content, sample_ids = self._shards.content(shard), self._shards.sample_ids(shard)
        return self.embedder.kept(content, len(sample_ids), images, sample_ids)

    def has(self, shard: str) -> bool:
        """Whether the shard's embeddings are there: nothing need be computed for them."""
        return self.embedder.find(self._shards.content(shard)) is not None

    def batches(self, shard: str, batch_size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, embeddings_N_E) over the whole shard in row order."""
        yield from row_batches(self.embed(shard), batch_size)

    def gather(self, catalog_rows: pd.DataFrame) -> NDArray[np.float32]:
        """embeddings_N_E of these catalog rows, in the order given."""
        gathered = np.empty((len(catalog_rows), self.embedder.embedded.width), dtype=np.float32)
        shards = catalog_rows["shard"].to_numpy(dtype=object)
        rows = catalog_rows["row"].to_numpy(dtype=np.int64)
        for shard in dict.fromkeys(shards):
            places = np.flatnonzero(shards == shard)
            there = self.embedder.find(self._shards.content(str(shard)))
            gathered[places] = read_rows(self.embed(str(shard)) if there is None else there, rows[places])
        return gathered
