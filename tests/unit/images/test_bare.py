"""Files without metadata show the same and say nothing else."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.small_pools import picture, saved
from vabal import images
from vabal.images.bare import without_metadata
from vabal.settings.models import ImageSettings

TELLING = "crack-0007"


def exif(side: int = 1) -> Image.Exif:
    made = Image.Exif()
    made[0x010E], made[0x0112] = TELLING, side
    return made


def texts() -> PngInfo:
    info = PngInfo()
    info.add_text("Title", TELLING)
    info.add_itxt("XML:com.adobe.xmp", f"<x>{TELLING}</x>")
    return info


COLOUR = Image.fromarray(picture(0, 24, 40, 3))
GREY = Image.fromarray(picture(1, 24, 40))
DEEP = Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60)
XMP = f"<x>{TELLING}</x>".encode()
FILES = {
    "png": saved(COLOUR, pnginfo=texts(), exif=exif()),
    "png on its side": saved(COLOUR, pnginfo=texts(), exif=exif(6)),
    "png of 16 bits": saved(DEEP, pnginfo=texts()),
    "png, 16 bits, on its side": saved(DEEP, exif=exif(8)),
    "png of a palette with a transparent colour": saved(
        COLOUR.convert("P"), pnginfo=texts(), transparency=3, icc_profile=TELLING.encode()
    ),
    "jpeg": saved(COLOUR, "JPEG", exif=exif(), comment=TELLING, icc_profile=TELLING.encode() * 9000, xmp=XMP),
    "jpeg on its side": saved(COLOUR, "JPEG", exif=exif(6), comment=TELLING),
    "jpeg, progressive": saved(COLOUR, "JPEG", exif=exif(), progressive=True, quality=95),
    "jpeg, whole colours": saved(COLOUR, "JPEG", exif=exif(), subsampling=0, keep_rgb=True),
    "jpeg with restarts": saved(COLOUR, "JPEG", exif=exif(3), restart_marker_rows=1),
    "jpeg of printers' colours": saved(COLOUR.convert("CMYK"), "JPEG", exif=exif()),
    "jpeg, grey": saved(GREY, "JPEG", comment=TELLING) + TELLING.encode(),
    "mpo": saved(COLOUR, "MPO", save_all=True, append_images=[COLOUR.rotate(90)], exif=exif()),
    "tiff": saved(COLOUR, "TIFF", description=TELLING, exif=exif()),
    "tiff of 16 bits": saved(DEEP, "TIFF", description=TELLING),
    "tiff of numbers": saved(Image.fromarray(np.asarray(GREY, np.float32)), "TIFF", description=TELLING),
    "webp": saved(COLOUR, "WEBP", exif=exif(6), xmp=XMP, lossless=True),
    "gif": saved(COLOUR.convert("P"), "GIF", comment=TELLING, transparency=7),
    "bmp": saved(COLOUR, "BMP"),
    "ppm": saved(GREY, "PPM").replace(b"P5\n", f"P5\n# {TELLING}\n".encode()),
    "jpeg 2000": saved(COLOUR, "JPEG2000", comment=TELLING),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_pixels_stay_and_the_words_go(kind: str) -> None:
    before, after = FILES[kind], without_metadata(FILES[kind])
    assert after.count(TELLING.encode()) == 0
    shown, was = (images.read(data, ImageSettings()).image for data in (after, before))
    assert shown.mode == was.mode
    assert (np.asarray(shown) == np.asarray(was)).all()
    with Image.open(io.BytesIO(after)) as image:
        assert not {"comment", "xmp", "icc_profile", "Title", "XML:com.adobe.xmp", "mp"} & {*image.info}
        assert not {*image.getexif()} - {0x0112}
        assert image.mode.startswith("I") == ("16 bits" in kind)


def test_a_file_that_says_nothing_stays_as_it_is() -> None:
    for form in ("PNG", "JPEG"):
        plain = saved(COLOUR, form)
        assert without_metadata(plain) == plain
