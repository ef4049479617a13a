"""Blind names: what people who label see of an image in the place of its id, which may hold its class."""

from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.files import sha256
from vabal.pools.columns import strings

_PREFIX: Final = "img-"  # so that no spreadsheet takes a name for a number
_DIGITS: Final = 20


def blind_names(catalog: pd.DataFrame) -> dict[str, str]:
    """A blind name for each image of the catalog, by sample_id: made of the digest of the image's content.

    So it tells nothing that the image does not, is the same in every clone, and no two images share it. One that is
    another image's id, or that two contents begin with, is made of more.
    """
    ids = list(catalog["sample_id"])
    names = _short(catalog).to_pylist()
    known, taken = set(ids), pd.Series(names).duplicated(keep=False)
    return {
        sample_id: _long(sample_id, content) if twice or (name in known and name != sample_id) else name
        for sample_id, content, name, twice in zip(ids, catalog["sha256"], names, taken, strict=True)
    }


def ids_of(names: "pd.Series[str]", catalog: pd.DataFrame) -> "pd.Series[str]":
    """The sample_ids that stand behind names, blind ones or ids; a name that is neither stays as it is."""
    given = strings(names)
    unknown = pc.invert(pc.is_in(given, value_set=strings(catalog["sample_id"])))
    blind = pc.unique(given.filter(pc.and_(unknown, pc.starts_with(given, _PREFIX))))
    if not len(blind):
        return names
    digits = pa.array([name[: len(_PREFIX) + _DIGITS] for name in blind.to_pylist()], pa.large_string())
    near = catalog[pc.is_in(_short(catalog), value_set=digits).to_numpy(zero_copy_only=False)]
    told = {name: sample_id for sample_id, name in blind_names(near).items()}
    told |= {_long(*row): row[0] for row in zip(near["sample_id"], near["sha256"], strict=True)}
    return names.map(lambda name: told.get(name, name))


def _short(catalog: pd.DataFrame) -> pa.Array:
    digits = pc.utf8_slice_codeunits(strings(catalog["sha256"]), 0, _DIGITS)
    prefix, nothing = (pa.scalar(text, pa.large_string()) for text in (_PREFIX, ""))
    return pc.binary_join_element_wise(prefix, digits, nothing).combine_chunks()


def _long(sample_id: str, content: str) -> str:
    return f"{_PREFIX}{content[:_DIGITS]}-{sha256(f'{content} {sample_id}'.encode())[:_DIGITS]}"
