"""Files as cameras, scanners and editors write them: each is read as it is meant, or refused with a reason."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.support.small_pools import file_of, picture, saved
from vabal import images
from vabal.images import Unreadable
from vabal.settings.base import BitDepth
from vabal.settings.models import ImageSettings

LIMITS = ImageSettings()
COLOURS: list[tuple[str, Any]] = [("L", 7), ("1", 0), ("P", 3)]  # a mode, and which of its values is transparent


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(values: np.ndarray, *more: bytes) -> bytes:
    """A PNG of 16 bits a channel, grey or RGB, with further chunks before its pixels."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def smooth(height: int = 120, width: int = 160) -> Image.Image:
    """A picture as JPEG likes them: colours that change slowly."""
    return Image.fromarray(picture(0, 12, 16, 3)).resize((width, height), Image.Resampling.BICUBIC)


def grey(data: bytes, size: int = 2, bit_depth: BitDepth = "auto") -> list[list[int]]:
    array: list[list[int]] = images.decode(data, size, 1, bit_depth)[..., 0].tolist()
    return array


# --- what is transparent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "colour", "form"),
    [("RGB", (255, 0, 0), "PNG"), *((mode, colour, form) for mode, colour in COLOURS for form in ("PNG", "GIF"))],
)
def test_a_transparent_colour_becomes_white_in_every_mode(mode: str, colour: Any, form: str) -> None:
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 0, 0)])
    decoded = images.decode(saved(image, form, transparency=colour), 8, 3)
    assert (decoded == 255).all()


@pytest.mark.parametrize(
    ("mode", "form"), [("LA", "PNG"), ("LA", "TIFF"), ("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP")]
)
def test_alpha_becomes_white(mode: str, form: str) -> None:
    clear = Image.new(mode, (8, 8), (0,) * len(mode))
    assert (images.decode(saved(clear, form), 8, 3) == 255).all()
    assert images.shape(saved(clear, form)) == (8, 8, 1 if mode == "LA" else 3)


def test_partly_transparent_palettes_and_greys_are_mixed_with_white() -> None:
    half = Image.new("LA", (8, 8), (100, 51))
    assert set(images.decode(saved(half), 8, 1).ravel()) == {224}
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 100, 100, 100])
    assert set(images.decode(saved(image, transparency=bytes([255, 51])), 8, 3).ravel()) == {224}


def test_a_transparent_grey_or_colour_of_16_bits_becomes_white() -> None:
    deep = np.array([[0, 300], [300, 65535]], dtype=np.uint16)
    assert grey(saved(Image.fromarray(deep), transparency=300)) == [[0, 255], [255, 255]]
    colours = np.full((2, 2, 3), 40000, dtype=np.uint16)
    assert (images.decode(deep_png(colours, chunk(b"tRNS", struct.pack(">HHH", *[40000] * 3))), 2, 3) == 255).all()


