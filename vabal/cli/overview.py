"""What `vabal status` tells of a workspace: its newest round, its nights, who is champion, what waits, what is full."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vabal.errors import Unavailable, UserError

if TYPE_CHECKING:
    from vabal.workspace import Workspace


@dataclass(frozen=True)
class Part:
    """One of the things told: lines for people (without the name in front), and the same as a document."""

    lines: tuple[str, ...] = ()
    document: Any = None


def parts(folder: Path) -> Iterator[tuple[str, Part]]:
    """Of the workspace that `folder` lies in, by name; what cannot be told says why, in a line."""
    from vabal.workspace import Workspace

    try:
        place: Workspace | None = Workspace.find(folder)
    except UserError:
        place = None
    for name, tell in _PARTS.items():
        try:
            yield name, tell(place) if place else Part()
        except UserError as error:
            yield name, Part((str(error),))


def _workspace(place: "Workspace") -> Part:
    return Part((str(place.root),), str(place.root))


def _round(place: "Workspace") -> Part:
    from vabal import rounds

    if not (place.data / "catalog.parquet").is_file():
        return Part()
    newest = rounds.head(place.data)
    counts = ", ".join(f"{name} {count}" for name, count in newest.counts.items())
    document = {"round": newest.round, "strategy": newest.strategy, **newest.counts}
    return Part((f"{newest.round}, strategy {newest.strategy}, {counts}",), document)


def _drift(place: "Workspace") -> Part:
    """Nothing where the newest round's images are like those before, or are too few to tell."""
    from vabal import rounds
    from vabal.rounds.tables import DRIFT_FILE

    if not (place.data / "catalog.parquet").is_file():
        return Part()
    if not (rounds.round_folder(place.data, rounds.head(place.data).round) / DRIFT_FILE).is_file():
        return Part()
    from vabal.audit.drift import drifts  # pandas and more, which most nights are told without

    found = [night for night in drifts(place.data, last=True) if night.found]
    return Part((f"{found[0]} (`vabal control`)",), asdict(found[0])) if found else Part()


def _page(place: "Workspace") -> Part:
    from vabal import rounds

    if not (place.data / "catalog.parquet").is_file():
        return Part()
    page = place.report(rounds.head(place.data).round)
    return Part((str(page),), str(page)) if page.is_file() else Part()


def _nights(place: "Workspace") -> Part:
    from vabal.adapters import limits
    from vabal.adapters.orchestration import Server
    from vabal.flows import schedule

    place.environment()
    try:
        found = schedule.look(Server.from_environment(), place.params(), within=limits.glance())
    except Unavailable:
        return Part(("not known while the Prefect server is away: `vabal up`",))
    last = f"the last one: {found.last}" if found.last else "none has ended yet"
    running = [f"now: since {found.running}"] if found.running else []
    return Part((last, *running, *found.warnings(), found.coming()), found.to_json())


def _champion(place: "Workspace") -> Part:
    from vabal.promotion.record import read_record
    from vabal.promotion.served import champions_on

    found = champions_on(read_record(place.root), None, now=datetime.now(UTC))
    return Part((found.lines()[0],), found.times[0].to_json() if found.times else None)


def _labels(place: "Workspace") -> Part:
    from vabal.rounds import requests

    if not (place.data / "catalog.parquet").is_file():
        return Part()
    found = requests.answers(place)
    out = found.requested - found.answered
    said = f"{found.answered} of {found.requested} of round {found.round}'s request are in" if found.requested else ""
    way = f"; {out} are out: `vabal labels export DIR`" if out else ""
    document = {"round": found.round, "requested": found.requested, "answered": found.answered, "open": out}
    lines, enough = (said + way,) if said else ("none are asked for yet",), why_enough(place)
    return Part((*lines, enough) if enough else lines, document | ({"enough": enough} if enough else {}))


def why_enough(place: "Workspace") -> str | None:
    """Why the next night asks for no labels; None where it does."""
    params = place.params()
    if params.labelling.stop_rule == "never":
        return None
    from vabal.audit.enough import reason  # SciPy

    return reason(place.data, params)


def _inbox(place: "Workspace") -> Part:
    from vabal.labels import arrivals

    waiting = arrivals.pending(place.inbox)
    return Part((f"{len(waiting)} waiting for the next round" if waiting else "empty",), waiting)


def _messages(place: "Workspace") -> Part:
    from vabal.flows import notices

    by = place.params().notify.by
    waiting = notices.trouble(place) if by else []
    said = f"by {', '.join(by)}" if by else "none are sent (`notify` in params.yaml)"
    return Part((said, *(f"not taken: {line}" for line in waiting)), {"by": by, "trouble": waiting})


def _disk(place: "Workspace") -> Part:
    free = shutil.disk_usage(place.root).free
    taken = {name: _bytes_below(place.root / name) for name in (".vabal", ".dvc", "data")}
    said = ", ".join(f"{name} {size(count)}" for name, count in taken.items())
    return Part((f"{size(free)} free; taken by {said}",), {"free": free, **taken})


def _bytes_below(folder: Path) -> int:
    """What its files take, each once: DVC's cache and `data/` may share theirs. What goes away meanwhile counts not."""
    seen: dict[tuple[int, int], int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found = Path(path, name).lstat()
            except FileNotFoundError:
                continue
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def size(count: int) -> str:
    """Bytes, for people."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


_PARTS: Mapping[str, Callable[["Workspace"], Part]] = {
    "workspace": _workspace,
    "round": _round,
    "drift": _drift,
    "page": _page,
    "nights": _nights,
    "champion": _champion,
    "labels": _labels,
    "inbox": _inbox,
    "messages": _messages,
    "disk": _disk,
}
