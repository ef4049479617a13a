"""Lists in a column of a table, as the rows of an array."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_FLOAT32 = pa.float32()


def rows_of_lists(lists: pa.Array, name: str, of: pa.DataType = _FLOAT32) -> NDArray[Any]:
    """Lists of one length as rows, bit for bit. Raises ValueError for any others, and for nulls."""
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) or kind.value_type != of:
        expected = {"float": "float32", "double": "float64"}.get(str(of), str(of))
        raise ValueError(f"{name}: expected lists of {expected}, found {kind}")
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if lists.null_count or len(lengths) > 1:
        raise ValueError(f"{name}: its lists are not all there and of one length")
    flat = lists.flatten()
    if flat.null_count:
        raise ValueError(f"{name}: there are nulls in its lists")
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(len(lists), lengths[0] if lengths else 0)
