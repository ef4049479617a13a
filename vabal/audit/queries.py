"""What was picked, when, why and by what: read from the pools' files alone (and the git tags, where they are given).

Whether that record is intact is `vabal.audit.verification`'s question.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal import images, pools
from vabal.errors import BRING_BACK, UserError
from vabal.files import sha256
from vabal.labels import arrivals
from vabal.labels.names import ids_of
from vabal.pools.files import readable
from vabal.promotion.record import read_record
from vabal.rounds import manifest_numbers, read_manifest, round_folder, tables, tag_name
from vabal.rounds.manifests import ModelRecord

_SAME_FORMAT = {".jpeg": ".jpg", ".tiff": ".tif", ".dib": ".bmp", ".pgm": ".ppm", ".pnm": ".ppm"}


# -- rounds -------------------------------------------------------------------------------------------------------


def rounds(data: Path, tags: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Every round in order: strategy, pools, picks by class, model, MLflow run, git tag and promotions.

    `labeled_by_class` counts the labelled pool that the round trained on, `picks_by_class` the picks whose label is
    known by now, both by today's classes, `picks_open` those without one, `picks_rejected` those that were rejected.
    Raises UserError if a manifest or a table is missing or damaged.
    """
    classes = pools.read_classes(data)
    events = pools.named(_label_events(data), classes)
    latest = dict(zip(*(pools.standing(events)[name].tolist() for name in ("sample_id", "label")), strict=True))
    numbers = manifest_numbers(data)
    labeled = _labeled_by_class(events, classes.names, numbers)
    promotions = read_record(data.parent)
    records = []
    for number in numbers:
        manifest = read_manifest(data, number)
        model = manifest.model or ModelRecord()
        tag = tag_name(number)
        records.append(
            {
                "round": number,
                "strategy": manifest.strategy,
                **{name: manifest.counts[name] for name in ("catalog", "labeled", "unlabeled", "holdout", "picks")},
                "labeled_by_class": labeled[number],
                **_labels_of_picks(data, number, latest, classes.names),
                "metrics": manifest.metrics or {},
                "model": model.name,
                "model_version": model.version,
                "mlflow_run": manifest.mlflow_run,
                "prefect_flow_run": manifest.prefect_flow_run,
                "tag": tag if tag in (tags or {}) else None,
                "times": manifest.times.model_dump() if manifest.times else None,
                "promotions": [
                    {"action": entry.action, "when": entry.when, "who": entry.who, "why": entry.why}
                    for entry in promotions
                    if entry.round == number
                ],
            }
        )
    return records


def _labels_of_picks(
    data: Path, number: int, latest: Mapping[str, str | None], classes: Sequence[str]
) -> dict[str, Any]:
    """`latest` is the last word on every sample that has one."""
    picked = _picked_ids(round_folder(data, number) / tables.SELECTION_FILE)
    said = [None if pd.isna(latest[name]) else latest[name] for name in picked if name in latest]
    by_class = Counter(said)
    return {
        "picks_by_class": {name: by_class[name] for name in classes},
        "picks_open": len(picked) - len(said),
        "picks_rejected": by_class[None],
    }


def _picked_ids(path: Path) -> list[str]:
    if not path.exists():
        return []
    with readable(path, BRING_BACK):
        file = pq.ParquetFile(path)
        if "sample_id" in file.schema_arrow.names:
            return list(map(str, file.read(columns=["sample_id"], use_threads=False).column(0).to_pylist()))
    return list(tables.read_selection(path)["sample_id"])  # which says what is wrong with it


def _label_events(data: Path) -> pd.DataFrame:
    """Every label event, but those of the holdout."""
    events = pools.read_table(data / "label_events.parquet", pools.SCHEMAS["label_events"])
    held = pools.read_table(data / "holdout.parquet", pools.SCHEMAS["holdout"])["sample_id"]
    return events[~pools.among(events["sample_id"], held)]


