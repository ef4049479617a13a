import csv
import importlib.metadata
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.small_pools import file_of, picture
from vabal import images
from vabal.errors import UserError
from vabal.images import DecodedShards, Unreadable, decoded, decoding, shards
from vabal.settings.models import ImageSettings, PoolSettings

LIMITS = ImageSettings()


# --- one image --------------------------------------------------------------------------------------------------------


def test_a_sound_image_has_its_width_and_height() -> None:
    assert images.probe(file_of(picture(0, height=5, width=9)), LIMITS) == (9, 5)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than anybody should unpack."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello, I am a text file\n" * 10, "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (file_of(picture(0, 64, 64))[:-600], "damaged"),
        (file_of(picture(0, 64, 64, 3), "JPEG")[:900], "damaged"),
        (file_of(picture(0))[:20], "damaged|no image"),
        (bomb(9_000, 9_000), "max_megapixels"),
        (bomb(11_000, 11_000), "max_megapixels"),
        (bomb(60_000, 60_000), "too many pixels"),
        (file_of(picture(0, 1500, 700), "BMP") * 48, "max_megabytes"),
    ],
    ids=["empty", "text", "postscript", "png cut", "jpeg cut", "header cut", "large", "warned", "bomb", "megabytes"],
)
def test_a_file_that_cannot_be_used_has_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        images.probe(data, LIMITS)


