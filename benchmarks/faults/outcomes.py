"""What came of a fault, promise by promise."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.faults.children import Ended
from benchmarks.faults.nights import Nights, facts

PROMISES = {
    "verified": "`audit --verify` is content",
    "same picks": "the picks are those of the undisturbed run",
    "nothing doubled": "no label, image, round, version, commit or decision is there twice",
    "nothing lost": "none is missing",
    "one line": "what failed said why in one line",
    "got out": "the same command again comes to its end",
}
ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """What was done to which command, how often it took hold (`tried`), and the promises that were broken, with why."""

    kind: str
    where: str
    tried: int
    broken: dict[str, str]


class Settle:
    """The same command again, until it ends well; then what is so is held against the undisturbed run."""

    def __call__(
        self, nights: Nights, step: str, kind: str, where: str, told: Sequence[Ended], *, tried: int = 1
    ) -> Outcome:
        broken: dict[str, str] = {}
        for ended in told:
            if not ended.in_one_line:
                broken["one line"] = _short(ended)
        for _ in range(ATTEMPTS):
            if self.is_done(nights, step):
                break
            ended = nights.run(step)
            if not ended.in_one_line:
                broken["one line"] = _short(ended)
            if ended.code == 0:
                break
        else:
            broken["got out"] = _short(ended)
        broken |= compared(nights, step)
        return Outcome(kind, where, tried, broken)

    @staticmethod
    def is_done(nights: Nights, step: str) -> bool:
        """Whether it had come to its end before it was killed: nobody runs it again then."""
        try:
            now = facts(nights.folder)
        except Exception:  # noqa: BLE001 -- half a workspace is not done
            return False
        return all(now[name] == nights.facts[step][name] for name in now if name != "left") and not (
            (nights.root / ".vabal" / "publish").exists() or (nights.root / ".vabal" / "init.json").exists()
        )


settle = Settle()


def compared(nights: Nights, step: str, registry: Sequence[str] | None = None) -> dict[str, str]:
    """The promises that do not hold after the step, each with what is so instead."""
    broken: dict[str, str] = {}
    verified = nights.vabal("audit", "--verify")
    if verified.code != 0:
        broken["verified"] = _short(verified)
    try:
        now = facts(nights.folder, registry)
    except Exception as error:  # noqa: BLE001 -- it is the finding
        return broken | {"nothing lost": f"cannot be read: {error!r}"[:300]}
    expected = nights.facts[step]
    if now["picks"] != expected["picks"]:
        broken["same picks"] = f"{dict(now['picks'])} instead of {dict(expected['picks'])}"
    for name in [name for name in now if name not in ("picks", "left")]:
        if more := now[name] - expected[name]:
            broken["nothing doubled"] = f"{name}: {dict(more)}"
        if less := expected[name] - now[name]:
            broken["nothing lost"] = f"{name}: {dict(less)}"
    return broken


def _short(ended: Ended) -> str:
    return f"exit {ended.code}: {ended.said[-600:]}"
