"""What a benchmark's cells come to: the model of `summary.json`.

Numbers of measures are shares, not per cent. A setting is a source with an imbalance; S seeds, R rounds, C classes.
"""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from vabal.statistics import MAIN


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Mean(_Part):
    """`statistics.Estimate`."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


class MeanOfSeeds(Mean):
    """With the value of each seed, in the order of the strategy's `seeds`."""

    per_seed: list[float]


class MeanOfRound(Mean):
    """What the seeds' curves come to in one round."""

    round: int
    labeled: int


class Gap(Mean):
    """`statistics.Difference`: matched, the strategy less the baseline. `holm_p` is corrected over the strategies."""

    bootstrap_low: float | None
    bootstrap_high: float | None
    p: float
    wilcoxon_p: float | None
    holm_p: float | None = None


class Gaps(_Part):
    """By quantity of the curve."""

    average: Gap
    final: Gap
    area: Gap


class Measured(_Part):
    """One measure of one strategy in one setting; differences are None without a pair."""

    per_round: list[MeanOfRound]
    average: MeanOfSeeds
    final: MeanOfSeeds
    area: MeanOfSeeds
    difference: Gaps | None
    difference_per_round: list[MeanOfRound] | None


class Labels(_Part):
    """Labels needed for the baseline's final mean accuracy, and how many fewer than the baseline needs."""

    target: float
    reached: bool
    needed: float | None
    baseline_needed: float | None
    saved: float | None
    saved_share: float | None


class ClassAccuracy(_Part):
    """Of each class the final recall and the labels, and Spearman's correlation of the two."""

    recall: list[float | None]
    labeled: list[float]
    rank_correlation: float | None


class Seconds(_Part):
    """Mean seconds of each part of a round; `per_round` has each round's number beside them."""

    per_round: list[dict[str, int | float]]
    mean: dict[str, float]


class Pick(_Part):
    sample_id: str | None
    label: str | None
    predicted_class: str | None


class TopPicks(_Part):
    """The first picks of one seed, in rank order."""

    seed: int
    picks: list[Pick]


class StrategyInSetting(_Part):
    strategy: str
    seeds: list[int]
    missing_seeds: list[int]
    pairs: int
    metrics: dict[str, Measured]
    labels: Labels | None
    rare_share: list[MeanOfRound] | None
    classes: ClassAccuracy
    seconds: Seconds
    top_picks: TopPicks | None

    @property
    def main(self) -> Measured:
        return self.metrics[MAIN]


class Setting(_Part):
    source: str
    imbalance: str
    classes: list[str]
    pool_per_class: list[float]
    holdout_per_class: list[float]
    rare_classes: list[str]
    dominant_classes: list[str]
    initial: int
    budget: int
    labeled: list[int]
    seeds: list[int]
    strategies: list[StrategyInSetting]

    @property
    def name(self) -> str:
        return f"{self.source}, {self.imbalance}"


class StrategyOverall(_Part):
    """One strategy over all settings; differences are of the average over rounds, by measure."""

    strategy: str
    pairs: int
    difference: dict[str, Gap] | None
    by_seed: dict[str, Gap] | None
    wins: int | None
    ties: int | None
    losses: int | None
    settings: int
    settings_above: int
    settings_below: int
    settings_mean_above: int
    mean_rank: float | None


class Pooled(_Part):
    settings: int
    blocks: int
    strategies: list[StrategyOverall]


class Summary(_Part):
    """The statistics of all cells (`comparison.summarise`): strategies in the order of their differences."""

    version: int
    baseline: str
    main: str
    metrics: list[str]
    confidence: float
    rules: dict[str, str]
    cells: int
    strategies: list[str]
    settings: list[Setting]
    pooled: Pooled

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)

    def content(self) -> bytes:
        """What `summary.json` holds."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False).encode()
