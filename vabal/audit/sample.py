"""Everything that is recorded of one sample: where it is, what was said of it, how it stood in each round.

Reads tables as Arrow has them: a year of rounds is told in the time that pandas would take to load.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from vabal.audit import index
from vabal.audit.ages import stood
from vabal.audit.rows import row_of, rows_of
from vabal.errors import UserError
from vabal.pools.class_names import in_words
from vabal.pools.reading import read_classes, read_one_arrow, rows
from vabal.pools.tables import OPTIONAL, SCHEMAS
from vabal.rounds import tables
from vabal.rounds.manifests import manifest_numbers, round_folder


def history(data: Path, sample_id: str, inbox: Path | None = None, indices: Path | None = None) -> dict[str, Any]:
    """Everything that is recorded of one sample, and with `inbox` the labels of it that no round has taken in yet.

    What rounds said of a candidate comes from their indices in `indices`, where they have one: the same, sooner.

    `sample_id`, its catalog row (`shard`, `row`, `sha256`, `width`, `height`, `added_round`), where it is now (`state`:
    labeled, holdout, available, requested or rejected; `label`), `events` in order of rounds: added, changes of its
    class, labels as they were given, scores as a candidate, requests; and `waiting`, the labels in the inbox. Raises
    UserError if the catalog does not know the sample, or a file is damaged.
    """
    row = catalog_row(data, sample_id, inbox)
    sample_id = row["sample_id"]
    place = f"shard {row['shard']}, row {row['row']}, {row['width']} x {row['height']} pixels, sha256 {row['sha256']}"
    added = {"round": row["added_round"], "what": "added", "detail": place}
    labels = _label_history(data, sample_id)
    changes = _class_history(data, {event["label"] for event in labels})
    events = [added, *changes, *labels, *_candidacies(data, sample_id, indices), *_asked_again(data, sample_id)]
    # 2 is what was said of its label, in the order in which it was said.
    order = {"added": 0, "class": 1, "candidate": 3, "requested": 4, "asked again": 4}
    events.sort(key=lambda event: (event["round"], order.get(event["what"], 2)))
    return {**row, **_state(data, sample_id), "events": events, "waiting": _waiting(inbox, sample_id)}


def catalog_row(data: Path, sample_id: str, inbox: Path | None = None) -> dict[str, Any]:
    """Of the sample with this id or blind name. Raises UserError if the catalog does not know it, or `inbox` has it
    yet."""
    path = data / "catalog.parquet"
    columns = [name for name in SCHEMAS["catalog"].names if name not in OPTIONAL]
    found = row_of(path, sample_id, columns, optional=OPTIONAL)
    if found is None:
        found = row_of(path, _meant(data, sample_id), columns, optional=OPTIONAL)
    if found is not None:
        return found
    from vabal.labels import arrivals  # noqa: PLC0415 -- pandas

    images_there = [] if inbox is None else arrivals.read(inbox, arrivals.pending(inbox))[1]
    if any((arrival.catalog["sample_id"] == sample_id).any() for arrival in images_there):
        raise UserError(f"the image {sample_id!r} waits in the inbox: the next round takes it in (`vabal round`)")
    raise UserError(f"no sample {sample_id!r} in {data / 'catalog.parquet'}: `vabal audit ROUND` lists ids")


def _meant(data: Path, name: str) -> str:
    """The id that stands behind a blind name."""
    import pandas as pd  # noqa: PLC0415 -- half a second

    from vabal.labels.names import ids_of  # noqa: PLC0415 -- pandas
    from vabal.pools.files import read_one  # noqa: PLC0415 -- pandas

    [meant] = ids_of(pd.Series([name]), read_one(data, "catalog"))
    return str(meant)


def _waiting(inbox: Path | None, sample_id: str) -> list[dict[str, Any]]:
    """The sample's labels in the inbox, in the order in which they came."""
    if inbox is None or not any((inbox / "labels").glob("*")):
        return []
    from vabal.labels import arrivals  # noqa: PLC0415 -- pandas

    events, _ = arrivals.read(inbox, [name for name in arrivals.pending(inbox) if name.startswith("labels/")])
    rows = events[events["sample_id"] == sample_id]
    return [_told(row) for row in rows.astype(object).where(rows.notna(), None).to_dict("records")]


