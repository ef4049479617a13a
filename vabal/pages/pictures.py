"""Images of the pool as a page holds them: inside it, at their own size or smaller, so that together they fit."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd
from PIL import Image

from vabal import images
from vabal.errors import UserError
from vabal.settings.base import BitDepth

MOST_BYTES: Final = 12_000_000  # of all pictures of a page; in base64 they are a third more
SIDES: Final = (224, 160, 112, 80, 56)  # pixels: the longest side of a picture, the more pictures the smaller
_EXACT: Final = 64  # up to here a picture is a PNG, whose every pixel is the image's


@dataclass(frozen=True)
class Picture:
    """An image in the page, and words for those who do not see it; without a `source` the words stand in its place."""

    words: str
    source: str = ""
    width: int = 0
    height: int = 0

    def saying(self, words: str) -> "Picture":
        return replace(self, words=words if self.source else f"{words} ({self.words})")


def pictures(
    data: Path, rows: pd.DataFrame, uses: Mapping[str, int], bit_depth: BitDepth = "auto"
) -> dict[str, Picture]:
    """A picture of each of these catalog rows, by sample id; `uses` says how often the page shows each.

    One that cannot be made says why in its words. All of them, as often as they are used, have at most MOST_BYTES, as
    far as pictures of the smallest side allow.
    """
    allowed = MOST_BYTES / max(sum(uses.values()), 1)
    made: dict[str, Picture] = {}
    for shard, of_shard in rows.groupby("shard"):
        try:
            for sample_id, content in images.encoded_many(data, of_shard):
                made[sample_id] = _picture(content, allowed, bit_depth)
        except UserError:
            missing = Picture(f"no picture: shard {shard} cannot be read")
            made = {**dict.fromkeys(of_shard["sample_id"], missing), **made}
    return made


def _picture(content: bytes, allowed: float, bit_depth: BitDepth) -> Picture:
    try:
        image = images.thumbnail(content, SIDES[0], bit_depth)
    except images.Unreadable as reason:
        return Picture(f"no picture: {reason}")
    media, small, encoded = _fitting(image, allowed)
    source = f"data:image/{media};base64,{base64.b64encode(encoded).decode()}"
    return Picture("", source, small.width, small.height)


def _fitting(image: Image.Image, allowed: float) -> tuple[str, Image.Image, bytes]:
    """Media type, picture and bytes: the largest that is allowed, else the smallest there is."""
    if max(image.size) <= _EXACT and len(exact := _encoded(image, "PNG")) <= allowed:
        return "png", image, exact
    for side in SIDES:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.BILINEAR)
        encoded = _encoded(small, "JPEG")
        if len(encoded) <= allowed:
            break
    return "jpeg", small, encoded


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **({"quality": 82} if form == "JPEG" else {}))
    return buffer.getvalue()
