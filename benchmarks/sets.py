"""Image sets that nobody tuned on, out of Debian's packages: `python -m benchmarks.sets PACKAGES OUT`.

PACKAGES is a folder into which the packages of `PACKAGES_OF` were unpacked, each into a folder of its own name:

    apt-get download NAME && dpkg -x NAME_*.deb NAME

Writes `fmnist.npz`, `icons.npz` and the others of `MADE` to OUT, for `--source npz:OUT/icons.npz`: uint8 images,
labels, the names of the classes, and the groups of images that belong on one side of a split.
"""

import argparse
import gzip
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PACKAGES_OF: Final = {
    "fmnist": ("dataset-fashion-mnist",),
    "icons": (
        "oxygen-icon-theme",
        "gnome-icon-theme",
        "faenza-icon-theme",
        "elementary-xfce-icon-theme",
        "deepin-icon-theme",
        "gnome-icon-theme-nuovo",
        "gnome-brave-icon-theme",
    ),
    "emoji": ("fonts-noto-color-emoji", "unicode-data"),
    "clipart": ("openclipart-png",),
    "icons2": ("obsidian-icon-theme", "lxde-icon-theme", "tango-icon-theme", "gnome-icon-theme-yasis"),
    "units": ("wesnoth-1.16-data",),
    "terrain": ("wesnoth-1.16-data",),
    "glyphs": (),  # every package there that has typefaces
}
CONTEXTS: Final = ("actions", "apps", "categories", "devices", "emblems", "emotes", "mimetypes", "places", "status")
_FLAT: Final = 3  # grey levels of deviation, below which a picture shows nothing


class Picture(NamedTuple):
    pixels: NDArray[np.uint8]
    label: str
    group: str


def icons(folders: list[Path]) -> Iterator[Picture]:
    """Icons of 48 pixels by their freedesktop context; those of one name, in whichever theme, are a group."""
    for folder in folders:
        for path in sorted(folder.rglob("*.png")):
            contexts = ["mimetypes" if part == "mimes" else part for part in path.relative_to(folder).parts]
            found = [part for part in contexts if part in CONTEXTS]
            if found and not path.is_symlink() and any(re.fullmatch("48(x48)?", part) for part in path.parts):
                yield Picture(_on_ground(Image.open(path).convert("RGBA").resize((48, 48)), 200), found[0], path.stem)


def emoji(folders: list[Path]) -> Iterator[Picture]:
    """Emoji of at most two code points, 64 pixels, by Unicode's groups; those of one base character are a group."""
    font = ImageFont.truetype(str(next(folders[0].rglob("*.ttf"))), 109)
    label = ""
    for line in next(folders[1].rglob("emoji-test.txt")).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            label = line.split(":")[1].strip()
        codes = line.split(";")[0].split()
        if "fully-qualified" in line and not line.startswith("#") and len(codes) <= 2:
            canvas = Image.new("RGB", (136, 136), (255, 255, 255))
            said = "".join(chr(int(code, 16)) for code in codes)
            ImageDraw.Draw(canvas).text((0, 4), said, font=font, embedded_color=True)
            yield Picture(np.asarray(canvas.resize((64, 64), Image.Resampling.BILINEAR)), label, codes[0])


