"""A benchmark's result in words: favourable or not, and what it lacks."""

from collections.abc import Sequence

from vabal import statistics
from vabal.benchmark.curves import baseline_of, picks_of
from vabal.benchmark.summary import Setting, StrategyOverall, Summary
from vabal.pages.tables import NAMES, interval
from vabal.statistics import MAIN

_OURS = "vabal"
_MOST_NAMED = 5  # rivals in a sentence


def family(names: Sequence[str]) -> list[str]:
    """Rows of our strategies: `vabal` and its variants, `vabal` itself first."""
    ours = [name for name in names if picks_of(name).startswith(_OURS)]
    return sorted(ours, key=lambda name: (picks_of(name) != _OURS, name))


def headline(summary: Summary) -> str:
    """The result in two sentences of plain text, favourable or not."""
    name = summary.reference
    if name is None:
        return f"Only {summary.baseline} was run: there is nothing to compare it with."
    baseline = baseline_of(name, summary.baseline)
    found = next(item for item in summary.pooled.strategies if item.strategy == name)
    if not found.difference:
        met = baseline in summary.strategies
        why = f"{name} and {baseline} have no seed in common" if met else f"{baseline} was not run beside {name}"
        return f"{why}: there are no matched differences to it. {_told_apart(summary, name)}".strip()
    said = [_against_baseline(name, baseline, found), _against_rivals(name, summary), _told_apart(summary)]
    return " ".join(sentence for sentence in said if sentence)


def _against_baseline(name: str, baseline: str, found: StrategyOverall) -> str:
    gap, many = (found.difference or {})[MAIN], found.settings
    mean = round(100 * gap.mean, 2)
    verb = "above" if mean > 0 else "below" if mean < 0 else "away from"
    where = f"Over {many} settings and {counted(gap.n, 'matched pair')}, " if many > 1 else ""
    pairs = "" if many > 1 else f" with {counted(gap.n, 'matched seed')}"
    first = f"{where}{name}'s average {NAMES[MAIN]} is {abs(mean):.2f} points {verb} {baseline}'s{pairs}"
    if gap.low is None:
        return f"{first}; one pair gives no interval."
    first += f" (95 % interval {interval(gap.low, gap.high)})"
    if gap.high is not None and gap.low <= 0 <= gap.high:
        first += ", not distinguishable from it"
    if many == 1:
        return f"{first}."
    above, below = found.settings_above, found.settings_below
    return f"{first}; taken alone, {above} of {many} settings have an interval above zero and {below} one below it."


def _told_apart(summary: Summary, who: str = "it") -> str:
    """Empty where no rival could be tested."""
    rivals = [item for item in summary.pooled.rivals if item.holm_t_p is not None]
    if not rivals:
        return ""
    said = []
    for verdict, words in (
        ("ahead", "ahead of"),
        ("behind", "behind"),
        ("not distinguishable", "not distinguishable from"),
    ):
        found = [item.strategy for item in rivals if item.verdict == verdict]
        if found:
            named = f" ({', '.join(found)})" if len(found) <= _MOST_NAMED else ""
            said.append(f"{words} {len(found)}{named}")
    return f"Of {counted(len(rivals), 'rival')} {who} is, after Holm's correction, {'; '.join(said)}."


def _against_rivals(name: str, summary: Summary) -> str:
    closest = [
        (setting, _closest_rival(name, setting, baseline_of(name, summary.baseline))) for setting in summary.settings
    ]
    compared = [(setting.name, *rival) for setting, rival in closest if rival is not None]
    if not compared:
        return "No rival was run beside it."
    higher = [
        f"{rival} is {100 * gap.mean:.2f} points higher in {setting} {_said_interval(gap)}"
        for setting, rival, gap in compared
        if gap.mean > 0
    ]
    if not higher:
        if len(compared) > 1:
            return f"No rival's mean is higher in any of the {len(compared)} settings."
        _, rival, gap = compared[0]
        return f"No rival's mean is higher; the closest, {rival}, is {-100 * gap.mean:.2f} points lower."
    if len(compared) == 1:
        _, rival, gap = compared[0]
        return f"The best rival, {rival}, is {100 * gap.mean:.2f} points higher {_said_interval(gap)}."
    none = len(compared) - len(higher)
    if not none:
        return f"In each of the {len(compared)} settings some rival's mean is higher: {'; '.join(higher)}."
    return f"No rival's mean is higher in {none} of {len(compared)} settings; in the others, {'; '.join(higher)}."


def _closest_rival(name: str, setting: Setting, baseline: str) -> tuple[str, statistics.Difference] | None:
    """The rival whose matched difference to `name` is the largest, and that difference."""
    by_seed = {
        item.strategy: dict(zip(item.seeds, item.main.average.per_seed, strict=True)) for item in setting.strategies
    }
    mine = by_seed.get(name, {})
    own = family(list(by_seed))
    found = []
    for rival, theirs in by_seed.items():
        shared = sorted(set(mine) & set(theirs))
        if shared and rival not in (*own, name, baseline):
            found.append((rival, statistics.difference([theirs[seed] - mine[seed] for seed in shared])))
    return max(found, key=lambda item: (item[1].mean, item[0])) if found else None


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _said_interval(gap: statistics.Difference) -> str:
    return "(one seed)" if gap.low is None else interval(gap.low, gap.high)


def unfinished(summary: Summary) -> str:
    """What the grid lacks; empty where it lacks nothing."""
    lacking = [
        f"{item.strategy} in {setting.name} lacks {len(item.missing_seeds)} of {len(setting.seeds)} seeds"
        for setting in summary.settings
        for item in setting.strategies
        if item.missing_seeds
    ]
    lacking += [
        f"{name} did not run in {setting.name}"
        for setting in summary.settings
        for name in summary.strategies
        if name not in {item.strategy for item in setting.strategies}
    ]
    more = f"; and {len(lacking) - 6} more like these" if len(lacking) > 6 else ""
    return "; ".join(lacking[:6]) + more
