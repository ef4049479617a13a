"""One image file: whether it is whole, how it lies, and its pixels in 8 bits, upright, without transparency.

Whatever a file cannot be read as is refused with a reason; nothing becomes black, grey or half a picture in silence.
"""

import hashlib
import importlib.metadata
import io
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vabal.files import sha256
from vabal.settings.base import BitDepth
from vabal.settings.models import ImageSettings

_FORMATS: Final = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "WEBP": ".webp",
    "PPM": ".ppm",
    "JPEG2000": ".jp2",
}
_DEPTHS: Final = (8, 10, 12, 14, 16)
_BITS_PER_SAMPLE: Final = 258  # TIFF's tags
_PHOTOMETRIC: Final = 262
_MAX_SAMPLE_VALUE: Final = 281
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_SLOPPY: Final = 16  # stray bytes before a JPEG's end, which some cameras write, and which cost no pixel


class Unreadable(Exception):  # noqa: N818  (a property of the file, told to the user with the others)
    """An image file that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Picture:
    """An image that was read to its end: upright, in mode L or RGB.

    `guessed_bits` is the depth that its values were taken to have where neither the file nor a setting says it.
    `first_of_several`: the file holds further pictures, which are not read.
    """

    image: Image.Image
    guessed_bits: int | None = None
    first_of_several: bool = False

    def digest(self) -> str:
        """Of size and pixels: equal for two files that show the same, in whatever format. Grey in colour is grey."""
        image = self.image
        if image.mode == "RGB":
            red, green, blue = image.split()
            if red.tobytes() == green.tobytes() == blue.tobytes():
                image = red
        return sha256(f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes())


def read(data: bytes, settings: ImageSettings) -> Picture:
    """The image, read to its end once.

    Raises Unreadable with the reason: empty, no image, damaged, too many bytes or pixels, values out of range.
    """
    too_large(len(data), settings)
    if data.startswith(b"version https://git-lfs.github.com/"):
        raise Unreadable("a pointer of Git LFS in the place of an image: `git lfs pull` brings it")
    with _opened(data) as image:
        pixels = image.width * image.height
        if pixels > settings.max_megapixels * 1e6:
            raise Unreadable(
                f"{image.width} x {image.height} pixels are more than images.max_megapixels = {settings.max_megapixels}"
            )
        several = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        upright, guessed = _grey_or_colour(image, data, settings.bit_depth)
        return Picture(upright.copy() if upright is image else upright, guessed, several)


def probe(data: bytes, settings: ImageSettings) -> tuple[int, int]:
    """Width and height, in pixels, upright as EXIF data say. Raises Unreadable, as `read` does."""
    return read(data, settings).image.size


def too_large(size: int, settings: ImageSettings) -> None:
    """Raise Unreadable if a file of this many bytes is empty or above `images.max_megabytes`."""
    if size == 0:
        raise Unreadable("the file is empty")
    if size > settings.max_megabytes * 1e6:
        raise Unreadable(f"{size / 1e6:.1f} MB are more than images.max_megabytes = {settings.max_megabytes}")


def decode(data: bytes, size: int, channels: int, bit_depth: BitDepth = "auto", *, check: bool = True) -> np.ndarray:
    """The image as uint8, size x size x channels: upright, transparency over white, resized with antialiasing.

    Grey of more than 8 bits is scaled from the range of its depth, which the file tells or else `bit_depth`; "auto"
    takes the smallest of 8, 10, 12, 14 and 16 bits that holds its values. Raises Unreadable if the bytes are no whole
    image; without `check`, a JPEG's stream is not looked at for what Pillow fills up with grey.
    """
    with _opened(data) as image:
        upright, _ = _grey_or_colour(image, data, bit_depth, check=check)
        mode = "L" if channels == 1 else "RGB"
        if upright.mode != mode:
            upright = upright.convert(mode)
        if upright.size != (size, size):
            upright = upright.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return np.asarray(upright, dtype=np.uint8).reshape(size, size, channels)


@cache
def decoder() -> str:
    """Names what decodes here: what another one decoded may differ.

    Twelve hex digits of this module and the libraries below it.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for library in ("pillow", "simplejpeg", "numpy"):
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return digest.hexdigest()[:12]


def shape(data: bytes) -> tuple[int, int, int]:
    """Width, height and channels (1 for grey, 3 for colour) of an image, upright. Raises Unreadable."""
    with _opened(data) as image:
        upright, _ = _grey_or_colour(image, data, "auto")
        return upright.width, upright.height, 1 if upright.mode == "L" else 3


def extension(data: bytes) -> str:
    """The file name extension of the image's format, as ".png"."""
    with _opened(data) as image:
        return _FORMATS.get(str(image.format), ".jpg")  # MPO: a JPEG that holds further pictures


