"""Image sets out of packages: `benchmarks.sets`."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import sets
from benchmarks.sets import Picture
from vabal import sources


def noise(seed: int, side: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def test_a_set_has_each_picture_once_and_classes_of_enough_of_them(tmp_path: Path) -> None:
    flat = np.full((48, 48, 3), 7, dtype=np.uint8)
    pictures = [
        *(Picture(noise(seed), "often", f"group{seed // 2}") for seed in range(4)),
        Picture(noise(0), "rare", "again"),  # what was there before
        Picture(flat, "often", "shows nothing"),
        Picture(noise(9), "rare", "alone"),
    ]
    sets.write(iter(pictures), 2, tmp_path / "made.npz")
    items = list(sources.open_source(f"npz:{tmp_path / 'made.npz'}").items())
    assert [(item.label, item.group) for item in items] == [("often", f"group{seed // 2}") for seed in range(4)]


def test_icons_are_those_of_48_pixels_by_context_and_grouped_by_name(tmp_path: Path) -> None:
    theme = tmp_path / "apps" / "theme"  # a context's name above the package says nothing
    for place in ("48x48/devices/phone.png", "48/mimes/text.png", "32x32/devices/phone.png", "48x48/other/phone.png"):
        (theme / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(len(place))).save(theme / place)
    (theme / "48x48/devices/mobile.png").symlink_to("phone.png")
    found = sorted((picture.label, picture.group) for picture in sets.icons([theme]))
    assert found == [("devices", "phone"), ("mimetypes", "text")]


def test_clip_art_is_fitted_into_64_pixels_whatever_its_shape(tmp_path: Path) -> None:
    for place, size in (("animals/cat.png", (200, 100)), ("unsorted/x.png", (80, 80)), ("food/dot.png", (8, 8))):
        path = tmp_path / "usr/png" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", size, (0, 0, 0, 255)).save(path)
    (tmp_path / "usr/png/animals/broken.png").write_bytes(b"no picture")
    [cat] = sets.clipart([tmp_path])
    assert (cat.label, cat.group) == ("animals", "animals/cat.png")
    assert cat.pixels.shape == (64, 64, 3)
    assert (cat.pixels[32] == 0).all()
    assert (cat.pixels[[0, -1]] == 255).all()  # twice as wide as high, on white
