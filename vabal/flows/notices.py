"""Tell people of nights that nobody watches: one message an event, by whatever channels `params.yaml` names.

The Prefect server's states are what is told, looked at from a process of its own: it outlives the worker, the flow and
the server, and goes on where it was. What was told by which channel stands in `.vabal/notices.json`, so a second look,
a killed night or a killed notifier tells nothing twice; what a channel did not take is tried again for three days.
"""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from vabal.adapters import limits, messages
from vabal.adapters.messages import Message
from vabal.adapters.orchestration import Server
from vabal.errors import Unavailable, UserError
from vabal.files import locked, write_bytes
from vabal.flows import schedule
from vabal.settings.models import Params
from vabal.workspace import Workspace

POLL_S: Final = 10.0
AGAIN: Final = timedelta(minutes=1)  # before a channel that failed is tried again
LOOKED_BACK: Final = timedelta(days=3)
REMEMBERED: Final = timedelta(days=7)
HEADLINES: Final = {
    "published": "a round was published",
    "promoted": "there is a new champion",
    "refused": "nothing new came of it",
    "failed": "a night failed",
    "labels_due": "labels are due",
    "missed": "a night was missed",
}
_OF_STATES: Final = {"EnoughLabels": "there are enough labels"}  # where a state has a headline of its own
_HINTS: Final = {
    "published": "`vabal labels export DIR` hands the request out, `vabal open` shows the night.",
    "labels_due": "`vabal labels export DIR` hands the request out, `vabal labels import FILE` takes the answers in.",
    "failed": "The next night, or `vabal round`, goes on behind the last finished stage; `vabal status` looks around.",
    "missed": "`vabal status` tells what runs, `vabal up` starts what does not.",
}

Tell = Callable[[str], object]


class Notifier:
    """Of one workspace; `tell` hears, in a line each, what was told, and what could not be."""

    def __init__(self, place: Workspace, tell: Tell) -> None:
        self.place = place
        self.tell = tell
        self.sent: set[tuple[str, str]] = set()  # also where the disk is too full to write it down

    def look(self) -> None:
        """Tell what happened since the last look. Raises UserError for settings that cannot be read."""
        params = self.place.params()
        if not params.notify.by:
            return
        with locked(self.place.state / "notices.lock"):
            book = _Book(self.place)
            for message in self._events(params, book):
                self._send(message, params, book)
            book.forget()

    def follow(self) -> None:
        """Look again and again, until the process ends."""
        while True:
            try:
                self.look()
            except (UserError, OSError) as error:
                self.tell(f"messages wait: {' '.join(str(error).split())}")
                time.sleep(5 * POLL_S)
            time.sleep(POLL_S)

    def _events(self, params: Params, book: "_Book") -> list[Message]:
        """What is to be told, oldest first; of what was told already too."""
        now = datetime.now(UTC)
        grace = timedelta(minutes=params.notify.missed_after_minutes)
        server = Server.from_environment()
        try:
            runs = list(_runs(server, params, now - LOOKED_BACK))
            coming = schedule.look(server, params, within=limits.glance()).next
        except Unavailable as error:
            return _unseen(error, book, params, now - grace)
        except UserError:
            return []  # nothing is deployed
        book.expect(coming)
        found = [(moment, message) for run in runs for moment, message in _of(run, server, params, now - grace)]
        found.sort(key=lambda item: item[0])
        return [message for moment, message in found if moment >= book.since]

    def _send(self, message: Message, params: Params, book: "_Book") -> None:
        if message.event not in params.notify.events:
            return
        for channel in params.notify.by:
            once = (message.key, channel)
            if once in self.sent or book.was_told(*once) or book.rests(channel):
                continue
            try:
                messages.send(channel, message, params.notify, self.place.root)
            except UserError as error:
                if book.failed(channel, str(error)):
                    self.tell(f"not told: {message.subject}: {error}")
            else:
                self.sent.add(once)
                book.told(*once)
                self.tell(f"told by {channel}: {message.subject}")


def test(place: Workspace) -> list[str]:
    """Send a message of no event by every channel; a line each. Raises UserError if none is set or one fails."""
    params = place.params()
    if not params.notify.by:
        raise UserError("params.yaml: notify.by names no channel: webhook, email or command")
    key = f"test:{datetime.now(UTC).isoformat()}"
    text = "If you read this, messages about nights arrive."
    message = Message(key, "test", params.workspace.name, f"vabal {params.workspace.name}: a test", text)
    for channel in params.notify.by:
        messages.send(channel, message, params.notify, place.root)
    return [f"{channel}: sent" for channel in params.notify.by]


def trouble(place: Workspace) -> list[str]:
    """Why messages wait, a line a channel."""
    return [f"{entry['why']} (since {entry['since'][:16]})" for entry in _Book(place).document["trouble"].values()]


# --- what is told ----------------------------------------------------------------------------------------------------


