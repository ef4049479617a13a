"""The nightly round's schedule as the Prefect server has it: the next nights, the last one, paused or not."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from vabal.adapters.orchestration import POOL, Server
from vabal.errors import UserError
from vabal.settings.models import Params

ROUND_FLOW, PROMOTION_FLOW = "active-learning-round", "promote-challenger"
NEXT = 3
ENDED, COMING, AT_WORK = ("COMPLETED", "CANCELLED", "FAILED", "CRASHED"), ("SCHEDULED",), ("PENDING", "RUNNING")


def deployment_names(params: Params) -> tuple[str, str]:
    """The round's and the promotion's deployment, each as `flow/deployment`."""
    return f"{ROUND_FLOW}/{prefix(params)}nightly-round", f"{PROMOTION_FLOW}/{prefix(params)}promote"


def prefix(params: Params) -> str:
    return "" if params.workspace.name == "default" else f"{params.workspace.name}-"


@dataclass(frozen=True)
class Night:
    """A run of the nightly deployment: `when` it ended, or began; Prefect's name of its state, and the flow's words."""

    when: datetime
    state: str
    message: str
    completed: bool

    @classmethod
    def of(cls, run: dict[str, Any]) -> "Night":
        moment = run.get("end_time") or run.get("start_time") or run["expected_start_time"]
        state = run["state"]
        message = " ".join((state["message"] or "").split())
        return cls(datetime.fromisoformat(moment), state["name"], message, state["type"] == "COMPLETED")

    def __str__(self) -> str:
        return f"{minute(self.when)}, {self.state}{': ' if self.message else ''}{self.message}"

    def to_json(self) -> dict[str, Any]:
        return {"when": self.when.isoformat(), "state": self.state, "message": self.message}


@dataclass(frozen=True)
class Schedule:
    """Of a workspace's nights. `next` in the time zone of the schedule; `last` and `running` where there is one."""

    deployment: str
    promotion: str
    cron: str | None
    timezone: str
    paused: bool
    next: tuple[datetime, ...]
    last: Night | None
    running: Night | None
    has_worker: bool
    differs: str | None  # what params.yaml says, where that is something else

    def lines(self) -> Iterator[str]:
        when = f"`{self.cron}` ({self.timezone})" if self.cron else "at no time"
        yield f"{self.deployment}: {when} on work pool {POOL}, one at a time"
        yield from self.warnings()
        yield self.coming()
        if self.running:
            yield f"now: since {self.running}"
        if self.last:
            yield f"the last night: {self.last}"

    def warnings(self) -> Iterator[str]:
        if self.differs:
            yield f"params.yaml says {self.differs}: `vabal deploy` puts that on the schedule"
        if not self.has_worker:
            yield f"no worker serves work pool {POOL}, so no night will run: start one, with `vabal up`"

    def coming(self) -> str:
        """The next nights, or why there are none, in a line."""
        if self.paused:
            return "paused: no night runs until `vabal schedule --resume`"
        if not self.next:
            return "next nights: not known yet, ask again in a moment"
        late = " (late)" if self.next[0] < datetime.now(UTC) - timedelta(minutes=1) else ""
        first, *others = (minute(when) for when in self.next)
        return f"next nights: {', '.join([first + late, *others])} ({self.timezone})"

    def to_json(self) -> dict[str, Any]:
        return {
            "deployment": self.deployment,
            "cron": self.cron,
            "timezone": self.timezone,
            "paused": self.paused,
            "next": [when.isoformat() for when in self.next],
            "last": self.last and self.last.to_json(),
            "running": self.running and self.running.to_json(),
            "has_worker": self.has_worker,
            "params_yaml": self.differs,
        }


def minute(when: datetime) -> str:
    """For people, in the moment's own time zone."""
    return f"{when:%a %Y-%m-%d %H:%M}"


def look(server: Server, params: Params, *, within: float | None = None) -> Schedule:
    """What the server knows of the workspace's nights, each answer waited for `within` seconds.

    Raises UserError where nothing is deployed, Unavailable where there is no server.
    """
    name, promotion = deployment_names(params)
    try:
        found = server.deployment(name, within=within)
    except LookupError:
        raise UserError(f"no schedule `{name}` at {server.url}: make it with `vabal deploy`") from None
    timetable = found["schedules"][0]["schedule"] if found["schedules"] else {}
    cron, timezone = timetable.get("cron"), timetable.get("timezone") or "UTC"
    zone = UTC if timezone == "UTC" else ZoneInfo(timezone)

    def runs(kinds: tuple[str, ...], sort: str, limit: int) -> list[dict[str, Any]]:
        wanted = {"deployment_id": {"any_": [found["id"]]}, "state": {"type": {"any_": list(kinds)}}}
        return server.some_flow_runs(wanted, sort, limit, within=within)

    def night(kinds: tuple[str, ...]) -> Night | None:
        return next(map(Night.of, runs(kinds, "EXPECTED_START_TIME_DESC", 1)), None)

    coming = runs(COMING, "EXPECTED_START_TIME_ASC", NEXT)
    wanted = (params.schedule.cron, params.schedule.timezone)
    return Schedule(
        deployment=name,
        promotion=promotion,
        cron=cron,
        timezone=timezone,
        paused=bool(found["paused"]),
        next=tuple(datetime.fromisoformat(run["expected_start_time"]).astimezone(zone) for run in coming),
        last=night(ENDED),
        running=night(AT_WORK),
        has_worker=server.has_worker(POOL),
        differs=None if wanted == (cron, timezone) else f"`{wanted[0]}` ({wanted[1]})",
    )


def pause(server: Server, params: Params, *, paused: bool) -> None:
    """Hold the schedule, or let it go on; a night that runs is left alone. Raises as `look` does."""
    name, _ = deployment_names(params)
    try:
        server.pause(server.deployment(name)["id"], paused=paused)
    except LookupError:
        raise UserError(f"no schedule `{name}` at {server.url}: make it with `vabal deploy`") from None