def _labeled_by_class(
    events: pd.DataFrame, classes: Sequence[str], numbers: Sequence[int]
) -> dict[int, dict[str, int]]:
    """By round, the labels that stood in it, in one pass: each event that counts takes the place of the one before."""
    counting = pools.counting(events)
    sample, label = (counting[name].to_numpy(dtype=object) for name in ("sample_id", "label"))
    code_E = pd.Series(pd.Index(classes).get_indexer(pd.Index(label)))
    before_E = code_E.groupby(sample).shift(fill_value=-1).astype(np.int64)
    round_E = np.searchsorted(numbers, counting["round"].to_numpy(dtype=np.int64))
    change_R_C = np.zeros((len(numbers) + 1, len(classes) + 1), dtype=np.int64)  # the last ones are nobody's
    np.add.at(change_R_C, (round_E, code_E.to_numpy()), 1)
    np.add.at(change_R_C, (round_E, before_E.to_numpy()), -1)
    count_R_C = change_R_C.cumsum(axis=0)
    return {number: dict(zip(classes, count_R_C[place].tolist(), strict=False)) for place, number in enumerate(numbers)}


# -- picks --------------------------------------------------------------------------------------------------------


def picks(data: Path, round_number: int) -> pd.DataFrame:
    """The picks of a round in rank order: what the selection says, and the label known by now.

    Columns: those of `rounds.tables.SELECTION` (of the control arm, which has a `probability`, no score), `margin` and
    `posterior` (of the predicted class), as far as the round recorded what they take,
    `label` (null: none), its `annotator`, and `rejected`. Raises UserError if there is no such
    round, or nothing was picked in it.
    """
    require_round(data, round_number)
    path = round_folder(data, round_number) / tables.SELECTION_FILE
    if round_number == 0 and not path.exists():
        raise UserError("round 0 picked nothing: its labels came with the source (`vabal audit` lists the rounds)")
    table = tables.read_selection(path).sort_values("rank").reset_index(drop=True)
    told = [path.with_name(name) for name in (tables.CANDIDATES_FILE, tables.CONTROL_FILE)]
    recorded = {row["sample_id"]: row for there in told if there.exists() for row in _picked_rows(there)}
    rows = [recorded.get(sample_id, {}) for sample_id in table["sample_id"]]
    events = pools.named(_label_events(data), pools.read_classes(data))
    latest = pools.standing(events).set_index("sample_id")
    answered = table["sample_id"].isin(latest.index)
    known = latest.reindex(table["sample_id"]).reset_index(drop=True)
    return table.assign(
        score=table["score"].mask(table["probability"].notna()),
        margin=pd.Series([margin_of(row) for row in rows], dtype=float),
        posterior=pd.Series([max(posterior_of(row), default=None) for row in rows], dtype=float),
        label=known["label"],
        annotator=known["annotator"],
        rejected=answered & known["label"].isna(),
    )


def require_round(data: Path, round_number: int) -> None:
    """Raises UserError, naming those that there are, if there is no such round."""
    numbers = manifest_numbers(data)
    if round_number not in numbers:
        known = f"there are rounds {numbers[0]} to {numbers[-1]}" if numbers else "there is none yet"
        raise UserError(f"no round {round_number}: {known} (`vabal audit` lists them)")


def posterior_of(candidate: Mapping[str, Any]) -> list[float]:
    """The classifier's (or the ensemble's) probability of each class; empty where the round recorded none."""
    if candidate.get("posteriors") is not None:
        return list(candidate["posteriors"])
    if candidate.get("logits") is not None:
        largest = max(candidate["logits"])
        weights = [math.exp(value - largest) for value in candidate["logits"]]
        return [weight / sum(weights) for weight in weights]
    return list(candidate.get("mean_posteriors") or [])


def margin_of(candidate: Mapping[str, Any]) -> float | None:
    """As recorded, or what a compact record, with NaN in its place, leaves to be computed; None where there is none."""
    recorded = candidate.get("margin")
    if recorded is None or not math.isnan(recorded):
        return recorded
    shares = sorted(posterior_of(candidate))
    return shares[-1] - shares[-2] if len(shares) > 1 else None