def clipart(folders: list[Path]) -> Iterator[Picture]:
    """Clip art by its topmost folder, fitted into 64 pixels."""
    root = next(folders[0].rglob("png/animals")).parent
    Image.MAX_IMAGE_PIXELS = None
    for path in sorted(root.rglob("*.png")):
        label = path.relative_to(root).parts[0]
        if path.is_symlink() or label in ("unsorted", "special"):
            continue
        try:
            picture = Image.open(path).convert("RGBA")
        except OSError as error:
            print(f"left out: {path.relative_to(root)}: {error}")
            continue
        if min(picture.size) < 16:
            continue
        picture.thumbnail((64, 64))
        whole = Image.new("RGBA", (64, 64))
        whole.paste(picture, ((64 - picture.width) // 2, (64 - picture.height) // 2))
        yield Picture(_on_ground(whole, 255), label, str(path.relative_to(root)))


def units(folders: list[Path]) -> Iterator[Picture]:
    """A game's sprites by people, 72 pixels; the frames of one unit are a group."""
    root = next(folders[0].rglob("core/images/units"))
    for path in sorted(root.rglob("*.png")):
        people, *rest = path.relative_to(root).parts
        if rest:
            unit = re.split(r"[-+0-9\[]", path.name.split(".")[0])[0]
            yield Picture(_squeezed(Image.open(path)), people, f"{people}/{unit}")


def terrain(folders: list[Path]) -> Iterator[Picture]:
    """A game's tiles by kind of ground, 72 pixels; tiles whose names begin alike are a group."""
    root = next(folders[0].rglob("core/images/terrain"))
    for path in sorted(root.rglob("*.png")):
        kind, *rest = path.relative_to(root).parts
        if rest and kind not in ("masks", "light", "void", "fog", "off-map", "misc"):
            tile = Image.open(path)
            begin = re.sub("[0-9]+", "", path.name.split(".")[0])[:8]
            yield Picture(
                _squeezed(tile.crop((0, 0, 216, 216)) if max(tile.size) > 300 else tile), kind, f"{kind}/{begin}"
            )


def glyphs(folders: list[Path]) -> Iterator[Picture]:
    """Ten letters of every typeface, 56 pixels; those of one family are a group."""
    faces = sorted(path for folder in folders for end in ("ttf", "otf") for path in folder.rglob(f"*.{end}"))
    for path in faces:
        family = re.split("[-_0-9]", path.stem)[0][:9]
        for letter in "abcdeghkst":
            canvas = Image.new("L", (56, 56), 255)
            draw = ImageDraw.Draw(canvas)
            try:
                font = ImageFont.truetype(str(path), 40)
                left, top, right, bottom = draw.textbbox((0, 0), letter, font=font)
                draw.text((28 - (left + right) / 2, 28 - (top + bottom) / 2), letter, font=font, fill=0)
            except OSError as error:
                print(f"left out: {path.name}: {letter}: {error}")
                continue
            yield Picture(np.repeat(np.asarray(canvas)[:, :, None], 3, axis=2), letter, family)


def fashion(folders: list[Path]) -> Iterator[Picture]:
    """10 000 of Fashion-MNIST's training images, drawn at random."""
    images = gzip.decompress(next(folders[0].rglob("train-images-idx3-ubyte.gz")).read_bytes())
    labels = gzip.decompress(next(folders[0].rglob("train-labels-idx1-ubyte.gz")).read_bytes())
    pixels_N_H_W = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    for row in np.random.default_rng(0).permutation(len(pixels_N_H_W))[:10_000].tolist():
        yield Picture(pixels_N_H_W[row], str(labels[8 + row]), str(row))


MADE: Final[dict[str, tuple[Callable[[list[Path]], Iterator[Picture]], int]]] = {  # with the least images of a class
    "fmnist": (fashion, 1),
    "icons": (icons, 1),
    "emoji": (emoji, 1),
    "clipart": (clipart, 30),
    "icons2": (icons, 40),
    "units": (units, 40),
    "terrain": (terrain, 40),
    "glyphs": (glyphs, 40),
}


def _on_ground(picture: Image.Image, grey: int) -> NDArray[np.uint8]:
    ground = Image.new("RGBA", picture.size, (grey, grey, grey, 255))
    ground.alpha_composite(picture)
    return np.asarray(ground.convert("RGB"))


def _squeezed(picture: Image.Image) -> NDArray[np.uint8]:
    whole = Image.fromarray(_on_ground(picture.convert("RGBA"), 128))
    return np.asarray(whole.resize((72, 72), Image.Resampling.BILINEAR))


def write(pictures: Iterator[Picture], least: int, path: Path) -> None:
    """An npz source of the pictures that show something, each once, of classes that have so many."""
    kept: dict[str, Picture] = {}
    for picture in pictures:
        if picture.pixels.std() >= _FLAT:
            kept.setdefault(sha256(picture.pixels.tobytes()).hexdigest(), picture)
    labels = [picture.label for picture in kept.values()]
    classes = sorted(label for label in set(labels) if labels.count(label) >= least)
    chosen = [picture for picture in kept.values() if picture.label in classes]
    np.savez(
        path,
        images=np.stack([picture.pixels for picture in chosen]),
        labels=np.array([classes.index(picture.label) for picture in chosen]),
        groups=np.array([picture.group for picture in chosen]),
        classes=np.array(classes),
    )
    print(path.name, len(chosen), {label: labels.count(label) for label in classes})


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.sets", description=__doc__)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    for name, (make, least) in MADE.items():
        packages = PACKAGES_OF[name]
        folders = [given.packages / package for package in packages] if packages else [given.packages]
        missing = [folder.name for folder in folders if not folder.is_dir()]
        if missing:
            raise SystemExit(f"{given.packages}: not unpacked there: {', '.join(missing)}")
        given.out.mkdir(parents=True, exist_ok=True)
        write(make(folders), least, given.out / f"{name}.npz")


if __name__ == "__main__":
    main()
