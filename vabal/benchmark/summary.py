"""What a benchmark's cells come to: the model of `summary.json`.

Numbers of measures are shares, not per cent. A setting is a source with an imbalance; S seeds, R rounds, C classes.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from vabal.errors import UserError
from vabal.statistics import MAIN

VERSION = 2
Verdict = Literal["ahead", "behind", "not distinguishable"]


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
    """`statistics.Difference`: matched, the strategy less the baseline; `holm_p` is `p` corrected."""

    bootstrap_low: float | None
    bootstrap_high: float | None
    p: float
    wilcoxon_p: float | None
    t_p: float | None
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
    """Labels needed for the baseline's final mean, and how many fewer than the baseline needs, with an interval.

    `saved_low` and `saved_high` are None where they lie beyond what the labels of the run can tell, or with fewer than
    five seeds. `matched` are labels that the baseline needs for what the strategy has at its end; None: more than there
    were.
    """

    target: float
    reached: bool
    needed: float | None
    baseline_needed: float | None
    saved: float | None
    saved_share: float | None
    saved_low: float | None
    saved_high: float | None
    matched: float | None


class ClassAccuracy(_Part):
    """Of each class the final recall and the labels, and Spearman's correlation of the two."""

    recall: list[float | None]
    labeled: list[float]
    rank_correlation: float | None


class Seconds(_Part):
    """Mean seconds of each part of a round; `per_round` has each round's number beside them."""

    per_round: list[dict[str, int | float]]
    mean: dict[str, float]


class Cost(_Part):
    """Of a whole run, means over seeds; without the images' embeddings, which are made once a source."""

    trained: float
    cpu_seconds: float


class Rival(_Part):
    """The reference less another row, matched by seed, of the average over rounds of the main measure.

    `holm_t_p` is Student's p after Holm's correction over all rivals; below 0.05 the two can be told apart.
    """

    strategy: str
    difference: Gap
    holm_t_p: float | None
    verdict: Verdict


class Pick(_Part):
    sample_id: str | None
    label: str | None
    predicted_class: str | None


class TopPicks(_Part):
    """The first picks of one seed, in rank order."""

    seed: int
    picks: list[Pick]


class StrategyInSetting(_Part):
    """A row: a strategy's `picks` for a `learner`, which is empty where none was named."""

    strategy: str
    learner: str
    picks: str
    seeds: list[int]
    missing_seeds: list[int]
    pairs: int
    metrics: dict[str, Measured]
    labels: Labels | None
    rare_share: list[MeanOfRound] | None
    classes: ClassAccuracy
    seconds: Seconds
    cost: Cost | None
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
    rivals: list[Rival]
    caveat: str | None

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
    """`rivals` are compared by the means over settings of each seed that is complete."""

    settings: int
    blocks: int
    strategies: list[StrategyOverall]
    rivals: list[Rival]


class Summary(_Part):
    """The statistics of all cells (`comparison.summarise`): strategies in the order of their differences."""

    version: int
    baseline: str
    reference: str | None
    main: str
    metrics: list[str]
    confidence: float
    rules: dict[str, str]
    cells: int
    strategies: list[str]
    settings: list[Setting]
    pooled: Pooled

    @classmethod
    def read(cls, path: Path) -> Self:
        """The summary in the file. Raises UserError for one that another version wrote."""
        content = json.loads(path.read_bytes())
        if content.get("version") != VERSION:
            raise UserError(
                f"{path}: another version of vabal wrote it; the same `vabal bench` line makes it anew from the cells"
            )
        return cls.model_validate(content)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)

    def content(self) -> bytes:
        """What `summary.json` holds."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False).encode()
