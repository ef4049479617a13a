from pathlib import Path

import numpy as np

from vabal.benchmark.cells import prepare
from vabal.images.shards import png


def test_overlapping_images_whose_groups_nobody_knows_are_told_of(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64), dtype=np.uint8)
    (tmp_path / "neu").mkdir()
    for place, image in enumerate(images):
        (tmp_path / "neu" / f"{('cr', 'gg')[place % 2]}_{place}.png").write_bytes(png(image))
    found = prepare(f"neu:{tmp_path / 'neu'}", {}, tmp_path / "cache").caveat
    assert found is not None
    assert found.startswith("optimistic: many of these images overlap")
    arrays = {"images": images, "labels": np.arange(8) % 2}
    np.savez(tmp_path / "known.npz", groups=np.arange(8) // 2, **arrays)  # type: ignore[arg-type]
    assert prepare(f"npz:{tmp_path / 'known.npz'}", {}, tmp_path / "cache").caveat is None
