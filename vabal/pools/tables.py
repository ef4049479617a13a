"""The pools: which images there are, who labelled them, which wait. Tables and the class names, as files.

Every image of the catalog is in exactly one of `labeled`, `unlabeled` and `holdout`. The functions that change pools
are pure: they return new ones. Labels are class names here and in all files; indices exist only inside the core.
"""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from vabal.errors import BRING_BACK

if TYPE_CHECKING:
    import pandas as pd

AVAILABLE: Final = "available"
REQUESTED: Final = "requested"
REJECTED: Final = "rejected"
FROM_SOURCE: Final = "source"  # the annotator of labels that came with the images
DISPUTED: Final = "disputed"  # why an image is asked about again: people contradict each other
SUSPECTED: Final = "suspected"  # or: a classifier that has not learned from its label does not believe it


def schema(*columns: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in columns])


TIME = pa.timestamp("us", tz="UTC")

#: What an image brings before it has a round: the catalog without `added_round`. Images of one `group` show much the
#: same (near copies, or what the source says); where it is null, `groups_of` says.
INCOMING: Final = schema(
    ("sample_id", pa.string(), False),
    ("shard", pa.string(), False),
    ("row", pa.int64(), False),
    ("sha256", pa.string(), False),
    ("width", pa.int32(), False),
    ("height", pa.int32(), False),
    ("group", pa.string(), True),
)
#: A label as it comes in: `label_events` without the round that takes it. `imported_at` is set where `labeled_at` is
#: the time that the file gave; where it is null, `labeled_at` is the time of the import.
EVENTS: Final = schema(
    ("sample_id", pa.string(), False),
    ("label", pa.string(), True),
    ("annotator", pa.string(), False),
    ("labeled_at", TIME, True),
    ("source", pa.string(), False),
    ("imported_at", TIME, True),
)
#: A change of the list of classes as it comes in: `class_events` without the round that takes it. What the actions ask
#: of `name` and `into`, and what they come to, says `Classes.after`.
CLASS_CHANGES: Final = schema(
    ("action", pa.string(), False),
    ("name", pa.string(), False),
    ("into", pa.string(), True),
    ("author", pa.string(), False),
    ("reason", pa.string(), True),
    ("at", TIME, True),
)
#: Columns that a table has only where one of their values is set: those of earlier versions keep bytes and digests.
OPTIONAL: Final = ("imported_at", "group", "probability")
SCHEMAS: Final[dict[str, pa.Schema]] = {
    "catalog": INCOMING.append(pa.field("added_round", pa.int32(), nullable=False)),
    "labeled": schema(
        ("sample_id", pa.string(), False),
        ("label", pa.string(), False),
        ("annotator", pa.string(), False),
        ("round", pa.int32(), False),
        ("labeled_at", TIME, True),
    ),
    "unlabeled": schema(
        ("sample_id", pa.string(), False),
        ("status", pa.string(), False),
        ("requested_round", pa.int32(), True),
    ),
    "holdout": schema(("sample_id", pa.string(), False), ("label", pa.string(), True)),
    "label_events": schema(
        ("sample_id", pa.string(), False),
        ("label", pa.string(), True),
        ("annotator", pa.string(), False),
        ("round", pa.int32(), False),
        ("labeled_at", TIME, True),
        ("source", pa.string(), False),
        ("imported_at", TIME, True),
    ),
    "class_events": CLASS_CHANGES.append(pa.field("round", pa.int32(), nullable=False)),
    # Images that a round asked about once more, in its order: why, which label stood (null: a rejection), and how many
    # label events the image had: until there is one more, the request is open.
    "asked_again": schema(
        ("sample_id", pa.string(), False),
        ("round", pa.int32(), False),
        ("reason", pa.string(), False),
        ("label", pa.string(), True),
        ("events", pa.int32(), False),
    ),
}
#: Tables that have a file and a digest only where they have a row: pools of earlier versions go on without them.
SPARSE: Final = ("class_events", "asked_again")
CLASS_EVENTS_FILE: Final = "class_events.parquet"
CLASSES_FILE: Final = "classes.json"
#: The files below `data/` that hold the pools, by table; the class names are one of them.
TABLE_FILES: Final[dict[str, str]] = {**{name: f"{name}.parquet" for name in SCHEMAS}, "classes": CLASSES_FILE}
MEND = f"if data/ was changed by hand, {BRING_BACK}"


@dataclass(frozen=True, eq=False)
class Pools:
    """The tables (columns and types: `SCHEMAS`) and the class names in index order.

    A null label of `holdout` has been asked for and not come yet; a null label of `label_events` is a rejection; a null
    `labeled_at` came with the source. Which event of a sample counts, `standing` says. `requested_round` is set exactly
    where the status is `requested`. `class_events` is empty as long as the classes are those of round 0, `asked_again`
    as long as no image was asked about once more.
    """

    catalog: "pd.DataFrame"
    labeled: "pd.DataFrame"
    unlabeled: "pd.DataFrame"
    holdout: "pd.DataFrame"
    label_events: "pd.DataFrame"
    classes: tuple[str, ...]
    class_events: "pd.DataFrame" = field(default_factory=lambda: no_rows("class_events"))
    asked_again: "pd.DataFrame" = field(default_factory=lambda: no_rows("asked_again"))


def no_rows(name: str) -> "pd.DataFrame":
    """The table without a row."""
    import pandas as pd  # noqa: PLC0415 -- half a second, which who reads a few rows does without

    kinds = {pa.string(): pd.StringDtype("pyarrow", na_value=float("nan"))}
    frame: pd.DataFrame = SCHEMAS[name].empty_table().to_pandas(types_mapper=kinds.get)
    return frame


def counts(state: Pools, picks: int) -> dict[str, int]:
    """The pools' arithmetic, as it stands in a manifest: sizes of the pools, parts of the unlabelled one, the picks."""
    status = state.unlabeled["status"].value_counts()
    return {
        "catalog": len(state.catalog),
        "labeled": len(state.labeled),
        "unlabeled": len(state.unlabeled),
        "available": int(status.get(AVAILABLE, 0)),
        "requested": int(status.get(REQUESTED, 0)),
        "rejected": int(status.get(REJECTED, 0)),
        "holdout": len(state.holdout),
        "picks": picks,
    }


@dataclass(frozen=True)
class IntakeReport:
    """What came of labels and images that were taken in. Counts of label events, then of images."""

    received: int = 0
    new: int = 0
    repeated: int = 0
    corrected: int = 0
    rejected: int = 0
    outdated: int = 0
    unknown: tuple[str, ...] = ()
    images: int = 0
    duplicates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
