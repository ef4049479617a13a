"""Requests out to a server where people label, and their answers in: `labels sync`, whichever server it is.

Nothing is remembered of what was sent: the server is asked which requests have a task, so that a run that was killed
anywhere is followed by one that does the rest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pandas as pd

from vabal.errors import some
from vabal.images.shards import for_browser
from vabal.labels import arrivals
from vabal.labels.answers import answers_of, opinions_in
from vabal.labels.classes import upcoming
from vabal.labels.inbox import ImportReport, take_labels
from vabal.labels.names import blind_names, ids_of
from vabal.pools import EVENTS, Pools, among, apply_labels, open_requests, stack, standing
from vabal.progress import track

_KEPT: Final = ("id", "result", "was_cancelled", "completed_by", "created_at", "updated_at")  # of an annotation


class Known(NamedTuple):
    """A task of the server: its number, the image's name, the round that asked, and all that was said of it."""

    number: int
    name: str
    round: int | None
    task: dict[str, Any]


class Guess(NamedTuple):
    """What a model says of an image: shown to people only where the settings ask for it."""

    label: str
    score: float | None
    model: str


class Desk(Protocol):
    """A server where people label, and the project there; see `vabal.adapters.label_studio`."""

    @property
    def place(self) -> str: ...
    def open(self, classes: Sequence[str]) -> None: ...
    def changed(self, since: datetime | None) -> Iterator[dict[str, Any]]: ...
    def known(self, names: Sequence[str], *, whole: bool = False) -> Iterator[Known]: ...
    def ask(self, name: str, number: int, picture: bytes, media: str, guess: Guess | None) -> None: ...
    def lost(self, tasks: Sequence[Known]) -> set[str]: ...
    def mend(self, name: str, picture: bytes, media: str) -> None: ...
    def drop(self, number: int) -> bool: ...


