"""The same picture in other files: once in the pools, and never on both sides of the holdout."""

import csv
import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from tests.support.small_pools import file_of, picture, saved
from vabal import pools, sources
from vabal.errors import UserError
from vabal.images import near_copies
from vabal.labels import arrivals
from vabal.pools import Pools
from vabal.settings.models import ImageSettings, Params
from vabal.sources import ingestion

WHEN = datetime(2024, 6, 1, tzinfo=UTC)


def smooth(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(picture(seed, 9, 9, 3)).resize((side, side), Image.Resampling.BICUBIC)


def fill(root: Path, more: Mapping[str, bytes] | None = None) -> Path:
    """Two classes of twelve pictures each, and further files by their path without the extension."""
    for place, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(12):
            (root / name / f"{number:02d}.png").write_bytes(saved(smooth(100 * place + number)))
    for path, data in (more or {}).items():
        (root / path).write_bytes(data)
    return root


def built(tmp_path: Path, root: Path, params: Params | None = None) -> sources.InitReport:
    return sources.build_pools(
        sources.open_source(f"folder:{root}"),
        imbalance=None,
        initial=4,
        holdout=0.3,
        seed=0,
        settings=params or Params(),
        folder=tmp_path / "data",
        quarantine=tmp_path / "quarantine",
    )


def ingest(tmp_path: Path, path: Path, params: Params | None = None) -> ingestion.IngestReport:
    return ingestion.ingest(
        tmp_path / "inbox",
        pools.load(tmp_path / "data"),
        path,
        params or Params(),
        quarantine=tmp_path / "quarantine",
        when=WHEN,
        data=tmp_path / "data",
        fingerprints=tmp_path / "fingerprints",
    )


def arrival(tmp_path: Path, report: ingestion.IngestReport) -> pd.DataFrame:
    """The catalog rows that wait in the inbox."""
    return arrivals.read(tmp_path / "inbox", [str(report.name)])[1][0].catalog


def file_behind(root: Path, sample_id: str) -> Path:
    return root / f"{sample_id.replace('-', '/', 1)}.png"


def sides(made: Pools) -> dict[str, str]:
    held = set(made.holdout["sample_id"])
    return {name: "holdout" if name in held else "pool" for name in made.catalog["sample_id"]}


def left_out(tmp_path: Path) -> dict[str, str]:
    with (tmp_path / "quarantine" / "left_out.csv").open(newline="") as file:
        return {Path(row["name"]).name: row["reason"] for row in csv.DictReader(file)}


# --- the search -------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: Image.open(io.BytesIO(saved(image, "JPEG", quality=75))),
    "webp": lambda image: Image.open(io.BytesIO(saved(image, "WEBP", quality=80))),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "twice": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize(
    ("change", "side"),
    [(change, side) for change in CHANGES for side in (32, 64, 200) if (change, side) != ("half", 32)],
)
def test_pictures_that_were_saved_anew_are_found_and_others_are_not(change: str, side: int) -> None:
    originals = [smooth(seed, side) for seed in range(40)]
    prints = [near_copies.fingerprint(image) for image in originals]
    twins = [near_copies.fingerprint(CHANGES[change](image)) for image in originals]
    assert near_copies.pairs(prints, 24) == []
    assert sorted(near_copies.Index(prints, 24).near(twins)) == [(place, place) for place in range(40)]


def test_the_search_finds_what_comparing_each_with_each_finds() -> None:
    rng = np.random.default_rng(0)
    images_ = [smooth(seed % 60, 32 if seed % 3 else 160) for seed in range(180)]
    pixels = [np.asarray(image) for image in images_]
    noisy = [Image.fromarray((one + rng.normal(0, 12, one.shape)).clip(0, 255).astype(np.uint8)) for one in pixels]
    prints = [near_copies.fingerprint(image) for image in noisy]
    parts = near_copies._Parts(prints)
    expected = []
    normal = parts.normal(np.arange(len(prints)))
    for one in range(len(prints)):
        for other in range(one + 1, len(prints)):
            bits = int(np.bitwise_count(parts.hash_N_4[one] ^ parts.hash_N_4[other]).sum())
            least = 0.998 if parts.large_N[one] and parts.large_N[other] else 0.97
            alike = normal[one] @ normal[other]
            same = near_copies.Index([prints[other]], 24)._same_everywhere(parts, one, np.array([0]))[0]
            if alike >= least and bits <= (72 if alike >= 0.999 else 24) and same:
                expected.append((one, other))
    assert len(expected) > 20
    assert near_copies.pairs(prints, 24) == expected


def part(seed: int, side: int, *, fault: bool = False) -> Image.Image:
    """A part on a belt, a little off its place."""
    rng = np.random.default_rng(seed)
    canvas = Image.new("L", (4 * side, 4 * side), 40)
    x, y = (int(value) for value in rng.integers(-side // 16, side // 16 + 1, 2))
    drawing = ImageDraw.Draw(canvas)
    drawing.rectangle((side + x, side + y, 3 * side + x, 3 * side + y), fill=170)
    if fault:
        drawing.rectangle((2 * side + x, 2 * side + y, 2.3 * side + x, 2.3 * side + y), fill=230)
    shot = np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) + rng.normal(0, 4, (side, side))
    return Image.fromarray(shot.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [64, 160])
def test_a_part_with_a_fault_is_no_near_copy_of_one_without(side: int) -> None:
    sound = [near_copies.fingerprint(part(seed, side)) for seed in range(30)]
    faulty = [near_copies.fingerprint(part(seed, side, fault=True)) for seed in range(30)]
    assert list(near_copies.Index(sound, 24).near(faulty)) == []
    saved_anew = [
        near_copies.fingerprint(Image.open(io.BytesIO(saved(part(seed, side), "JPEG", quality=75))))
        for seed in range(30)
    ]
    assert {(place, place) for place in range(30)} <= set(near_copies.Index(sound, 24).near(saved_anew))


def test_cards_of_other_colours_or_brightness_are_no_near_copies() -> None:
    shade = np.linspace(0, 40, 64)[None, :, None]
    cards = [(200, 40, 40), (40, 40, 200), (120, 120, 120), (40, 160, 40)]
    prints = [near_copies.fingerprint(Image.fromarray((shade + card).repeat(64, 0).astype(np.uint8))) for card in cards]
    assert [pair for pair in near_copies.pairs(prints, 24) if 2 not in pair] == []  # grey may be a copy of any
    strong, weak = (Image.fromarray((smooth_ramp * 100 + 20).astype(np.uint8)) for smooth_ramp in (ramp(), ramp() / 3))
    assert near_copies.pairs([near_copies.fingerprint(image) for image in (strong, weak)], 24) == []


def ramp() -> np.ndarray:
    return np.outer(np.linspace(0, 1, 64), np.linspace(1, 0.2, 64))


def test_a_class_whose_pictures_all_look_alike_is_refused_with_the_setting_that_lets_it_in(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for place, name in enumerate(("sound", "faulty")):
        (root / name).mkdir(parents=True)
        for number in range(12):
            shot = np.asarray(smooth(0, 64)) + np.random.default_rng(100 * place + number).normal(0, 2, (64, 64, 3))
            (root / name / f"{number:02d}.png").write_bytes(saved(Image.fromarray(shot.clip(0, 255).astype(np.uint8))))
    with pytest.raises(UserError, match=r"the holdout gets 0 of \d+: .* --set pool.near_copies=0") as refused:
        built(tmp_path / "one", root)
    assert "12 of 12 images of class" in str(refused.value)
    off = Params.model_validate({"pool": {"near_copies": 0}})
    assert len(built(tmp_path / "two", root, off).pools.holdout) >= 4


def test_flat_and_tiny_pictures_have_no_near_copies() -> None:
    flat = Image.new("L", (64, 64), 20)
    almost = Image.fromarray(np.full((64, 64), 21, np.uint8))
    tiny = Image.fromarray(picture(0, 5, 5))
    assert [near_copies.fingerprint(image) for image in (flat, almost, tiny)] == [b""] * 3
    assert near_copies.pairs([b""] * 5, 24) == []


def test_near_copies_join_the_groups_that_they_connect() -> None:
    items = pd.DataFrame({"sample_id": list("abcdef"), "group": ["g", None, "g", "h", None, None]}, dtype=object)
    assert pools.merged(items, []).tolist() == ["g", None, "g", "h", None, None]
    merged = pools.merged(items, [(1, 2), (3, 4)]).tolist()
    assert merged[:3] == ["near a"] * 3
    assert merged[3:5] == ["near d"] * 2
    assert pd.isna(merged[5])


def test_what_was_computed_of_a_shard_is_kept_and_made_again_where_it_is_damaged(tmp_path: Path) -> None:
    made = built(tmp_path, fill(tmp_path / "source")).pools
    first = near_copies.of_shards(tmp_path / "data", made.catalog, tmp_path / "kept", ImageSettings())
    (kept,) = (tmp_path / "kept").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(b"PAR1")
    again = near_copies.of_shards(tmp_path / "data", made.catalog, tmp_path / "kept", ImageSettings())
    pd.testing.assert_frame_equal(first, again)
    assert kept.read_bytes() == content


# --- round 0 ----------------------------------------------------------------------------------------------------------


def test_equal_pixels_in_another_format_are_the_same_picture(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", {"cat/a0": saved(smooth(0), "BMP"), "cat/a1": saved(smooth(1), "TIFF")})
    report = built(tmp_path, root)
    assert len(report.pools.catalog) == 24
    assert "2 left out, same picture as another" in " ".join(report.lines())
    assert set(left_out(tmp_path)) == {"a0", "a1"}


def test_a_picture_under_two_labels_is_told_and_has_none(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", {"dog/x": saved(smooth(3)), "dog/y": saved(smooth(4), "BMP")})
    report = built(tmp_path, root)
    assert {item.kept for item in report.contradictions} == {"cat-03", "cat-04"}
    (line,) = [line for line in report.lines() if "left out" in line]
    assert "2 of them under another label, so that no label counts: cat-03 is cat" in line
    assert left_out(tmp_path)["x"] == "same picture as cat-03 under label dog, not cat"
    made = report.pools
    for name in ("cat-03", "cat-04"):
        assert sides(made)[name] == "pool"
        assert name not in set(made.labeled["sample_id"]) | set(report.oracle["sample_id"])
        assert name in set(made.unlabeled["sample_id"])


def test_a_copy_gives_its_label_to_a_picture_without_one(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", {"copy": saved(smooth(0), "BMP")})
    listed = [f"{name}/{number:02d}.png,{name}" for name in ("cat", "dog") for number in range(12)]
    listed[0] = "cat/00.png,"
    (root / "labels.csv").write_text("\n".join(["path,label", *listed, "copy,cat"]))
    report = built(tmp_path, root)
    labels = pd.concat([report.pools.labeled, report.pools.holdout, report.oracle])
    assert dict(zip(labels["sample_id"], labels["label"], strict=True))["cat-00"] == "cat"
    assert report.contradictions == ()


def test_near_copies_stay_on_one_side_of_the_holdout(tmp_path: Path) -> None:
    copies = {f"cat/twin{number}": saved(smooth(number), "JPEG", quality=70) for number in range(12)}
    report = built(tmp_path, fill(tmp_path / "source", copies))
    side = sides(report.pools)
    assert {side[f"cat-{number:02d}"] == side[f"cat-twin{number}"] for number in range(12)} == {True}
    assert set(side.values()) == {"pool", "holdout"}
    group = report.pools.catalog.set_index("sample_id")["group"].dropna().to_dict()
    assert group == {f"cat-{name}": f"near cat-{n:02d}" for n in range(12) for name in (f"{n:02d}", f"twin{n}")}
    assert "12 pairs of near copies, kept on one side of the holdout" in " ".join(report.lines())


def test_what_comes_in_joins_the_groups_that_are_there(tmp_path: Path) -> None:
    made = built(tmp_path, fill(tmp_path / "source")).pools
    free = next(name for name in made.unlabeled["sample_id"] if name.startswith("cat-"))
    number = int(free.removeprefix("cat-"))
    new = tmp_path / "new"
    new.mkdir()
    (new / "copy.jpg").write_bytes(saved(smooth(number), "JPEG", quality=70))  # of what is there
    for name, quality in (("x", 95), ("y", 60)):  # of each other
        (new / f"{name}.jpg").write_bytes(saved(smooth(900), "JPEG", quality=quality))
    (new / "other.png").write_bytes(saved(smooth(901)))
    report = ingest(tmp_path, new)
    taken, _ = pools.apply_images(made, arrival(tmp_path, report), 1)
    assert taken.catalog.set_index("sample_id")["group"].dropna().to_dict() == {
        "copy": f"near {free}",
        "x": "near x",
        "y": "near x",
    }
    groups = dict(zip(taken.catalog["sample_id"], pools.groups_of(taken.catalog), strict=True))  # type: ignore[arg-type]
    assert groups["copy"] == groups[free]
    assert len(set(groups.values())) == len(groups) - 2


def test_images_of_a_group_of_the_holdout_are_left_out_and_others_keep_theirs(tmp_path: Path) -> None:
    root = fill(tmp_path / "source")
    rows = [f"{name}/{number:02d}.png,{name},part{number // 2}" for name in ("cat", "dog") for number in range(12)]
    (root / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    made = built(tmp_path, root).pools
    group = made.catalog.set_index("sample_id")["group"]
    held = sorted(group[made.holdout["sample_id"]].unique())
    free = sorted(group[made.unlabeled["sample_id"]].unique())
    assert set(held) & set(free) == set()
    arrays = {"images": np.stack([np.asarray(smooth(900 + number)) for number in range(3)])}
    np.savez(tmp_path / "new.npz", groups=[held[0], free[0], "new"], **arrays)  # type: ignore[arg-type]
    report = ingest(tmp_path, tmp_path / "new.npz")
    assert [path.endswith("new.npz[0]") for path, _ in report.near_holdout] == [True]
    assert group[report.near_holdout[0][1]] == held[0]
    assert "1 left out, near copies or of the group of an image in the holdout" in " ".join(report.lines())
    assert arrival(tmp_path, report)["group"].tolist() == [free[0], "new"]


def test_an_unlabelled_near_copy_of_the_holdout_is_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "source")
    listed = [f"{name}/{number:02d}.png,{name}" for name in ("cat", "dog") for number in range(12)]
    for number in range(12):
        (root / f"new{number}.jpg").write_bytes(saved(smooth(number), "JPEG", quality=70))
    (root / "labels.csv").write_text("\n".join(["path,label", *listed]))
    report = built(tmp_path, root)
    side = sides(report.pools)
    held = [number for number in range(12) if side[f"cat-{number:02d}"] == "holdout"]
    assert held
    assert [number for number in range(12) if f"new{number}" not in side] == held
    assert f"{len(held)} left out, near copies or of the group of an image in the holdout" in " ".join(report.lines())


def test_near_copies_under_two_labels_are_told_and_0_turns_the_search_off(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", {"dog/twin": saved(smooth(0), "JPEG", quality=70)})
    assert "carry different labels: cat-00 is cat, dog-twin is dog" in " ".join(built(tmp_path / "one", root).lines())
    off = Params.model_validate({"pool": {"near_copies": 0}})
    assert "near copies" not in " ".join(built(tmp_path / "two", root, off).lines())


def test_the_depth_of_a_source_is_that_of_its_largest_value(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for place, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(4):
            deep = np.random.default_rng(10 * place + number).integers(0, 1000, (16, 16)).astype(np.uint16)
            deep[0, 0] = 3000 if (place, number) == (1, 2) else 0
            (root / name / f"{number}.png").write_bytes(file_of(deep))
    report = built(tmp_path, root)
    assert report.bit_depth == 12
    assert "are scaled by images.bit_depth = 12" in " ".join(report.lines())


# --- what comes in ----------------------------------------------------------------------------------------------------


def test_twins_of_the_holdout_never_enter_the_pool_and_are_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "source")
    made = built(tmp_path, root).pools
    new = tmp_path / "new"
    new.mkdir()
    forms: dict[str, dict[str, Any]] = {"BMP": {}, "JPEG": {"quality": 75}, "WEBP": {"quality": 80}, "TIFF": {}}
    held = made.holdout["sample_id"].tolist()
    assert len(held) >= 6
    for sample_id in held:
        for form, options in forms.items():
            image = Image.open(file_behind(root, sample_id))
            (new / f"{sample_id}.{form.lower()}").write_bytes(saved(image, form, **options))
    (new / "other.png").write_bytes(saved(smooth(999)))
    report = ingest(tmp_path, new)
    assert report.sample_ids == ("other",)
    assert len(report.duplicates) == 2 * len(held)
    assert {twin for _, twin in report.near_holdout} == set(held)
    assert f"{2 * len(held)} left out, near copies or of the group of an image in the holdout" in " ".join(
        report.lines()
    )
    assert left_out(tmp_path)[f"{held[0]}.jpeg"] == f"near copy or of the group of {held[0]} in the holdout"


def test_a_near_copy_of_the_pool_comes_in_and_is_told_and_one_of_the_inbox_counts_as_there(tmp_path: Path) -> None:
    root = fill(tmp_path / "source")
    made = built(tmp_path, root).pools
    free = made.unlabeled["sample_id"].iloc[0]
    new = tmp_path / "new"
    new.mkdir()
    (new / "twin.jpg").write_bytes(saved(Image.open(file_behind(root, free)), "JPEG", quality=75))
    (new / "fresh.png").write_bytes(saved(smooth(500)))
    report = ingest(tmp_path, new)
    assert report.sample_ids == ("fresh", "twin")
    assert [twin for _, twin in report.near_pool] == [free]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "fresh.bmp").write_bytes(saved(smooth(500), "BMP"))
    assert ingest(tmp_path, tmp_path / "again").sample_ids == ()


def test_with_near_copies_off_only_equal_pixels_are_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "source")
    held = file_behind(root, built(tmp_path, root).pools.holdout["sample_id"].iloc[0])
    new = tmp_path / "new"
    new.mkdir()
    for form in ("BMP", "JPEG"):
        (new / f"x.{form.lower()}").write_bytes(saved(Image.open(held), form))
    off = Params.model_validate({"pool": {"near_copies": 0}})
    assert len(ingest(tmp_path, new, off).sample_ids) == 1
