"""Lists in a column of a table, as the rows of an array."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def rows_of_lists(lists: pa.Array, name: str) -> NDArray[np.float32]:
    """Lists of one length as rows, bit for bit. Raises ValueError for any others, and for nulls."""
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) or kind.value_type != pa.float32():
        raise ValueError(f"{name}: expected lists of float32, found {kind}")
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if lists.null_count or len(lengths) > 1:
        raise ValueError(f"{name}: its lists are not all there and of one length")
    flat = lists.flatten()
    if flat.null_count:
        raise ValueError(f"{name}: there are nulls in its lists")
    values: NDArray[np.float32] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(len(lists), lengths[0] if lengths else 0)
