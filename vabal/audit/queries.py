"""A round's picks, and an image of the pool, read from the pools' files alone.

Whether that record is intact is `vabal.audit.verification`'s question.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal import images, pools
from vabal.audit.sample import catalog_row
from vabal.errors import BRING_BACK, UserError
from vabal.files import sha256
from vabal.pools.reading import readable
from vabal.rounds import manifest_numbers, round_folder, tables

_SAME_FORMAT = {".jpeg": ".jpg", ".tiff": ".tif", ".dib": ".bmp", ".pgm": ".ppm", ".pnm": ".ppm"}


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
    events = pools.read_one(data, "label_events")
    held = pools.read_one(data, "holdout")["sample_id"]
    events = pools.named(events[~pools.among(events["sample_id"], held)], pools.read_classes(data))
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