# --- more than 8 bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_a_16_bit_file_fill_the_range(bits: int, form: str) -> None:
    top = 2**bits - 1
    deep = np.array([[0, top // 2], [top, top]], dtype=np.uint16)
    assert grey(file_of(deep, form)) == [[0, 127], [255, 255]]


def test_the_settings_depth_scales_every_image_of_a_pool_alike() -> None:
    dark = file_of(np.array([[0, 257], [514, 257 * 3]], dtype=np.uint16))
    assert grey(dark, bit_depth=16) == [[0, 1], [2, 3]]
    assert grey(file_of(np.full((2, 2), 511, dtype=np.uint16)), bit_depth=12) == [[32, 32], [32, 32]]
    with pytest.raises(Unreadable, match=r"a grey value of 5000, but images\.bit_depth is 12, up to 4095"):
        grey(file_of(np.full((2, 2), 5000, dtype=np.uint16)), bit_depth=12)


def test_a_depth_that_had_to_be_guessed_is_told() -> None:
    twelve = file_of(np.full((2, 2), 3000, dtype=np.uint16))
    assert images.read(twelve, LIMITS).guessed_bits == 12
    assert images.read(twelve, ImageSettings(bit_depth=12)).guessed_bits is None
    assert images.read(file_of(picture(0)), LIMITS).guessed_bits is None


def test_what_a_file_says_of_its_depth_comes_first() -> None:
    dark = np.array([[0, 100], [511, 1023]], dtype=np.uint16)
    for told in (4095, 3000):  # the range, or the largest value there is
        tagged = file_of(dark, "TIFF", tiffinfo={281: told})
        assert grey(tagged, bit_depth=16) == [[0, 6], [32, 64]]
        assert images.read(tagged, LIMITS).guessed_bits is None
    assert grey(file_of(dark, "TIFF", tiffinfo={281: 700})) == grey(file_of(dark))  # which cannot be true
    assert grey(deep_png(dark, chunk(b"sBIT", b"\x0c")), bit_depth=16) == [[0, 6], [32, 64]]
    shifted = dark << 4  # as PNG asks for
    assert grey(deep_png(shifted, chunk(b"sBIT", b"\x0c"))) == [[0, 6], [32, 64]]
    pgm = b"P5\n2 2\n4095\n" + dark.astype(">u2").tobytes()
    assert grey(pgm) == [[0, 6], [32, 64]]


@pytest.mark.parametrize(("array", "expected"), [(np.uint8(200), 55), (np.uint16(64000), 6), (np.uint16(0), 255)])
def test_a_tiff_in_which_0_is_white_is_read_so_at_any_depth(array: np.generic, expected: int) -> None:
    told = struct.pack("<HHI", 262, 3, 1)  # BlackIsZero
    written = file_of(np.full((8, 8), array), "TIFF")
    assert written.count(told) == 1
    assert grey(written.replace(told + b"\1\0", told + b"\0\0")) == [[expected] * 2] * 2


def test_a_pointer_of_git_lfs_is_told_as_one() -> None:
    with pytest.raises(Unreadable, match="git lfs pull"):
        images.read(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", LIMITS)


def test_a_tiff_of_12_bits_a_value_is_read() -> None:
    values = np.array([[0, 4095], [2048, 16]], dtype=np.uint16)
    packed = b"".join(
        bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255]) for first, second in values.tolist()
    )
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 2)]
    tags += [(279, 4, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 14) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert grey(data, bit_depth=16) == [[0, 255], [128, 1]]


def test_dark_colours_of_16_bits_are_refused_and_never_black() -> None:
    camera = deep_png(np.full((4, 4, 3), 4095, dtype=np.uint16))
    with pytest.raises(Unreadable, match=r"lowest quarter only.*images\.bit_depth: 16"):
        images.decode(camera, 4, 3)
    assert set(images.decode(camera, 4, 3, 16).ravel()) == {15}
    ppm = b"P6\n2 2\n65535\n" + np.full((2, 2, 3), 4095, ">u2").tobytes()
    with pytest.raises(Unreadable, match="lowest quarter"):
        images.decode(ppm, 2, 3)
    assert set(images.decode(b"P6\n2 2\n4095\n" + np.full((2, 2, 3), 4095, ">u2").tobytes(), 2, 3).ravel()) == {255}
    bright = deep_png(np.full((4, 4, 3), 40000, dtype=np.uint16))
    assert set(images.decode(bright, 4, 3).ravel()) == {156}


# --- damage, and what is none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_jpeg_that_was_cut_and_closed_is_damaged(mode: str, options: dict[str, Any], share: float) -> None:
    whole = saved(smooth().convert(mode), "JPEG", quality=90, **options)
    assert images.probe(whole, LIMITS) == (160, 120)
    half = whole[: int(len(whole) * share)] + b"\xff\xd9"
    for read in (lambda: images.probe(half, LIMITS), lambda: images.decode(half, 32, 3)):
        with pytest.raises(Unreadable, match="damaged: "):
            read()


def test_a_jpeg_with_a_hole_is_damaged() -> None:
    whole = saved(smooth(), "JPEG", quality=90)
    middle = len(whole) // 2
    with pytest.raises(Unreadable, match="damaged: "):
        images.probe(whole[:middle] + whole[middle + 300 :], LIMITS)


def test_a_jpeg_with_something_behind_its_end_or_few_stray_bytes_is_whole() -> None:
    whole = saved(smooth(), "JPEG")
    assert images.probe(whole + b"appended by a camera" * 100, LIMITS) == (160, 120)
    assert images.probe(whole[:-2] + bytes(4) + whole[-2:], LIMITS) == (160, 120)


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000"])
def test_a_file_of_any_format_that_was_cut_is_damaged(form: str) -> None:
    whole = saved(smooth(), form)
    assert images.probe(whole, LIMITS) == (160, 120)
    for share in (0.5, 0.9):
        with pytest.raises(Unreadable):
            images.probe(whole[: int(len(whole) * share)], LIMITS)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_large_texts_and_profiles_are_no_damage(kind: str) -> None:
    large = "x" * 3_000_000
    info = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        info.add_itxt("Comment", large, zip=True)
    elif kind == "zTXt":
        info.add_text("Comment", large, zip=True)
    options: dict[str, Any] = {"icc_profile": large.encode()} if kind == "iCCP" else {"pnginfo": info}
    array = picture(3, channels=3)
    assert (images.decode(file_of(array, "PNG", **options), 8, 3) == array).all()


def test_texts_behind_the_pixels_are_no_damage_and_those_that_tell_the_upper_side_count() -> None:
    whole = file_of(picture(3, 4, 8))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
    assert images.probe(whole[:-12] + text + whole[-12:], LIMITS) == (8, 4)
    side = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + side)
    assert images.probe(whole[:33] + xmp + text + whole[33:], LIMITS) == (4, 8)


