"""Sources: where a pool's images come from, what was understood of them, and round 0's draws."""

from vabal.sources.draws import Imbalance, draw_holdout, plan_draws, thin
from vabal.sources.pools import InitReport, build_pools, write_oracle
from vabal.sources.registry import open_source, with_layout
from vabal.sources.sifting import ItemFilter
from vabal.sources.surveys import LONGEST_TABLE, DrawSettings, class_names, survey, understood

__all__ = [
    "LONGEST_TABLE",
    "DrawSettings",
    "Imbalance",
    "InitReport",
    "ItemFilter",
    "build_pools",
    "class_names",
    "draw_holdout",
    "open_source",
    "plan_draws",
    "survey",
    "thin",
    "understood",
    "with_layout",
    "write_oracle",
]
