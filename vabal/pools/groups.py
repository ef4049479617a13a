"""Groups: images that show much the same, so that what is learned of one says nothing honest of another.

A source tells them (a part that was photographed twice, crops of one picture), or they are near copies. A group never
straddles pool and holdout, nor two folds of a cross-validation.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NEAR: Final = "near "  # how names of groups begin that near copies make


def groups_of(rows: pd.DataFrame) -> NDArray[Any] | None:
    """groups_N of catalog rows (sample_id, group); None where no two of them are of one group.

    An image without a group is one of its own, under the name that a near copy of it would be given.
    """
    if "group" not in rows or rows["group"].isna().all():
        return None
    group = rows["group"].astype(object)
    groups_N = group.where(group.notna(), NEAR + rows["sample_id"].astype(object)).to_numpy(dtype=object)
    return groups_N if len(set(groups_N)) < len(groups_N) else None


def merged(items: pd.DataFrame, near: Sequence[tuple[int, int]], known: int = 0) -> pd.Series:
    """The groups of items (sample_id, group) with those merged that near copies (places of two items) connect.

    The first `known` items have groups that stay: what is connected to one of them gets its group.
    """
    if not near:
        return items["group"]
    from scipy.sparse import coo_matrix  # noqa: PLC0415 -- a fifth of a second, for what few commands do
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    group = items["group"].astype(object)
    places = np.arange(len(items))
    first = pd.Series(places).groupby(group.to_numpy(dtype=object)).transform("min").fillna(pd.Series(places))
    left = np.concatenate([places, [one for one, _ in near]])
    right = np.concatenate([first.to_numpy(dtype=np.int64), [other for _, other in near]])
    edges = coo_matrix((np.ones(len(left)), (left, right)), shape=(len(items), len(items)))
    _, part = connected_components(edges, directed=False)
    touched = pd.Series(part).isin(part[[place for pair in near for place in pair]]).to_numpy()
    names = NEAR + items["sample_id"].astype(object).groupby(part).transform("min")
    before = dict(zip(part[:known][::-1], group[:known][::-1], strict=True))  # of several the first
    names = pd.Series(part, index=items.index).map(before).astype(object).fillna(names)
    return group.where(~touched, names)
