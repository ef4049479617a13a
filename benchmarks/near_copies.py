"""How many near copies are found in real sets, and how many of pictures that were saved anew.

    python -m benchmarks.near_copies digits elpv npz:PATH folder:PATH ...

Pairs in a set are false alarms but where the set itself has copies. docs/decisions/near-copies.md has the figures.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from vabal import sources
from vabal.images import near_copies, read
from vabal.settings.models import ImageSettings

DISTANCES = (8, 16, 24, 32, 40)
TWINS = 300  # pictures of a set that are saved anew


def saved(form: str, **options: Any) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return Image.open(buffer)

    return change


def resized(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize(
        (max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BICUBIC
    )


def cropped(image: Image.Image) -> Image.Image:
    side = max(1, min(image.size) // 50)
    return image.crop((side, side, image.width - side, image.height - side))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 95": saved("JPEG", quality=95),
    "JPEG 75": saved("JPEG", quality=75),
    "JPEG 50": saved("JPEG", quality=50),
    "WebP 75": saved("WEBP", quality=75),
    "size x 0.5": resized(0.5),
    "size x 1.5": resized(1.5),
    "size x 2": resized(2),
    "brighter": lambda image: image.point(lambda value: min(255, int(value * 1.1 + 5))),
    "cropped by 2 % a side": cropped,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def pictures(spec: str) -> Iterator[Image.Image]:
    settings = ImageSettings()
    if spec.startswith("noise"):  # noise16: random colours of 16 x 16
        side = int(spec.removeprefix("noise"))
        draws = np.random.default_rng(0)
        yield from (Image.fromarray(draws.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(1000))
        return
    for item in sources.open_source(spec).items(settings):
        yield read(item.data, settings).image


def measure(spec: str) -> None:
    begun = time.perf_counter()
    prints: list[bytes] = []
    some: list[Image.Image] = []
    for number, image in enumerate(pictures(spec)):
        prints.append(near_copies.fingerprint(image))
        if number % 20 == 0 and len(some) < TWINS:
            some.append(image)
    spent = 1e3 * (time.perf_counter() - begun) / len(prints)
    print(
        f"\n{spec}: {len(prints)} pictures, {spent:.2f} ms each to read and hash, {prints.count(b'')} without a print"
    )
    for distance in DISTANCES:
        begun = time.perf_counter()
        found = near_copies.pairs(prints, distance)
        touched = len({place for pair in found for place in pair})
        print(f"  distance {distance}: {len(found)} pairs, {touched} pictures, {time.perf_counter() - begun:.1f} s")
    for name, change in CHANGES.items():
        twins = [near_copies.fingerprint(change(image)) for image in some]
        originals = [near_copies.fingerprint(image) for image in some]
        shares = []
        for distance in DISTANCES:
            hits = set(near_copies.Index(originals, distance).near(twins))
            shares.append(np.mean([(place, place) in hits for place in range(len(some))]))
        print(
            f"  {name}: found " + ", ".join(f"{share:.1%} at {at}" for share, at in zip(shares, DISTANCES, strict=True))
        )


if __name__ == "__main__":
    for one in sys.argv[1:]:
        measure(one)