def png(array_H_W_K: np.ndarray) -> bytes:
    """A PNG file of a uint8 image, H x W (grey) or H x W x 3 or H x W x 1."""
    array = array_H_W_K[..., 0] if array_H_W_K.ndim == 3 and array_H_W_K.shape[2] == 1 else array_H_W_K
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def for_browser(data: bytes, bit_depth: BitDepth = "auto", most: int | None = 1024) -> tuple[str, bytes]:
    """Media type and bytes of the image as a browser can show it to people.

    The file itself, if its format and size suit; else a PNG of the upright image: what is wider or higher than `most`
    pixels (None: nothing) is shrunk, what is below 128 is enlarged by whole pixels.
    """
    with _opened(data) as image:
        media = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}.get(
            str(image.format)
        )
        longest = max(image.size)
        plain = image.mode in ("L", "RGB", "P", "RGBA", "LA", "1", "CMYK")
        if media and plain and 128 <= longest <= (most or longest):
            return media, data
        upright, _ = _grey_or_colour(image, data, bit_depth)
        if longest < 128:
            factor = 256 // longest
            size = (upright.width * factor, upright.height * factor)
            upright = upright.resize(size, Image.Resampling.NEAREST)
        if most is not None:
            upright.thumbnail((most, most), Image.Resampling.BILINEAR)
        return "image/png", png(np.asarray(upright, dtype=np.uint8))


def thumbnail(data: bytes, side: int, bit_depth: BitDepth = "auto") -> Image.Image:
    """The upright image, in mode L or RGB, shrunk to at most `side` pixels a side; a smaller one as it is.

    Raises Unreadable. A JPEG is read at no more than the size that this takes, and not to its end.
    """
    with _opened(data) as image:
        image.draft(None, (2 * side, 2 * side))
        upright, _ = _grey_or_colour(image, data, bit_depth, check=False)
        small = upright.copy() if upright is image else upright
        small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return small


class _Quiet:
    """Warnings put aside as long as any thread is within: filters are the process's, and threads that came and went
    across each other would leave another's behind."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET: Final = _Quiet()


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The opened image. Everything that goes wrong with it inside the block becomes Unreadable."""
    with _QUIET:  # PIL warns of odd metadata and many pixels; what matters is checked here
        try:
            with _open(data) as image:
                yield image
        except Unreadable:
            raise
        except UnidentifiedImageError:
            raise Unreadable(f"no image, or in a format that is not read here ({', '.join(_FORMATS)})") from None
        except Image.DecompressionBombError as error:
            raise Unreadable(f"too many pixels: {error}") from None
        except MemoryError:
            raise Unreadable("too large for this machine's memory") from None
        except Exception as error:  # noqa: BLE001  (PIL's readers raise any type on damaged files)
            if isinstance(error.__cause__, KeyboardInterrupt):  # so Python wraps it where a reader is being imported
                raise error.__cause__ from None
            raise Unreadable(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _open(data: bytes) -> Image.Image:
    if data.startswith(_PNG):
        data = _without_texts(data)
    return Image.open(io.BytesIO(data), formats=list(_FORMATS))


# --- pixels -----------------------------------------------------------------------------------------------------------


def _grey_or_colour(
    image: Image.Image, data: bytes, bit_depth: BitDepth, *, check: bool = True
) -> tuple[Image.Image, int | None]:
    """The fully read image, upright, in mode L or RGB; and the bits that were guessed, None where there was no need."""
    stored = _stored_bits(image, data)
    image.load()
    if check and image.format in ("JPEG", "MPO"):
        _refuse_damage(data)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image, data, stored, bit_depth)
    if stored == 16:
        _refuse_dark_colours(image, bit_depth)
    return _without_transparency(image), None