def test_grey_of_16_bits_is_scaled_from_its_full_range() -> None:
    deep = np.array([[0, 257 * 7], [257 * 128, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        assert images.decode(file_of(deep, form), 2, 1)[..., 0].tolist() == [[0, 7], [128, 255]]


def test_grey_of_floating_point_is_read_from_0_to_1_or_0_to_255_and_else_refused() -> None:
    share = np.array([[0.0, 1.0], [0.2, 0.4]], dtype=np.float32)
    assert images.decode(file_of(share, "TIFF"), 2, 1)[..., 0].tolist() == [[0, 255], [51, 102]]
    assert images.decode(file_of(share * 200, "TIFF"), 2, 1)[..., 0].tolist() == [[0, 200], [40, 80]]
    for wrong in (share - 1, share * 1000, share * np.nan):
        with pytest.raises(Unreadable, match="floating-point"):
            images.decode(file_of(wrong, "TIFF"), 2, 1)


def test_what_is_transparent_becomes_white() -> None:
    rgba = np.zeros((1, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    expected = [[[10, 20, 30], [255, 255, 255]], [[10, 20, 30], [255, 255, 255]]]
    assert images.decode(file_of(rgba.repeat(2, axis=0)), 2, 3).tolist() == expected


def test_a_palette_image_has_its_colours() -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([1, 2, 3, 250, 251, 252])
    image.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert images.decode(buffer.getvalue(), 2, 3)[0].tolist() == [[1, 2, 3], [250, 251, 252]]


def test_an_image_lying_on_its_side_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise
    data = file_of(np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8), "PNG", exif=exif)
    assert images.probe(data, LIMITS) == (2, 3)
    assert images.shape(data) == (2, 3, 1)
    square = file_of(np.array([[10, 20], [40, 50]], dtype=np.uint8), "PNG", exif=exif)
    assert images.decode(square, 2, 1)[..., 0].tolist() == [[40, 10], [50, 20]]


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    small = images.decode(file_of(stripes), 8, 1)
    assert np.abs(small.astype(int) - 127).max() <= 3


def test_grey_and_colour_are_converted_as_asked() -> None:
    assert images.decode(file_of(picture(1)), 8, 3).shape == (8, 8, 3)
    white = np.full((4, 4, 3), 255, dtype=np.uint8)
    assert images.decode(file_of(white), 4, 1).tolist() == [[[255]] * 4] * 4


def test_a_png_comes_back_as_it_was() -> None:
    for array in (picture(2), picture(2, channels=3), picture(2)[..., None]):
        back = images.decode(shards.png(array), 8, 3 if array.shape[-1] == 3 else 1)
        assert (back == array.reshape(back.shape)).all()


def test_people_see_small_images_enlarged_large_ones_shrunk_and_others_as_they_are() -> None:
    media, data = shards.for_browser(file_of(picture(3, 8, 4)))
    assert (media, images.probe(data, LIMITS)) == ("image/png", (128, 256))
    media, data = shards.for_browser(file_of(picture(3, 1500, 3000), "TIFF"))
    assert (media, images.probe(data, LIMITS)) == ("image/png", (1024, 512))
    photo = file_of(picture(3, 200, 300, 3), "JPEG")
    assert shards.for_browser(photo) == ("image/jpeg", photo)
    assert shards.extension(photo) == ".jpg"


def test_an_unreadable_file_is_set_aside_once_with_its_reason(tmp_path: Path) -> None:
    for day in (1, 2):
        when = datetime(2024, 6, day, tzinfo=UTC)
        images.quarantine(tmp_path / "q", "cam/odd name.PNG", b"broken", "damaged", when)
        images.quarantine(tmp_path / "q", "cam/huge.png", None, "too large", when)
        images.note_left_out(tmp_path / "q", [("cam/b.png", "a near copy of a.png")], when)
    assert len((tmp_path / "q" / "left_out.csv").read_text().splitlines()) == 2
    with (tmp_path / "q" / "quarantine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("cam/odd name.PNG", "damaged"),
        ("cam/huge.png", "too large"),
    ]
    copied = tmp_path / "q" / rows[0]["copy"]
    assert copied.read_bytes() == b"broken"
    copied.unlink()
    images.quarantine(tmp_path / "q", "cam/odd name.PNG", b"broken", "damaged", when)
    assert copied.read_bytes() == b"broken"


# --- shards -----------------------------------------------------------------------------------------------------------


def numbered(count: int) -> list[tuple[str, bytes]]:
    return [(f"s{number:02d}", file_of(picture(number))) for number in range(count)]


def shards_in(data: Path, count: int = 10, rows: int = 4) -> pd.DataFrame:
    placed = images.write_shards(
        numbered(count), data / "images", settings=PoolSettings(shard_rows=rows), name_prefix="pool"
    )
    return pd.DataFrame(placed, columns=["shard", "row", "sample_id"])


def test_a_shard_is_closed_at_its_number_of_rows_and_keeps_the_files_bytes(tmp_path: Path) -> None:
    placed = shards_in(tmp_path)
    assert placed["shard"].tolist() == ["pool-0000"] * 4 + ["pool-0001"] * 4 + ["pool-0002"] * 2
    assert placed["row"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert images.encoded(tmp_path, "pool-0001", 2) == numbered(10)[6][1]
    assert dict(images.encoded_many(tmp_path, placed.iloc[[9, 2, 5]])) == dict(
        pair for pair in numbered(10) if pair[0] in ("s02", "s05", "s09")
    )


def test_a_shard_is_closed_at_its_size(tmp_path: Path) -> None:
    size = len(numbered(1)[0][1])
    settings = PoolSettings(shard_megabytes=2.5 * size / 1e6)
    placed = images.write_shards(numbered(6), tmp_path, settings=settings, name_prefix="p")
    assert [shard for shard, _, _ in placed] == ["p-0000"] * 3 + ["p-0001"] * 3


def test_the_same_images_make_the_same_shards(tmp_path: Path) -> None:
    shards_in(tmp_path / "one")
    shards_in(tmp_path / "two")
    for path in (tmp_path / "one" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "images" / path.name).read_bytes()


def test_row_groups_stay_small_so_that_reading_streams(tmp_path: Path) -> None:
    items = ((f"s{number:05d}", bytes(12)) for number in range(2500))
    images.write_shards(items, tmp_path, settings=PoolSettings(), name_prefix="p")
    metadata = pq.ParquetFile(tmp_path / "p-0000.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [1024, 1024, 452]


def test_a_shard_is_never_written_over(tmp_path: Path) -> None:
    shards_in(tmp_path)
    with pytest.raises(ValueError, match="never written over"):
        shards_in(tmp_path)


def test_a_failure_while_writing_leaves_no_half_written_shard(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, bytes]]:
        yield from numbered(6)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        images.write_shards(failing(), tmp_path, settings=PoolSettings(shard_rows=4), name_prefix="p")
    assert [path.name for path in tmp_path.iterdir()] == ["p-0000.parquet"]


def test_a_missing_or_damaged_shard_and_a_row_that_is_none_are_told(tmp_path: Path) -> None:
    shards_in(tmp_path)
    with pytest.raises(UserError, match=r"pool-0009\.parquet is missing"):
        images.encoded(tmp_path, "pool-0009", 0)
    for row in (-1, 4):
        with pytest.raises(UserError, match=f"no row {row}"):
            images.encoded(tmp_path, "pool-0000", row)
    (tmp_path / "images" / "pool-0001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="not a readable shard"):
        images.encoded(tmp_path, "pool-0001", 0)


# --- decoded ----------------------------------------------------------------------------------------------------------


def everything(shards: DecodedShards, batch_size: int) -> np.ndarray:
    parts = []
    for shard in shards.names():
        ends = 0
        for start, batch in shards.batches(shard, batch_size):
            assert start == ends
            ends += len(batch)
            parts.append(batch)
        assert ends == shards.rows(shard)
    return np.concatenate(parts)


def expected(count: int) -> np.ndarray:
    return np.stack([picture(number)[..., None] for number in range(count)])


def test_the_first_pass_decodes_and_later_passes_read_what_it_kept(tmp_path: Path) -> None:
    shards_in(tmp_path)
    shards = DecodedShards(tmp_path, tmp_path / "cache", 8, 1)
    for batch_size in (3, 2, 100):
        assert (everything(shards, batch_size) == expected(10)).all()
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3
    assert (np.load(files[0]) == expected(4)).all()
    np.save(files[0], 255 - expected(4))
    assert (next(iter(shards.batches("pool-0000", 4)))[1] == 255 - expected(4)).all()


def test_another_size_has_a_cache_of_its_own(tmp_path: Path) -> None:
    shards_in(tmp_path)
    everything(DecodedShards(tmp_path, tmp_path / "cache", 8, 1), 4)
    assert everything(DecodedShards(tmp_path, tmp_path / "cache", 4, 3), 4).shape == (10, 4, 4, 3)


def test_what_another_decoder_or_bit_depth_left_in_the_cache_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards_in(tmp_path)
    everything(DecodedShards(tmp_path, tmp_path / "cache", 8, 1), 4)
    for left in (tmp_path / "cache").iterdir():
        np.save(left, 255 - np.load(left))
    assert (everything(DecodedShards(tmp_path, tmp_path / "cache", 8, 1, bit_depth=16), 4) == expected(10)).all()
    monkeypatch.setattr(decoded, "decoder", lambda: "3-another")
    assert (everything(DecodedShards(tmp_path, tmp_path / "cache", 8, 1), 4) == expected(10)).all()


@pytest.mark.parametrize("library", ["pillow", "simplejpeg", "numpy"])
def test_another_version_of_a_library_is_another_decoder(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = decoding.decoder(), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) + (".1" if name == library else ""))
    assert decoding.decoder.__wrapped__() != before


def test_another_line_in_the_decoding_code_is_another_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, changed = decoding.decoder(), tmp_path / "decoding.py"
    changed.write_bytes(Path(decoding.__file__).read_bytes())
    monkeypatch.setattr(decoding, "__file__", str(changed))
    assert decoding.decoder.__wrapped__() == before
    changed.write_bytes(changed.read_bytes() + b"_CHANGED = True\n")
    assert decoding.decoder.__wrapped__() != before


def test_a_shard_of_the_same_name_with_other_images_is_decoded_afresh(tmp_path: Path) -> None:
    shards_in(tmp_path / "one", 4)
    everything(DecodedShards(tmp_path / "one", tmp_path / "cache", 8, 1), 4)
    turned = numbered(4)[::-1]
    images.write_shards(turned, tmp_path / "two" / "images", settings=PoolSettings(), name_prefix="pool")
    other = everything(DecodedShards(tmp_path / "two", tmp_path / "cache", 8, 1), 4)
    assert (other == expected(4)[::-1]).all()


def test_a_pass_that_stops_early_leaves_no_cache(tmp_path: Path) -> None:
    shards_in(tmp_path)
    shards = DecodedShards(tmp_path, tmp_path / "cache", 8, 1)
    batches = shards.batches("pool-0000", 1)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert list((tmp_path / "cache").iterdir()) == []
    assert (everything(shards, 4) == expected(10)).all()


def test_a_cache_file_that_was_cut_is_made_again(tmp_path: Path) -> None:
    shards_in(tmp_path)
    shards = DecodedShards(tmp_path, tmp_path / "cache", 8, 1)
    everything(shards, 4)
    cut = sorted((tmp_path / "cache").iterdir())[0]
    cut.write_bytes(cut.read_bytes()[:-10])
    assert (everything(shards, 4) == expected(10)).all()


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("wanted", [[9, 0, 5, 5, 3], list(range(9, -1, -1)), [], [7]])
def test_images_are_gathered_in_the_order_given(tmp_path: Path, filled: bool, wanted: list[int]) -> None:
    catalog = shards_in(tmp_path)
    shards = DecodedShards(tmp_path, tmp_path / "cache", 8, 1)
    if filled:
        everything(shards, 4)
    assert (shards.gather(catalog.iloc[wanted]) == expected(10)[wanted]).all()


def test_names_follow_the_catalog_and_ids_the_rows(tmp_path: Path) -> None:
    catalog = shards_in(tmp_path)
    turned = DecodedShards(tmp_path, tmp_path / "cache", 8, 1, catalog=catalog.iloc[::-1])
    assert turned.names() == ["pool-0002", "pool-0001", "pool-0000"]
    catalog.iloc[4:].to_parquet(tmp_path / "catalog.parquet")
    shards = DecodedShards(tmp_path, tmp_path / "cache", 8, 1)
    assert shards.names() == ["pool-0001", "pool-0002"]
    assert shards.sample_ids("pool-0001").tolist() == ["s04", "s05", "s06", "s07"]


def test_shards_are_found_in_several_folders(tmp_path: Path) -> None:
    shards_in(tmp_path / "old", 3)
    images.write_shards(numbered(5)[3:], tmp_path / "new" / "images", settings=PoolSettings(), name_prefix="ingest")
    shards = DecodedShards([tmp_path / "old", tmp_path / "new"], tmp_path / "cache", 8, 1)
    assert shards.names() == ["ingest-0000", "pool-0000"]
    assert (next(iter(shards.batches("ingest-0000", 9)))[1] == expected(5)[3:]).all()


def test_large_images_are_decoded_by_several_threads_and_small_ones_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards_in(tmp_path)
    threads = set()

    def watched(*asked: Any, **how: Any) -> np.ndarray:
        threads.add(threading.current_thread().name.partition("_")[0])
        return decoding.decode(*asked, **how)

    monkeypatch.setattr(decoded, "decode", watched)
    for bytes_worth, names in ((2**13, {"MainThread"}), (0, {"decoder"})):
        threads.clear()
        monkeypatch.setattr(decoded, "_BYTES_WORTH_A_THREAD", bytes_worth)
        assert (everything(DecodedShards(tmp_path, tmp_path / f"cache-{bytes_worth}", 8, 1), 3) == expected(10)).all()
        assert threads == names
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decoder")]


def test_warnings_are_as_before_when_threads_that_put_them_aside_leave_across_each_other() -> None:
    before = list(warnings.filters)
    quiet = decoding._Quiet()
    quiet.__enter__()  # one thread
    quiet.__enter__()  # another
    quiet.__exit__()
    assert warnings.filters[0][0] == "ignore"
    quiet.__exit__()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("bytes_worth", [0, 2**13])
def test_an_image_of_a_shard_that_cannot_be_decoded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_worth: int
) -> None:
    monkeypatch.setattr(decoded, "_BYTES_WORTH_A_THREAD", bytes_worth)
    items = [*numbered(2), ("broken-one", b"no image at all")]
    images.write_shards(items, tmp_path / "images", settings=PoolSettings(), name_prefix="pool")
    shards = DecodedShards(tmp_path, tmp_path / "cache", 8, 1)
    with pytest.raises(UserError, match="sample broken-one in shard pool-0000 cannot be decoded"):
        everything(shards, 4)
    assert list((tmp_path / "cache").iterdir()) == []
