import csv
import hashlib
import io
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.label_files import FORMATS, Given, exported, imported, stand, taken
from tests.support.small_pools import WHEN, file_of, picture, small_pools
from vabal import images, pools, sources
from vabal.errors import UserError
from vabal.images import DecodedShards
from vabal.labels import answers as labels_answers
from vabal.labels import arrivals, inbox
from vabal.settings.models import Params, PoolSettings
from vabal.sources import ingestion

FEW = settings(max_examples=12)
CELLS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), max_size=8)
IDS = CELLS.filter(lambda text: text not in ("", "\ufeff"))


def csv_of(rows: list[tuple[str, str, str]], delimiter: str, end: str) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end)
    writer.writerow(["sample_id", "label", "annotator"])
    writer.writerows(rows)
    return buffer.getvalue().encode()


@FEW
@given(
    st.lists(st.tuples(IDS, CELLS, CELLS), min_size=1, max_size=10),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_every_csv_comes_back_cell_for_cell(rows: list[tuple[str, str, str]], delimiter: str, end: str) -> None:
    table = labels_answers.read_answers(csv_of(rows, delimiter, end), "f.csv")
    back = [tuple(cell or "" for cell in row) for row in table[["sample_id", "label", "annotator"]].to_numpy()]
    assert back == rows
    assert table["problem"].isna().all()


GOOD = st.tuples(st.sampled_from("abcd"), st.sampled_from(["cat", "dog", ""]), st.sampled_from(["", "ann"]))
BAD = st.sampled_from([("zebra", "cat", "ann"), ("b", "bird", "ann"), ("zebra", "", ""), ("b", "Cat", "")])


@FEW
@given(st.lists(GOOD, min_size=1, max_size=8), st.lists(BAD, max_size=2))
def test_a_file_is_taken_in_whole_or_not_at_all(
    good: list[tuple[str, str, str]], bad: list[tuple[str, str, str]]
) -> None:
    rows = [*good[:3], *bad, *good[3:]]
    content = csv_of(rows, ",", "\n")
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "inbox"
        answers = labels_answers.read_answers(content, "f.csv")

        def take() -> inbox.ImportReport:
            return inbox.take_labels(box, small_pools(), answers, file="f.csv", content=content, when=WHEN)

        if bad:
            with pytest.raises(UserError, match=f"{len(bad)} of {len(rows)} lines are wrong"):
                take()
            assert arrivals.pending(box) == []
            return
        report = take()
        said = [(sample_id, label) for sample_id, label, annotator in good if label or annotator]
        assert (report.labels + report.rejections, report.unanswered) == (len(said), len(good) - len(said))
        events, _ = arrivals.read(box, arrivals.pending(box))
        labels = events["label"].astype(object).where(events["label"].notna(), "")
        assert list(zip(events["sample_id"], labels, strict=True)) == said
        assert take().imported_before == bool(said)


@st.composite
def projects(draw: st.DrawFn) -> list[Given]:
    """Annotations of a project, no two of the same second, in any zone."""
    said = st.tuples(st.sampled_from("abcd"), st.sampled_from(["cat", "dog", "cat", None]), st.integers(1, 3))
    rows = draw(st.lists(said, min_size=1, max_size=6).filter(lambda rows: any(label for _, label, _ in rows)))
    seconds = draw(st.lists(st.integers(0, 10**6), min_size=len(rows), max_size=len(rows), unique=True))
    given: list[Given] = []
    for (sample_id, label, person), second in zip(rows, seconds, strict=True):
        zone = timezone(timedelta(hours=draw(st.integers(-11, 12))))
        time = (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).astimezone(zone).isoformat()
        given.append((sample_id, label, time, person, False))
    return given


@FEW
@given(projects())
def test_the_formats_of_one_project_give_the_same_opinions_and_a_second_one_adds_none(given: list[Given]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        heard = []
        for form in FORMATS:
            box = Path(folder) / form / "inbox"
            box.parent.mkdir()
            first, second = (exported(which, *given) for which in (form, FORMATS[(FORMATS.index(form) + 1) % 3]))
            report = imported(box, first)
            heard.append((sorted(taken(box), key=str), stand(box), report.labels, report.disagreeing == ()))
            assert imported(box, second, "again").labels == 0
        assert heard[0] == heard[1] == heard[2]


@FEW
@given(projects(), st.randoms(use_true_random=False))
def test_the_order_of_imports_changes_no_label_that_stands_where_times_are_known(given: list[Given], dice: Any) -> None:
    orders = [given, dice.sample(given, len(given))]
    ends = []
    for order in orders:
        with tempfile.TemporaryDirectory() as folder:
            box, made = Path(folder) / "inbox", small_pools()
            for number, one in enumerate(order):  # one without a label has nothing to say in this format
                imported(box, exported("json-min", one), str(number))
                if dice.random() < 0.5:  # a round takes what waits
                    made, _ = pools.apply_labels(made, arrivals.read(box, arrivals.pending(box))[0], number + 1)
                    arrivals.remove(box, arrivals.pending(box))
            made, _ = pools.apply_labels(made, arrivals.read(box, arrivals.pending(box))[0], 99)
            pools.check(made)
            ends.append(pools.digests(replace(made, labeled=made.labeled.assign(round=0)))["labeled"])
            newest = {
                name: label
                for name, label, *_ in sorted(given, key=lambda row: datetime.fromisoformat(row[2]))
                if label
            }
            standing = pd.concat([made.labeled, made.holdout]).set_index("sample_id")["label"].dropna().to_dict()
            assert standing == {"a": "cat", "d": "dog", **newest}
    assert ends[0] == ends[1]


@FEW
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=4))
def test_every_content_enters_the_pool_once_however_often_it_comes(visits: list[list[int]]) -> None:
    """Each visit ingests a folder of numbered pictures under names that repeat."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = small_pools()
        for turn, numbers in enumerate(visits):
            (root / f"{turn}").mkdir()
            for position, number in enumerate(numbers):
                (root / f"{turn}" / f"{position}.png").write_bytes(file_of(picture(number)))
            ingestion.ingest(
                root / "inbox", made, root / f"{turn}", Params(), quarantine=root / "quarantine", when=WHEN
            )
            if turn % 2:  # a round takes what waits
                names = arrivals.pending(root / "inbox")
                for arrival in arrivals.read(root / "inbox", names)[1]:
                    made, _ = pools.apply_images(made, arrival.catalog, turn)
                arrivals.remove(root / "inbox", names)
        for arrival in arrivals.read(root / "inbox", arrivals.pending(root / "inbox"))[1]:
            made, _ = pools.apply_images(made, arrival.catalog, 9)
        pools.check(made)
        wanted = {hashlib.sha256(file_of(picture(number))).hexdigest() for numbers in visits for number in numbers}
        assert sorted(made.catalog["sha256"].iloc[4:]) == sorted(wanted)


@FEW
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 13), st.lists(st.integers(0, 11), max_size=8))
def test_shards_give_back_every_image_for_any_shard_and_batch_size(
    count: int, shard_rows: int, batch_size: int, wanted: list[int]
) -> None:
    items = [(f"s{number}", file_of(picture(number, 4, 4))) for number in range(count)]
    expected = np.stack([picture(number, 4, 4)[..., None] for number in range(count)])
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        placed = images.write_shards(
            items, data / "images", settings=PoolSettings(shard_rows=shard_rows), name_prefix="pool"
        )
        catalog = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
        shards = DecodedShards(data, data / "cache", 4, 1)
        places = [place for place in wanted if place < count]
        assert (shards.gather(catalog.iloc[places]) == expected[places]).all()
        for _ in ("decode", "cache"):
            batches = [batch for shard in shards.names() for _, batch in shards.batches(shard, batch_size)]
            assert (np.concatenate(batches) == expected).all()
        assert (shards.gather(catalog.iloc[places]) == expected[places]).all()


@st.composite
def labelled_items(draw: st.DrawFn) -> pd.DataFrame:
    labels = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60))
    groups = draw(st.lists(st.one_of(st.none(), st.integers(0, 5).map(str)), min_size=60, max_size=60))
    rows = [(f"s{index}", label, groups[index]) for index, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["sample_id", "label", "group"], dtype=object)


@FEW
@given(labelled_items(), st.floats(0.05, 0.9), st.integers(0, 9))
def test_a_holdout_takes_groups_whole_and_does_not_depend_on_the_order(
    items: pd.DataFrame, fraction: float, seed: int
) -> None:
    held = set(sources.draw_holdout(items, fraction, seed))
    assert held == set(sources.draw_holdout(items.iloc[::-1], fraction, seed))
    for _, members in items.dropna(subset=["group"]).groupby("group"):
        assert len(held & set(members["sample_id"])) in (0, len(members))
    alone = items.assign(group=None)
    counts = alone[alone["sample_id"].isin(sources.draw_holdout(alone, fraction, seed))]["label"].value_counts()
    for name, size in items["label"].value_counts().items():
        wanted = min(max(1, int(fraction * size + 0.5)), size - 1) if size > 1 else 0
        assert counts.get(name, 0) == wanted


@FEW
@given(
    labelled_items(),
    st.sampled_from(["dominant:0:0.3", "rare:1:0.5", "rare:0,2", "dominant:1-2:0.7"]),
    st.integers(0, 9),
)
def test_thinning_keeps_exact_shares_and_does_not_depend_on_the_order(
    items: pd.DataFrame, spec: str, seed: int
) -> None:
    classes = ["a", "b", "c"]
    left = sources.thin(items, spec, classes, seed)
    assert set(left["sample_id"]) == set(sources.thin(items.iloc[::-1], spec, classes, seed)["sample_id"])
    counts = left["label"].value_counts()
    for name, share in zip(classes, sources.Imbalance.parse(spec, 3).kept, strict=True):
        size = int((items["label"] == name).sum())
        assert counts.get(name, 0) == (max(1, int(share * size + 0.5)) if size else 0)
