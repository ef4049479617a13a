"""Image sets out of packages: `benchmarks.sets`."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

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


def test_a_game_s_pictures_are_grouped_by_what_they_show(tmp_path: Path) -> None:
    images = tmp_path / "core/images"
    for place in (
        "units/elves/archer-attack1.png",
        "units/elves/archer+female.png",
        "units/alone.png",
        "terrain/cave/wall-a1.png",
        "terrain/cave/wall-a2.png",
        "terrain/fog/none.png",
    ):
        (images / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(len(place), 90)).save(images / place)
    assert [(unit.label, unit.group) for unit in sets.units([tmp_path])] == [("elves", "elves/archer")] * 2
    tiles = list(sets.terrain([tmp_path]))
    assert [(tile.label, tile.group, tile.pixels.shape) for tile in tiles] == [("cave", "cave/wall-a", (72, 72, 3))] * 2


def test_letters_are_drawn_of_every_typeface_and_grouped_by_family(tmp_path: Path) -> None:
    default = ImageFont.load_default(40)  # which comes with Pillow
    assert isinstance(default, ImageFont.FreeTypeFont)
    for name in ("Plain-Bold.ttf", "Plain-Italic.ttf"):
        (tmp_path / name).write_bytes(default.font_bytes)
    (tmp_path / "broken.ttf").write_bytes(b"no typeface")
    drawn = list(sets.glyphs([tmp_path]))
    assert [(letter.label, letter.group) for letter in drawn] == [(letter, "Plain") for letter in "abcdeghkst"] * 2
    assert drawn[0].pixels.shape == (56, 56, 3)
    assert not np.array_equal(drawn[0].pixels, drawn[1].pixels)
