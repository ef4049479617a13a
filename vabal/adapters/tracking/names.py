"""The tags that runs and versions are found again by, and names and lists as MLflow takes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vabal.files import sha256

WORKSPACE, ROUND, ROUND_KEY = "vabal.workspace", "vabal.round", "vabal.round_key"
SETTINGS, WEIGHTS = "vabal.settings_sha256", "vabal.weights_sha256"
FILES = "vabal.files"  # the sha256 of every file of a version
OWNER, STATUS = "vabal.clone", "vabal.status"  # who made it; of what does not count: lost, abandoned or superseded
CELL_KEY = "vabal.cell"  # of a benchmark
PARAMS_A_CALL, METRICS_A_CALL, LONGEST_NAME, VERSIONS_A_CALL = 100, 1000, 250, 1000  # MLflow's own limits

WITH_GROUPS = ("holdout/", "control/")  # of metrics: holdout/recall/<class>
# MLflow's own tags: which pages an experiment has, and the text on the page of an experiment or a run.
KIND, NOTE = "mlflow.experimentKind", "mlflow.note.content"

T = TypeVar("T")


def metric_name(name: str) -> str:
    """The name as MLflow takes it: `group/name`, with other characters (in class names) as `_<hexadecimal code>_`.

    Its charts have a section a group, and `holdout` and `control` have groups within. MLflow refuses names that are no
    clean path. Names of more than 250 characters end in a digest instead.
    """
    levels = 2 if name.startswith(WITH_GROUPS) else 1
    safe = "/".join(_coded(r"[^\w.\- :]", part) for part in name.split("/", maxsplit=levels))
    if len(safe) <= LONGEST_NAME:
        return safe
    return f"{safe[: LONGEST_NAME - 17]}_{sha256(name.encode())[:16]}"


def _coded(characters: str, text: str) -> str:
    if not text.strip("."):
        characters = r"\."
    return re.sub(characters, lambda match: f"_{ord(match[0]):x}_", text)


def tag_filter(tags: Mapping[str, str]) -> str:
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def flatten(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