@dataclass(frozen=True)
class SyncReport:
    """What a sync came to.

    `requests` are open, `made` of them got a task now; `dropped` tasks stood twice, and nobody had begun them. `taken`
    tells of the answers; of the images in `withdrawn` an opinion is gone from the server that was taken in before.
    """

    place: str
    requests: int
    made: int
    dropped: int
    taken: ImportReport
    withdrawn: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        twice = f", {self.dropped} that stood twice dropped" if self.dropped else ""
        said = [f"{self.place}: {self.made} tasks made{twice}; {self.requests} requests are open"]
        told = replace(self.taken, repeated=0, unanswered=0).lines()
        said += told if self.taken.name else told[1:]
        if self.withdrawn:
            said.append(
                f"{len(self.withdrawn)} images have an opinion that was deleted there after it was taken in: it stands "
                f"until another one comes ({some(self.withdrawn)})"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# --- in ---------------------------------------------------------------------------------------------------------------


class Pulled(NamedTuple):
    """What came in. All that was changed before `until` is settled; None: as before."""

    taken: ImportReport
    withdrawn: tuple[str, ...]
    until: datetime | None


def pull(inbox: Path, pools: Pools, desk: Desk, since: datetime | None, when: datetime) -> Pulled:
    """Take what was said since then (None: ever) into the inbox; what was taken in before adds nothing.

    An answer that the pools cannot take (an image or a class that they do not know) is left out and told, and looked at
    again the next time. The labels are on disk, durable, when this returns.
    """
    tasks = [_small(task) for task in desk.changed(since)]
    taken = take_labels(inbox, pools, answers_of(tasks), file=desk.place, content=None, when=when)
    times = {f"task {task['id']}": _time(task["updated_at"]) for task in tasks}
    wrong = [times[where] for where, _ in taken.wrong if where in times]
    until = min(wrong, default=None) or max(times.values(), default=None)
    return Pulled(taken, _withdrawn(inbox, pools, desk, tasks), until)


def _small(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task without its image, which may be inside, and without what no answer is made of."""
    data = task.get("data")
    annotations = task.get("annotations") or []
    return {
        "id": task.get("id"),
        "updated_at": task.get("updated_at"),
        "data": {"sample_id": data.get("sample_id")} if isinstance(data, dict) else None,
        "annotations": [{name: item.get(name) for name in _KEPT} for item in annotations if isinstance(item, dict)],
    }


def _time(text: Any) -> datetime:
    return datetime.fromisoformat(str(text))


def _withdrawn(inbox: Path, pools: Pools, desk: Desk, tasks: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The images of these tasks with an opinion that came from there and is there no more."""
    waiting, _ = arrivals.read(inbox, arrivals.pending(inbox))
    events = stack([pools.label_events, waiting], EVENTS)
    events = events[events["source"].str.startswith(f"{desk.place}#")]
    there = _opinions(tasks, pools)
    seen = {sample_id for sample_id, _ in there}
    people = standing(events[among(events["sample_id"], seen)], by=["sample_id", "annotator"])
    gone = [pair for pair in zip(people["sample_id"], people["annotator"], strict=True) if pair not in there]
    if not gone:
        return ()
    blind = blind_names(pools.catalog[among(pools.catalog["sample_id"], {sample_id for sample_id, _ in gone})])
    whole = _opinions([known.task for known in desk.known(list(blind.values()), whole=True)], pools)
    return tuple(dict.fromkeys(sample_id for sample_id, person in gone if (sample_id, person) not in whole))


def _opinions(tasks: Iterable[Any], pools: Pools) -> set[tuple[str, str | None]]:
    """Who says something of which image; with None for each image."""
    found = opinions_in(tasks)
    samples = ids_of(found["sample_id"], pools.catalog)
    return {*zip(samples, found["annotator"], strict=True)}


# --- out --------------------------------------------------------------------------------------------------------------


class Requests(NamedTuple):
    """The open requests (columns of `pools.open_requests` and the blind `name`), those of them that have no task yet,
    those whose task has lost its image, and the numbers of tasks of one request."""

    open: pd.DataFrame
    missing: pd.DataFrame
    lost: pd.DataFrame
    twice: list[list[int]]

    @property
    def wanted(self) -> pd.DataFrame:
        """Those whose image is to be sent."""
        return pd.concat([self.missing, self.lost]).drop_duplicates("sample_id")


def compare(inbox: Path, pools: Pools, desk: Desk) -> Requests:
    """The open requests that the inbox has no answer for, beside the tasks that there are."""
    events, _ = arrivals.read(inbox, arrivals.pending(inbox))
    after, _ = apply_labels(upcoming(inbox, pools), events, 0)
    requests = open_requests(after)
    requests["name"] = requests["sample_id"].map(blind_names(pools.catalog))
    tasks = list(desk.known(list(requests["name"])))
    made: dict[tuple[str, int], list[int]] = {}
    for known in tasks:
        if known.round is not None:  # else somebody has imported it, perhaps to ask a second person
            made.setdefault((known.name, known.round), []).append(known.number)
    # What is asked again needs a task of its own: that of the first time has its answer.
    there = {known.name for known in tasks}
    pairs = zip(requests["name"], requests["requested_round"], requests["purpose"] == "again", strict=True)
    without = [(name, number) not in made if once_more else name not in there for name, number, once_more in pairs]
    missing = requests[np.array(without, dtype=bool)]  # an empty list would choose columns
    lost = requests[among(requests["name"], desk.lost(tasks))]
    return Requests(requests, missing, lost, [numbers for numbers in made.values() if len(numbers) > 1])


def drop_twins(desk: Desk, twice: Iterable[list[int]]) -> int:
    """Leave one task of each list, or those that somebody has begun; the youngest go first. Returns how many went."""
    dropped = 0
    for numbers in twice:
        left = len(numbers)
        for number in sorted(numbers, reverse=True):
            if left > 1 and desk.drop(number):
                left -= 1
        dropped += len(numbers) - left
    return dropped


def push(
    desk: Desk, folder: Path, files: Mapping[str, str], requests: Requests, guesses: Mapping[str, Guess]
) -> Iterator[str]:
    """Make a task of each image of `files` (path below `folder` by blind name), in this order, as large as it is.

    Yields its name once a task is made. Those that have one get only their image back. `guesses`, by sample_id, are
    shown to people.
    """
    ids = dict(zip(requests.missing["name"], requests.missing["sample_id"], strict=True))
    rounds = dict(zip(requests.missing["name"], requests.missing["requested_round"], strict=True))
    for name, file in track(files.items(), "make tasks", len(files)):
        media, picture = for_browser((folder / file).read_bytes(), most=None)
        if name in rounds:
            desk.ask(name, int(rounds[name]), picture, media, guesses.get(ids[name]))
            yield name
        else:
            desk.mend(name, picture, media)