def _state(data: Path, sample_id: str) -> dict[str, Any]:
    for state in ("labeled", "holdout"):
        found = row_of(data / f"{state}.parquet", sample_id, ["label"])
        if found is not None:
            return {"state": state, "label": found["label"], "requested_round": None}
    found = row_of(data / "unlabeled.parquet", sample_id, ["status", "requested_round"], names=["status"])
    if found is None:
        raise UserError(f"sample {sample_id} is in no pool: `vabal audit --verify` says what is wrong with data/")
    return {"state": found["status"], "label": None, "requested_round": found["requested_round"]}


def _label_history(data: Path, sample_id: str) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(SCHEMAS["label_events"].names)
    given = [{**nothing, **row} for row in rows_of(data / "label_events.parquet", sample_id)]
    now, before = read_classes(data).meaning, None
    ages = [(row["sample_id"], _micros(row["labeled_at"]), _micros(row["imported_at"])) for row in given]
    events: list[dict[str, Any]] = []
    for row, stands in zip(given, stood(ages), strict=True):
        label = now.get(row["label"], row["label"])
        what = "rejected" if label is None else "repeated" if label == before else "corrected" if before else "labelled"
        if stands:
            before = label
        else:
            what = "outdated"  # older than what stands
        events.append({"round": row["round"], "what": what, **_told(row)})
    return events


def _micros(time: datetime | None) -> int | None:
    return None if time is None else (time - _START) // timedelta(microseconds=1)


_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _class_history(data: Path, names: set[str | None]) -> list[dict[str, Any]]:
    """Renamed and merged classes that have one of these names, or came to have one of a class that has."""
    events: list[dict[str, Any]] = []
    for row in rows(read_one_arrow(data, "class_events")):
        if row["into"] is None or row["name"] not in names:
            continue
        names = names | {row["into"]}
        told = {key: row[key] for key in ("author", "reason")}
        change = in_words(row["action"], row["name"], row["into"])
        events.append({"round": row["round"], "what": "class", "detail": change, "when": row["at"].isoformat(), **told})
    return events


def _told(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What a label event says: when, of whom, by which file."""
    when, imported = (row[name].isoformat() if row[name] else None for name in ("labeled_at", "imported_at"))
    known = {"imported": imported} if imported else {}
    return {"when": when, **known, **{key: row[key] for key in ("label", "annotator", "source")}}


def _candidacies(data: Path, sample_id: str, indices: Path | None) -> list[dict[str, Any]]:
    """The sample's score and rank in every round that could have picked it, and the requests for its label.

    Who was a candidate and was not picked is not looked for among the picks.
    """
    events: list[dict[str, Any]] = []
    for number in manifest_numbers(data):
        folder = round_folder(data, number)
        candidates, selection = folder / tables.CANDIDATES_FILE, folder / tables.SELECTION_FILE
        stood_there = _candidacy(data, number, sample_id, indices) if candidates.exists() else None
        if stood_there is not None:
            events.append({"round": number, "what": "candidate", **stood_there})
            if stood_there["rank"] is None:
                continue
        if selection.exists():
            picked = row_of(selection, sample_id, ["rank"], optional=["probability"])
            if picked is not None:
                known = {"rank": picked["rank"], "probability": picked.get("probability")}
                events.append({"round": number, "what": "requested", **known})
    return events


def _candidacy(data: Path, number: int, sample_id: str, indices: Path | None) -> dict[str, Any] | None:
    digest = None if indices is None else index.digest_of(data, number)
    opened = None if indices is None or digest is None else index.Index.of(indices, digest)
    with suppress(ValueError):  # a damaged index: the table is there
        if opened is not None:
            return opened.row(sample_id)
    path, (rank, *others) = round_folder(data, number) / tables.CANDIDATES_FILE, index.TOLD
    return row_of(path, sample_id, [rank], optional=others, names=tables.OF_FEW_NAMES)


def _asked_again(data: Path, sample_id: str) -> list[dict[str, Any]]:
    """The rounds that asked for one more opinion of the sample: why, and the label that stood (None: rejected)."""
    asked = [row for row in rows(read_one_arrow(data, "asked_again")) if row["sample_id"] == sample_id]
    return [{"round": row["round"], "what": "asked again", **{k: row[k] for k in ("reason", "label")}} for row in asked]
