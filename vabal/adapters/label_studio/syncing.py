"""`labels sync`: answers in, open requests out, by one command at a time."""

import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from vabal import pools, rounds
from vabal.adapters.label_studio.client import LabelStudio
from vabal.adapters.versioning import Versioning
from vabal.audit import queries
from vabal.errors import Unavailable, UserError
from vabal.files import canonical_json, locked, write_bytes
from vabal.labels import sync as labels
from vabal.labels.classes import upcoming
from vabal.labels.export import write_images
from vabal.labels.sync import Guess, SyncReport
from vabal.rounds.believed import believed
from vabal.settings.models import Params, StudioSettings
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from vabal.adapters.label_studio.bucket import ImageBucket

BUSY: Final = "another command is syncing labels: wait for it to end, then run this again"
# Label Studio notes that a task was changed shortly before the change can be seen; this is far longer.
MARGIN: Final = timedelta(hours=1)


def sync(workspace: Workspace, params: Params, now: datetime, *, everything: bool = False) -> SyncReport:
    """Take in what people said since the last time (`everything`: ever), then make a task of each open request.

    Raises UserError where the settings name no server, another sync runs, in a checkout of an older round; Unavailable
    where the server is. What was done until then stays done, and the next call goes on from there.
    """
    settings = params.labelling.studio
    if settings is None:
        raise UserError(
            "params.yaml names no Label Studio: write `studio: {url: https://...}` below labelling (docs/labelling.md)"
        )
    with (
        locked(workspace.state / "sync.lock", BUSY),
        closing(LabelStudio(settings, params.workspace.name, _bucket(settings, params))) as desk,
    ):
        versions = Versioning(workspace.root)
        rounds.refuse_older_checkout(workspace, versions)
        with rounds.reading(workspace, versions):
            known = pools.load(workspace.data)
        desk.open(upcoming(workspace.inbox, known).classes)
        note = workspace.state / "sync.json"
        pulled = labels.pull(workspace.inbox, known, desk, None if everything else _since(note, desk.place), now)
        if pulled.until is not None:
            write_bytes(note, canonical_json({"place": desk.place, "until": pulled.until.isoformat()}))
        pushed = _Pushed()
        try:
            _push(workspace, versions, desk, pushed, predictions=settings.predictions)
        except Unavailable as error:
            raise Unavailable(f"{error}{_before(pulled, pushed)}") from None
        return SyncReport(desk.place, pushed.open, pushed.made, pushed.dropped, pulled.taken, pulled.withdrawn)


@dataclass
class _Pushed:
    """Requests that are open, tasks that they want, those that were made by now, and twins that were dropped."""

    open: int = 0
    wanted: int = 0
    made: int = 0
    dropped: int = 0


def _push(workspace: Workspace, versions: Versioning, desk: LabelStudio, told: _Pushed, *, predictions: bool) -> None:
    """Make the tasks, and count them in `told`, which says how far it came where the server goes away."""
    desk.shelve()
    pictures = workspace.state / "sync"
    shutil.rmtree(pictures, ignore_errors=True)  # what a killed run left
    with rounds.reading(workspace, versions):  # a round may have been published meanwhile
        known = pools.load(workspace.data)
        found = labels.compare(workspace.inbox, known, desk)
        told.open, told.wanted = len(found.open), len(found.missing)
        pictures.mkdir(mode=0o700)
        files = write_images(known, workspace.data, found.wanted, pictures)
        guesses = guesses_of(workspace.data, found.missing, known) if predictions else {}
    for _ in labels.push(desk, pictures, files, found, guesses):
        told.made += 1
    shutil.rmtree(pictures)
    told.dropped = labels.drop_twins(desk, found.twice)


def _before(pulled: labels.Pulled, pushed: _Pushed) -> str:
    """What was done before the server went away; empty if nothing was."""
    taken = pulled.taken
    done = [f"{taken.labels} labels and {taken.rejections} rejections taken in"] if taken.name else []
    done += [f"{pushed.made} of {pushed.wanted} tasks made"] if pushed.made else []
    return f" (before that: {', '.join(done)})" if done else ""


def _bucket(settings: StudioSettings, params: Params) -> "ImageBucket | None":
    if settings.images == "upload":
        return None
    from vabal.adapters.label_studio.bucket import ImageBucket  # noqa: PLC0415 -- boto3

    return ImageBucket(settings.bucket, params.workspace.name, params.storage.bucket)


def _since(note: Path, place: str) -> datetime | None:
    """From when on changes are asked for; None: all of them, also where the note is damaged or another project's."""
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        return datetime.fromisoformat(said["until"]) - MARGIN if said["place"] == place else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def guesses_of(data: Path, requests: pd.DataFrame, known: pools.Pools) -> dict[str, Guess]:
    """What the model of each request's round took the image for, by sample_id, as far as that is recorded.

    Of an image that is asked about again, what a probe that has not learned from it says: without any, it would stand
    out among the others, and a model that has learned its label would tell that label.
    """
    found: dict[str, Guess] = {}
    again = {int(number) for number in requests.loc[requests["purpose"] == "again", "requested_round"]}
    for number in {int(number) for number in requests["requested_round"]} - {0}:
        model = rounds.read_manifest(data, number).model
        version = f"{model.name} version {model.version}" if model and model.version else f"round {number}"
        picks = queries.picks(data, number)
        rows = list(zip(picks["sample_id"], picks["predicted_class"], picks["posterior"], strict=True))
        rows += _held_out(data, number, pools.Classes.of(known)) if number in again else []
        for sample_id, label, score in rows:
            if not pd.isna(label):
                found.setdefault(sample_id, Guess(str(label), None if pd.isna(score) else float(score), version))
    return found


def _held_out(data: Path, number: int, classes: pools.Classes) -> list[tuple[str, str, float]]:
    """Image, class and probability, by the probe of a round that has not learned from the image."""
    told = believed(data, number, classes)
    if told is None:
        return []
    best_N = told.posterior_N_C.argmax(axis=1)
    names = [told.classes[best] for best in best_N]
    return list(zip(told.sample_ids, names, told.posterior_N_C.max(axis=1).tolist(), strict=True))