def _refuse_dark_colours(image: Image.Image, bit_depth: BitDepth) -> None:
    """PIL reads the upper 8 of a colour's 16 bits: what a camera of 10 to 14 bits wrote would be nearly black."""
    colours = [band for band in image.getbands() if band != "A"]
    brightest = max(int(image.getchannel(band).getextrema()[1]) for band in colours)  # type: ignore[arg-type]
    if brightest < 64 and bit_depth != 16:
        raise Unreadable(
            "16 bits a colour that use the lowest quarter only, perhaps 10 to 14 bits of a camera: save it with 8 bits "
            "a colour, or set images.bit_depth: 16 if it is meant to be so dark"
        )
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _without_transparency(image: Image.Image) -> Image.Image:
    """In mode L or RGB; what is transparent, by alpha or by a transparent colour, over white."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(white, rgba).convert("RGB")
        return flat.getchannel(0) if grey else flat
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _deep_grey(image: Image.Image, data: bytes, stored: int, bit_depth: BitDepth) -> tuple[Image.Image, int | None]:
    """Grey of more than 8 bits or in floating point, in 8 bits; and its depth where that was guessed."""
    values_H_W = np.asarray(image)
    low, high = float(values_H_W.min()), float(values_H_W.max())
    guessed = None
    if values_H_W.dtype.kind == "f":
        if not (low >= 0 and high <= 255):
            raise Unreadable(f"floating-point grey values from {low:g} to {high:g}; 0 to 1 or 0 to 255 are read here")
        scale = 255.0 if high <= 1 else 1.0
    else:
        if low < 0 or high > 65535:
            raise Unreadable(f"grey values from {low:g} to {high:g}; 0 to 65535 are read here")
        bits = _told_bits(image, data, stored, values_H_W) or (None if bit_depth == "auto" else bit_depth)
        if bits is None:
            bits = guessed = next(bits for bits in _DEPTHS if high < 2**bits)
        if high >= 2**bits:
            raise Unreadable(f"a grey value of {high:g}, but images.bit_depth is {bits}, up to {2**bits - 1}")
        scale = 255 / (2**bits - 1)
    grey_H_W = np.rint(values_H_W.astype(np.float64) * scale).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey_H_W[values_H_W == transparent] = 255
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        grey_H_W = 255 - grey_H_W  # 0 is white; PIL turns values of up to 8 bits only
    return Image.fromarray(grey_H_W), guessed


def _told_bits(image: Image.Image, data: bytes, stored: int, values_H_W: np.ndarray) -> int | None:
    """The depth of the grey values as the file tells it; None where it tells nothing, or nothing true."""
    told: int | None = None
    if image.format in ("PPM", "JPEG2000"):
        return 16 if stored < 16 else None  # PIL has scaled them
    if image.format == "TIFF":
        most = image.tag_v2.get(_MAX_SAMPLE_VALUE)  # type: ignore[attr-defined]
        told = stored if 8 < stored < 16 else int(most[0]).bit_length() if most else None
    elif image.format == "PNG":
        told = next((body[0] for kind, body, _ in _chunks(data) if kind == b"sBIT" and body), None)
        if told is not None and 8 <= told < 16 and not (values_H_W & ((1 << (16 - told)) - 1)).any():
            told = 16  # as PNG asks for it: what has fewer bits stands at the upper end
    return told if told is not None and 8 <= told <= 16 and values_H_W.max() < 2**told else None


def _stored_bits(image: Image.Image, data: bytes) -> int:
    """How many bits of a channel the file has. To be asked before the image is loaded."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0])  # type: ignore[attr-defined]
    if image.format == "PPM":
        arguments = image.tile[0].args if image.tile else None  # type: ignore[attr-defined]
        largest = arguments[-1] if isinstance(arguments, tuple) else None
        return largest.bit_length() if isinstance(largest, int) and largest > 255 else 8
    place = data.find(b"\xff\x4f\xff\x51") if image.format == "JPEG2000" else -1
    return (data[place + 42] & 0x7F) + 1 if place >= 0 else 8


# --- JPEG and PNG from inside -----------------------------------------------------------------------------------------


def _refuse_damage(jpeg: bytes) -> None:
    """Raise Unreadable for a JPEG whose stream was cut or broken: PIL fills up what is missing with grey."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", fastdct=True, fastupsample=True, min_factor=8, strict=True)
    except ValueError as error:
        said = str(error)
        stray = re.search(r"(\d+) extraneous bytes before marker 0xd9", said)
        broken = said.startswith(("Corrupt JPEG data", "Premature end"))
        if broken and not (stray and int(stray[1]) <= _SLOPPY):
            raise Unreadable(f"damaged: {said}") from None


def _chunks(png_file: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, body, the whole chunk as it stands) of a PNG's chunks, to the file's end."""
    place = len(_PNG)
    while place < len(png_file):
        length = int.from_bytes(png_file[place : place + 4], "big")
        whole = png_file[place : place + 12 + length]
        yield whole[4:8], whole[8 : 8 + length], whole
        place += len(whole)


def _without_texts(png_file: bytes) -> bytes:
    """The PNG without texts and profiles, which PIL refuses above 1 MB; but with those that say which side is up."""
    kept = [_PNG]
    for kind, body, whole in _chunks(png_file):
        tells_side = body.startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"))
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") or (tells_side and not _unpacks_large(body)):
            kept.append(whole)
    return b"".join(kept)


def _unpacks_large(body: bytes) -> bool:
    """Whether the packed text in a chunk is above PIL's limit."""
    place = body.find(b"\x78", body.find(b"\0"))  # where a zlib stream begins
    try:
        return len(zlib.decompressobj().decompress(body[place:], ImageFile.SAFEBLOCK + 1)) > ImageFile.SAFEBLOCK
    except zlib.error:
        return len(body) > ImageFile.SAFEBLOCK
