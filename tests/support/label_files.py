"""Files of labels as people and Label Studio write them, and what of them an inbox takes in."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from tests.support.small_pools import WHEN, small_pools
from vabal import pools
from vabal.labels import answers as labels_answers
from vabal.labels import arrivals as labels_arrivals
from vabal.labels import inbox
from vabal.pools import Pools


def imported(box: Path, text: str | bytes, name: str = "labels.csv", made: Pools | None = None) -> inbox.ImportReport:
    file = box.parent / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return labels_answers.import_labels(box, made or small_pools(), file, WHEN)


def taken(box: Path) -> list[tuple[str, str | None, str]]:
    events, _ = labels_arrivals.read(box, labels_arrivals.pending(box))
    columns = [events[name].astype(object).where(events[name].notna(), None) for name in ("sample_id", "label")]
    return list(zip(*columns, events["annotator"], strict=True))


def annotation(*choices: str, person: Any = 7, at: str = "2024-01-01T00:00:00Z", skipped: bool = False) -> Any:
    result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": list(choices)}}]
    return {
        "id": 1,
        "result": result if choices else [],
        "was_cancelled": skipped,
        "completed_by": person,
        "updated_at": at,
    }


def task(sample_id: str, *annotations: Any) -> Any:
    return {"id": 1, "data": {"image": "data:", "sample_id": sample_id}, "annotations": annotations}


FORMATS = ("json", "json-min", "csv")
Given = tuple[str, str | None, str, Any, bool]  # sample_id, label, time, person, skipped


def exported(form: str, *given: Given) -> bytes:
    """Annotations as Label Studio 1.23 exports them: the short forms leave skips out and begin with the newest."""
    numbered = list(enumerate(given, start=1))
    if form == "json":
        tasks = {name: task(name) | {"annotations": []} for name, *_ in given}
        for number, (name, label, time, person, skipped) in numbered:
            other = {"from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
            item = annotation(*([label] if label else []), person=person, at=time, skipped=skipped)
            tasks[name]["annotations"].append({**item, "id": number, "result": [*item["result"], other]})
        predicted = [{"result": annotation("dog")["result"], "score": 0.9}]
        return json.dumps([{**one, "predictions": predicted, "drafts": predicted} for one in tasks.values()]).encode()
    rows = [
        {"annotation_id": number, "annotator": person["email"] if isinstance(person, dict) else person}
        | {"sample_id": name, "label": label, "quality": "cat", "image": "data:" + "x" * 200_000}
        | {"created_at": "2020-01-01T00:00:00Z", "updated_at": time}
        for number, (name, label, time, person, skipped) in reversed(numbered)
        if not skipped
    ]
    if form == "json-min":
        return json.dumps([{key: row[key] for key in row if row[key] is not None} for row in rows]).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, sorted(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def stand(box: Path, made: Pools | None = None) -> dict[str, str | None]:
    """The labels that stand once a round has taken the inbox in; None: rejected."""
    events, _ = labels_arrivals.read(box, labels_arrivals.pending(box))
    after, _ = pools.apply_labels(made or small_pools(), events, 2)
    pools.check(after)
    last = pools.standing(after.label_events)
    return {name: label if isinstance(label, str) else None for name, label in last[["sample_id", "label"]].to_numpy()}
