"""Stand-ins of public data sets in their own file formats: a few dozen random images each."""

import atexit
import functools
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets

from tests.support.small_pools import file_of, picture
from vabal import sources
from vabal.settings.models import Params
from vabal.sources import InitReport
from vabal.sources.base import Source

NEU_FOLDERS = ("cr", "gg", "in", "pa", "ps", "rp", "rs", "sc", "sp")
ELPV_KINDS = [
    (share, kind) for kind in ("mono", "poly") for share in ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
]


def cifar10(root: Path, *, per_class: int = 10) -> Path:
    """Five batches and a test batch as Python 2 pickles; `per_class` training images and two test images a class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        count = per_class // 5 * 10
        _batch(folder / f"data_batch_{number}", number, {"labels": [index % 10 for index in range(count)]})
    _batch(folder / "test_batch", 6, {"labels": [index % 10 for index in range(20)]})
    _pickle(folder / "batches.meta", {"label_names": [f"class{index}" for index in range(10)], "num_vis": 3072})
    return root


def cifar100(root: Path, *, per_class: int = 2) -> Path:
    """One training and one test file; `per_class` training images and one test image a class."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", per_class * 100), ("test", 100)):
        fine = [index % 100 for index in range(count)]
        _batch(folder / name, len(name), {"fine_labels": fine, "coarse_labels": [label // 5 for label in fine]})
    names = {"fine_label_names": [f"fine{index}" for index in range(100)], "coarse_label_names": ["coarse"] * 20}
    _pickle(folder / "meta", names)
    return root


def neu(root: Path, *, per_class: int = 8) -> Path:
    """A folder a class with grey bitmaps of 64 x 64."""
    for place, name in enumerate(NEU_FOLDERS):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            (root / name / f"{number + 1}.bmp").write_bytes(file_of(picture(100 * place + number, 64, 64), "BMP"))
    return root


def elpv(root: Path, *, per_class: int = 12) -> Path:
    """The package `elpv_dataset` with its `data/labels.csv` in columns, in `root`."""
    data = root / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    lines = []
    for number in range(per_class * len(ELPV_KINDS)):
        share, kind = ELPV_KINDS[number % len(ELPV_KINDS)]
        name = f"images/cell{number + 1:04d}.png"
        (data / name).write_bytes(file_of(picture(number, 300, 300)))
        lines.append(f"{name}  {share:<20}  {kind}\n")
    (data / "labels.csv").write_text("".join(lines), encoding="utf-8")
    return root


def digits(*, per_class: int) -> Any:
    """scikit-learn's digits as it gives them, the first ones of each class."""
    found = sklearn.datasets.load_digits()
    rows = np.sort(np.concatenate([np.flatnonzero(found.target == digit)[:per_class] for digit in range(10)]))
    found.images, found.target = found.images[rows], found.target[rows]
    return found


@functools.cache
def few_digits() -> str:
    """The source `npz:PATH` of 40 digits of each class, there as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="digits-")
    atexit.register(folder.cleanup)
    found = digits(per_class=40)
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    np.savez(f"{folder.name}/few.npz", images=images, labels=found.target)
    return f"npz:{folder.name}/few.npz"


def _batch(path: Path, seed: int, labels: dict[str, list[int]]) -> None:
    count = len(next(iter(labels.values())))
    data = np.random.default_rng(seed).integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
    _pickle(path, {"batch_label": path.name, "data": data, "filenames": ["a.png"] * count, **labels})


def _pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def build(source: Source, folder: Path, **changes: Any) -> InitReport:
    """The pools of a source, with arguments that fit a few images."""
    chosen: dict[str, Any] = {"imbalance": None, "initial": 4, "holdout": 0.25, "seed": 0, "settings": Params()}
    return sources.build_pools(source, folder=folder, **{**chosen, **changes})