def test_a_text_that_unpacks_without_end_costs_no_memory() -> None:
    bomb = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(50_000_000)))
    whole = file_of(picture(3))
    assert images.probe(whole[:33] + bomb + whole[33:], LIMITS) == (8, 8)


def test_colour_spaces_of_print_become_rgb() -> None:
    for mode in ("CMYK", "LAB", "YCbCr"):
        image = Image.new("RGB", (8, 8), (200, 30, 30)).convert("CMYK" if mode == "CMYK" else "RGB")
        if mode == "LAB":
            image = Image.new("LAB", (8, 8), (128, 190, 180))
        data = saved(image, "JPEG" if mode == "YCbCr" else "TIFF")
        red, green, blue = images.decode(data, 8, 3)[4, 4].tolist()
        assert red > 2 * green
        assert red > 2 * blue


def test_of_several_pictures_in_a_file_the_first_counts_and_that_is_told() -> None:
    first, second = Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 200)
    for form in ("GIF", "TIFF", "PNG", "WEBP"):
        options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
        read = images.read(saved(first, form, save_all=True, append_images=[second], **options), LIMITS)
        assert read.first_of_several
        assert set(np.asarray(read.image.convert("L")).ravel()) == {10}
    assert not images.read(saved(first, "GIF"), LIMITS).first_of_several


def test_equal_pixels_have_one_digest_whatever_the_file() -> None:
    array = picture(5, 16, 16, 3)
    files = [file_of(array, form) for form in ("PNG", "BMP", "TIFF", "PPM")] + [file_of(array, "WEBP", lossless=True)]
    assert len({images.read(data, LIMITS).digest() for data in files}) == 1
    grey_array = picture(5, 16, 16)
    both = [file_of(grey_array), file_of(np.repeat(grey_array[..., None], 3, axis=2), "BMP")]
    assert len({images.read(data, LIMITS).digest() for data in both}) == 1
    assert images.read(file_of(array[::-1].copy()), LIMITS).digest() != images.read(files[0], LIMITS).digest()


def test_an_interrupt_while_a_reader_is_imported_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 wraps what is raised while a class is being made, as readers' are at the first image."""

    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    def imported(*_: object) -> None:
        type("Reader", (), {"is_animated": Interrupted()})

    monkeypatch.setitem(Image.OPEN, "PNG", (imported, Image.OPEN["PNG"][1]))
    with pytest.raises(KeyboardInterrupt):
        images.decode(file_of(picture(0)), 8, 1)
