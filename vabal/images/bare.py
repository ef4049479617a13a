"""An image file without what it says beside its pixels: texts, EXIF, thumbnails, names of files, times."""

import io
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vabal.images.decoding import png, read
from vabal.settings.models import ImageSettings

_JPEG: Final = b"\xff\xd8"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
# What a PNG's pixels need: all critical chunks (in capitals) and these.
_PNG_CHUNKS: Final = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD"}
_PNG_SAVES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_ADOBE: Final = 0xEE  # which colours a JPEG's channels are; a JFIF header says it too
_JFIF: Final = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_WITHOUT_BODY: Final = {0x00, 0x01, 0xFF, *range(0xD0, 0xD8)}


def without_metadata(data: bytes) -> bytes:
    """The same picture in a file that says nothing else; `data` is a file that can be read.

    JPEG and PNG keep their compressed pixels as they are, and which side is up; the first picture of any other format
    becomes a PNG, in its own depth where PNG has it, else in 8 bits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of odd metadata and many pixels
        with Image.open(io.BytesIO(data)) as image:
            side = image.getexif().get(ExifTags.Base.Orientation, 1)
            if data.startswith(_JPEG):
                start, *parts = _jpeg_parts(data)
                return b"".join([start, *_orientation(side), *parts])
            if data.startswith(_PNG) and side == 1:
                return b"".join([_PNG, *_png_chunks(data)])
            return _as_png(image, data)


def _png_chunks(data: bytes) -> Iterator[bytes]:
    place = len(_PNG)
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big") + 12
        kind = data[place + 4 : place + 8]
        if kind[:1].isupper() or kind in _PNG_CHUNKS:
            yield data[place : place + size]
        if kind == b"IEND":
            return
        place += size


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """The segments and scans of a JPEG, to the end of its picture, without comments and what programs added."""
    yield _JPEG
    place = data.find(b"\xff", len(_JPEG))
    while 0 <= place < len(data) - 1:
        marker = data[place + 1]
        if marker == _END:
            break
        if marker in _WITHOUT_BODY:
            place = data.find(b"\xff", place + 1)
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN:
            end = _end_of_scan(data, end)
        if data.startswith(b"JFIF\0", place + 4):
            yield _JFIF
        elif marker != _COMMENT and (marker == _ADOBE or not 0xE0 <= marker <= 0xEF):
            yield data[place:end]
        place = data.find(b"\xff", end)
    yield b"\xff\xd9"


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker stands that ends the scan's pixels."""
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 1 >= len(data):
            return len(data)
        if data[place + 1] not in _WITHOUT_BODY:
            return place
        place += 1


def _orientation(side: int) -> list[bytes]:
    if side not in range(2, 9):
        return []
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = side
    body = exif.tobytes()
    return [b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body]


def _as_png(image: Image.Image, data: bytes) -> bytes:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode not in _PNG_SAVES:
        return png(np.asarray(read(data, _ANY).image))
    image.info = {key: value for key, value in image.info.items() if key == "transparency"}
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=b"")
    return buffer.getvalue()


_ANY: Final = ImageSettings(max_megabytes=1e6, max_megapixels=1e6)