def _runs(server: Server, params: Params, since: datetime) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Runs of both deployments that were to begin after `since` and before now; whether it is a night."""
    due = {"after_": since.isoformat(), "before_": datetime.now(UTC).isoformat()}
    for name, is_night in zip(schedule.deployment_names(params), (True, False), strict=True):
        try:
            found = server.deployment(name, within=limits.glance())
        except LookupError:
            continue
        for run in server.flow_runs({"deployment_id": {"any_": [found["id"]]}, "expected_start_time": due}):
            yield is_night, run


def _of(
    item: tuple[bool, dict[str, Any]], server: Server, params: Params, late: datetime
) -> Iterator[tuple[datetime, Message]]:
    """The event that a run is, and when it was; a night that was to begin before `late` and did not is missed."""
    is_night, run = item
    state, due = run["state"], datetime.fromisoformat(run["expected_start_time"])
    kind = _kind(state["type"], state["name"], is_night=is_night)
    moment = datetime.fromisoformat(state["timestamp"])
    if kind is None and is_night and state["type"] in ("SCHEDULED", "PENDING") and due < late:
        # One that waits for the night before it is not missed.
        kind, moment = (None if state["name"] == "AwaitingConcurrencySlot" else "missed"), due
    if kind is None:
        return
    said = " ".join((state["message"] or "").split())
    if kind == "missed":
        said = f"The night of {schedule.minute(due)} UTC did not begin ({state['name']}). {said}".rstrip()
    else:
        said = f"{'night' if is_night else 'promotion'}: {state['name']}{': ' if said else ''}{said}"
    link = f"{server.url.removesuffix('/api')}/runs/flow-run/{run['id']}"
    key = _missed(due) if kind == "missed" else f"{run['id']}:{kind}"
    yield moment, _message(key, kind, params, said, link, _OF_STATES.get(state["name"]))


def _missed(due: datetime) -> str:
    """The key of a night that did not begin: by its time, whoever noticed."""
    return f"missed:{due.astimezone(UTC).isoformat()}"


def _kind(kind: str, name: str, *, is_night: bool) -> str | None:
    """The event that a run's state is; None for what nobody has to be told."""
    if kind in ("FAILED", "CRASHED"):
        return "failed"
    if name == "Skipped" and kind == "CANCELLED":
        return "missed"  # while the stack was down
    if not is_night:
        return {"Promoted": "promoted", "Refused": "refused"}.get(name)
    if name in ("WaitingForLabels", "Skipped"):
        return "labels_due"
    if kind == "COMPLETED":
        return "published" if name == "Published" else "refused"
    return None


def _message(key: str, kind: str, params: Params, said: str, link: str | None, headline: str | None = None) -> Message:
    name = params.workspace.name
    text = "\n".join(filter(None, [said, _HINTS.get(kind)]))
    return Message(key, kind, name, f"vabal {name}: {headline or HEADLINES[kind]}", text, link)


def _unseen(error: Unavailable, book: "_Book", params: Params, late: datetime) -> list[Message]:
    """Where the server is away: the night that was expected next, if it is overdue."""
    nights = [datetime.fromisoformat(due) for due in book.document["expected"]]
    return [
        _message(
            _missed(due), "missed", params, f"The night of {schedule.minute(due)} UTC cannot have begun: {error}", None
        )
        for due in nights
        if book.since <= due < late
    ]


# --- what was told ---------------------------------------------------------------------------------------------------


class _Book:
    """`.vabal/notices.json`: what was told by which channel, what failed, and when the next nights are."""

    def __init__(self, place: Workspace) -> None:
        self.path = place.state / "notices.json"
        now = datetime.now(UTC).isoformat()
        self.document: dict[str, Any] = {"since": now, "told": {}, "trouble": {}, "expected": []}
        if self.path.is_file():
            try:
                self.document |= json.loads(self.path.read_bytes())
            except ValueError:
                raise UserError(f"{self.path} is damaged: delete it; what is older than now is not told then") from None

    @property
    def since(self) -> datetime:
        """When somebody looked for the first time: what was before is nobody's news."""
        return datetime.fromisoformat(self.document["since"])

    def was_told(self, key: str, channel: str) -> bool:
        return channel in self.document["told"].get(key, {})

    def told(self, key: str, channel: str) -> None:
        self.document["told"].setdefault(key, {})[channel] = datetime.now(UTC).isoformat()
        self.document["trouble"].pop(channel, None)
        self._write()

    def rests(self, channel: str) -> bool:
        entry = self.document["trouble"].get(channel)
        return entry is not None and datetime.now(UTC) - datetime.fromisoformat(entry["tried"]) < AGAIN

    def failed(self, channel: str, why: str) -> bool:
        """Whether that is news."""
        now = datetime.now(UTC).isoformat()
        before = self.document["trouble"].get(channel)
        since = before["since"] if before else now
        self.document["trouble"][channel] = {"why": why, "since": since, "tried": now}
        self._write()
        return before is None or before["why"] != why

    def expect(self, coming: tuple[datetime, ...]) -> None:
        expected = [when.astimezone(UTC).isoformat() for when in coming]
        if expected != self.document["expected"] or not self.path.is_file():
            self.document["expected"] = expected
            self._write()

    def forget(self) -> None:
        """What is older than anything that is looked at."""
        oldest = (datetime.now(UTC) - REMEMBERED).isoformat()
        kept = {key: by for key, by in self.document["told"].items() if max(by.values()) > oldest}
        if len(kept) < len(self.document["told"]):
            self.document["told"] = kept
            self._write()

    def _write(self) -> None:
        write_bytes(self.path, json.dumps(self.document, indent=1).encode())
