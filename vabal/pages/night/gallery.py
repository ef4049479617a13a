"""The picks with their pictures, grouped by predicted class: what is known of each, and why it was picked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from vabal.pages.blocks import Block, Card, Fact, Gallery, Group, Text
from vabal.pages.headline import counted
from vabal.pages.night import reasons
from vabal.pages.night.looks import Looks, Nearest
from vabal.pages.night.record import Night
from vabal.pages.pictures import Picture

MOST_SHOWN: Final = 1_000  # picks with pictures on one page
_MOST_CLASSES: Final = 3  # of a posterior
_ORDERS: Final = {"rank": "rank", "reason": "kind of reason", "margin": "margin, the smallest first"}
_NO_CLASS: Final = "no class predicted"


@dataclass(frozen=True)
class Known:
    """What a card is made of besides its pick: pictures, looks, labels by class, and each sample's standing label."""

    pictures: Mapping[str, Picture]
    looks: Looks
    labels: Mapping[str, int]
    label_of: Mapping[str, str]
    answers: Mapping[str, str | None]  # by pick: what is known by now; None: rejected


def blocks(night: Night, known: Known) -> list[Block]:
    shown = night.picks.iloc[:MOST_SHOWN]
    cards: dict[str, list[Card]] = {}
    for row, pick in enumerate(_plain(shown)):
        posterior = {} if night.posterior_N_C is None else _named(night.classes, night.posterior_N_C[row])
        cards.setdefault(pick.get("predicted_class") or _NO_CLASS, []).append(_card(night, pick, posterior, known))
    order = [*(name for name in night.classes if name in cards), *(name for name in cards if name not in night.classes)]
    groups = [Group(_heading(name, len(cards[name])), cards[name]) for name in order]
    left = len(night.picks) - len(shown)
    more = [Text([f"The other {left} are in `vabal audit {night.number}`."])] if left else []
    return [Text([_said(night, known)]), Gallery(groups, _ORDERS), *more] if groups else []


def _said(night: Night, known: Known) -> str:
    grouped = "Grouped by what the classifier predicts, each group by rank." if night.predicted else "By rank."
    if not known.looks.picks and not known.looks.labeled:
        return grouped
    scale = f"; {100 * reasons.FAR:.0f} % of all pairs of picks lie closer than {known.looks.far:.2f}"
    beside = " The small picture is the labelled image that is nearest." if known.looks.labeled else ""
    told = f"A distance is {known.looks.measure}: 0 is the same{scale if known.looks.picks else ''}."
    return f"{grouped} {told}{beside}"


def _heading(name: str, count: int) -> str:
    told = name if name == _NO_CLASS else f"predicted {name}"
    return f"{told}: {counted(count, 'pick')}"


def _card(night: Night, pick: Mapping[str, Any], posterior: Mapping[str, float], known: Known) -> Card:
    sample = str(pick["sample_id"])
    near, labeled = known.looks.picks.get(sample), known.looks.labeled.get(sample)
    why = reasons.reason(
        reasons.Pick(
            str(pick["strategy"]),
            float(pick["score"]),
            posterior,
            alone=near is not None and near.far,
            new=labeled is not None and labeled.far,
            drawn=pick.get("probability") is not None,
        ),
        known.labels,
    )
    margin = _margin(pick, posterior)
    beside, beside_said = _beside(labeled, known)
    predicted = pick.get("predicted_class") or "nothing"
    words = f"{sample}, rank {pick['rank']}, predicted {predicted}"
    return Card(
        f"{pick['rank']}. {sample}",
        known.pictures.get(sample, Picture("no picture")).saying(words),
        why.words[0].upper() + why.words[1:] + "." if why.words else "",
        _facts(night, pick, posterior, margin, near, labeled, known),
        {"rank": pick["rank"], "reason": why.kind, "margin": 2.0 if margin is None else round(margin, 6)},
        beside,
        beside_said,
    )


def _beside(labeled: Nearest | None, known: Known) -> tuple[Picture | None, str]:
    if labeled is None:
        return None, ""
    label = known.label_of.get(labeled.sample, "?")
    picture = known.pictures.get(labeled.sample, Picture("no picture"))
    return picture.saying(f"the nearest labelled image, {labeled.sample}, is {label}"), f"labelled {label}"


def _facts(
    night: Night,
    pick: Mapping[str, Any],
    posterior: Mapping[str, float],
    margin: float | None,
    near: Nearest | None,
    labeled: Nearest | None,
    known: Known,
) -> list[Fact]:
    sample = str(pick["sample_id"])
    facts = []
    if sample in known.answers:
        answer = known.answers[sample]
        facts.append(Fact("label by now", "rejected" if answer is None else answer))
    if posterior:
        best = sorted(posterior.items(), key=lambda item: -item[1])[:_MOST_CLASSES]
        facts.append(Fact("posterior", ", ".join(f"{name} {100 * share:.0f} %" for name, share in best)))
    if margin is not None:
        facts.append(Fact("margin", f"{margin:.3f}"))
    drawn = pick.get("probability")
    facts.append(Fact("score", f"{pick['score']:.4g}") if drawn is None else Fact("drawn with", f"{drawn:.3g}"))
    for name, said in _TERMS.items():
        value = pick.get(name)
        if value is not None:
            facts.append(Fact(said, value if isinstance(value, str) else f"{value:.3g}"))
    if near is not None:
        rank = int(night.picks.loc[night.picks["sample_id"] == near.sample, "rank"].iloc[0])
        facts.append(Fact("nearest pick", f"{near.distance:.2f}, rank {rank}"))
    if labeled is not None:
        facts.append(Fact("nearest label", f"{labeled.distance:.2f}, {labeled.sample}"))
    return facts


_TERMS: Final = {
    "prior": "class prior",
    "precision": "class precision",
    "log_likelihood": "log likelihood",
    "vae_class": "class by VAE",
    "predicted_loss": "predicted loss",
}


def _margin(pick: Mapping[str, Any], posterior: Mapping[str, float]) -> float | None:
    recorded = pick.get("margin")
    if recorded is not None:
        return float(recorded)
    best = sorted(posterior.values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else None


def _named(classes: Sequence[str], posterior_C: Any) -> dict[str, float]:
    return {name: float(share) for name, share in zip(classes, posterior_C, strict=False)}


def _plain(picks: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None for every value that is not there."""
    columns = (
        [name for name in picks.columns if not isinstance(picks[name].iloc[0], list | np.ndarray)] if len(picks) else []
    )
    table = picks[columns].astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in table.where(table.notna(), None).to_dict("records")
    ]