def _picked_rows(path: Path) -> list[dict[str, Any]]:
    """What a round recorded of its picks beside their scores, a row group in memory at a time."""
    rows: list[dict[str, Any]] = []
    with readable(path, BRING_BACK):
        file = pq.ParquetFile(path)
        columns = [name for name in _BESIDE if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            picked = pa.compute.is_valid(file.read_row_group(group, columns=["rank"]).column("rank"))
            if pa.compute.any(picked).as_py():
                rows += file.read_row_group(group, columns=columns).filter(picked).to_pylist()
    return rows


_BESIDE = ("sample_id", "margin", "posteriors", "logits", "mean_posteriors")


# -- one sample ---------------------------------------------------------------------------------------------------


def history(data: Path, sample_id: str, inbox: Path | None = None) -> dict[str, Any]:
    """Everything that is recorded of one sample, and with `inbox` the labels of it that no round has taken in yet.

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
    events = [added, *changes, *labels, *_candidacies(data, sample_id), *_asked_again(data, sample_id)]
    order = {
        "added": 0,
        "class": 1,
        "candidate": 3,
        "requested": 4,
        "asked again": 4,
    }  # else what was said of its label
    events.sort(
        key=lambda event: (event["round"], order.get(event["what"], 2))
    )  # stable: label events keep their order
    return {**row, **_state(data, sample_id), "events": events, "waiting": _waiting(inbox, sample_id)}


def _waiting(inbox: Path | None, sample_id: str) -> list[dict[str, Any]]:
    """The sample's labels in the inbox, in the order in which they came."""
    if inbox is None:
        return []
    events, _ = arrivals.read(inbox, [name for name in arrivals.pending(inbox) if name.startswith("labels/")])
    rows = events[events["sample_id"] == sample_id]
    return [_told(row) for row in rows.astype(object).where(rows.notna(), None).to_dict("records")]


def catalog_row(data: Path, sample_id: str, inbox: Path | None = None) -> dict[str, Any]:
    """Of the sample with this id or blind name. Raises UserError if the catalog does not know it, or `inbox` has it
    yet."""
    found = _rows_of(data / "catalog.parquet", sample_id)
    if not found:
        catalog = pools.read_table(data / "catalog.parquet", pools.SCHEMAS["catalog"])
        [meant] = ids_of(pd.Series([sample_id]), catalog)
        found = _rows_of(data / "catalog.parquet", meant)
    if found:
        return found[0]
    images_there = [] if inbox is None else arrivals.read(inbox, arrivals.pending(inbox))[1]
    if any((arrival.catalog["sample_id"] == sample_id).any() for arrival in images_there):
        raise UserError(f"the image {sample_id!r} waits in the inbox: the next round takes it in (`vabal round`)")
    raise UserError(f"no sample {sample_id!r} in {data / 'catalog.parquet'}: `vabal audit ROUND` lists ids")


def _state(data: Path, sample_id: str) -> dict[str, Any]:
    for state in ("labeled", "holdout"):
        found = _rows_of(data / f"{state}.parquet", sample_id)
        if found:
            return {"state": state, "label": found[0]["label"], "requested_round": None}
    found = _rows_of(data / "unlabeled.parquet", sample_id)
    if not found:
        raise UserError(f"sample {sample_id} is in no pool: `vabal audit --verify` says what is wrong with data/")
    return {"state": found[0]["status"], "label": None, "requested_round": found[0]["requested_round"]}


def _label_history(data: Path, sample_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    rows = pd.DataFrame(_rows_of(data / "label_events.parquet", sample_id), columns=pools.SCHEMAS["label_events"].names)
    now = pools.read_classes(data).meaning
    before: str | None = None
    for place, row in enumerate(rows.astype(object).where(rows.notna(), None).to_dict("records")):
        label = now.get(row["label"], row["label"])
        what = "rejected" if label is None else "repeated" if label == before else "corrected" if before else "labelled"
        if pools.standing(rows.iloc[: place + 1]).index[-1] != place:
            what = "outdated"  # older than what stands
        else:
            before = label
        events.append({"round": row["round"], "what": what, **_told(row)})
    return events


def _class_history(data: Path, names: set[str | None]) -> list[dict[str, Any]]:
    """Renamed and merged classes that have one of these names, or came to have one of a class that has."""
    table = pools.read_one(data, "class_events")
    events: list[dict[str, Any]] = []
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        if row["into"] is None or row["name"] not in names:
            continue
        names = names | {row["into"]}
        told = {key: row[key] for key in ("author", "reason")}
        change = pools.in_words(row["action"], row["name"], row["into"])
        events.append({"round": row["round"], "what": "class", "detail": change, "when": row["at"].isoformat(), **told})
    return events


def _told(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """What a label event says: when, of whom, by which file."""
    when, imported = (row[name].isoformat() if row[name] else None for name in ("labeled_at", "imported_at"))
    known = {"imported": imported} if imported else {}
    return {"when": when, **known, **{key: row[key] for key in ("label", "annotator", "source")}}


def _candidacies(data: Path, sample_id: str) -> list[dict[str, Any]]:
    """The sample's score and rank in every round that could have picked it, and the requests for its label."""
    columns = ["rank", "score", "predicted_class", "vae_class", "log_likelihood", "prior", "precision", "strategy"]
    events = []
    for number in manifest_numbers(data):
        folder = round_folder(data, number)
        candidates, selection = folder / tables.CANDIDATES_FILE, folder / tables.SELECTION_FILE
        if candidates.exists():
            for row in _rows_of(candidates, sample_id, columns):
                events.append({"round": number, "what": "candidate", **row})
        if selection.exists():
            for row in _rows_of(selection, sample_id, ["rank", "probability"]):
                told = {"probability": row.get("probability")}
                events.append({"round": number, "what": "requested", "rank": row["rank"], **told})
    return events


def _asked_again(data: Path, sample_id: str) -> list[dict[str, Any]]:
    """The rounds that asked for one more opinion of the sample: why, and the label that stood (None: rejected)."""
    table = pools.read_one(data, "asked_again")
    own = table.loc[table["sample_id"] == sample_id, ["round", "reason", "label"]].astype(object)
    rows = own.where(own.notna(), None).to_numpy().tolist()
    return [{"round": number, "what": "asked again", "reason": why, "label": label} for number, why, label in rows]


def _rows_of(path: Path, sample_id: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """A sample's rows of a table, in the file's order, a row group in memory at a time.

    Row groups whose ids, by their statistics, lie all before or all behind the sample's are not read: where rows stand
    in the order of their ids, that is all but one.
    """
    rows: list[dict[str, Any]] = []
    with readable(path, BRING_BACK):
        file = pq.ParquetFile(path)
        place = file.schema_arrow.get_field_index("sample_id")
        for group in range(file.num_row_groups):
            if not _may_hold(file.metadata.row_group(group).column(place).statistics, sample_id):
                continue
            ids = file.read_row_group(group, columns=["sample_id"], use_threads=False).column("sample_id")
            found = pa.compute.equal(ids, sample_id)
            if pa.compute.any(found).as_py():
                rows += file.read_row_group(group, columns=columns, use_threads=False).filter(found).to_pylist()
    return rows


def _may_hold(statistics: Any, sample_id: str) -> bool:
    """False where the least and the largest id of a row group say that the sample is not there.

    Parquet orders text by its UTF-8 bytes, and statistics may be cut short: a shorter least value is less, and of a
    largest one the writer sees to it that it is not less.
    """
    if statistics is None or not statistics.has_min_max:
        return True
    least, largest, wanted = (str(value).encode() for value in (statistics.min, statistics.max, sample_id))
    return bool(least <= wanted <= largest)


# -- the image itself ---------------------------------------------------------------------------------------------


def show(data: Path, sample_id: str, out: Path | None = None) -> Path:
    """Write the image's own bytes to a new file; returns its path, with the extension of the image's format.

    `out` is the file, or a folder for it; default: the current folder. Raises UserError if the catalog does not know
    the sample, its bytes are not those that were catalogued, or the file exists.
    """
    row = catalog_row(data, sample_id)
    sample_id = row["sample_id"]
    content = images.encoded(data, row["shard"], row["row"])
    if sha256(content) != row["sha256"]:
        raise UserError(f"the bytes of {sample_id} in shard {row['shard']} are not those that were catalogued")
    target = _named(out or Path(), sample_id, _extension(content, sample_id))
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{target} exists: name another file with --out") from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    return target


def _extension(content: bytes, sample_id: str) -> str:
    from vabal.images import shards  # noqa: PLC0415 -- Pillow, for `show` alone

    try:
        return shards.extension(content)
    except images.Unreadable as reason:
        raise UserError(f"sample {sample_id} is no readable image: {reason}") from None


def _named(out: Path, sample_id: str, extension: str) -> Path:
    if out.is_dir():
        return out / f"{images.safe_name(sample_id)}{extension}"
    suffix = out.suffix.lower()
    return out if _SAME_FORMAT.get(suffix, suffix) == extension else out.with_name(out.name + extension)
