"""Names of images: ids, made of paths; and blind names, which people who label see in the place of an id.

An id may hold the image's class, since class folders are part of paths.
"""

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.errors import shown
from vabal.files import sha256
from vabal.pools.columns import among, strings

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


def sample_id_of(path: str) -> str:
    """A sample id from a relative path: without the extension, letters, digits and `._-` only."""
    is_utf8 = not any("\udc80" <= sign <= "\udcff" for sign in path)
    pure = PurePosixPath(unicodedata.normalize("NFC", path if is_utf8 else shown(path)))
    text = re.sub(r"[^\w.]+", "-", str(pure.with_suffix("")))
    return text.strip("-.") or "image"


def ids_of(names: "pd.Series[str]", catalog: pd.DataFrame) -> "pd.Series[str]":
    """The sample_ids that stand behind names: ids, blind names, or paths of files that are named for one of these.

    A name that is none of them stays as it is.
    """
    given = pc.unique(strings(names).drop_null())
    strange = given.filter(pc.invert(pc.is_in(given, value_set=strings(catalog["sample_id"]))))
    files = {name: PurePosixPath(name.replace("\\", "/")) for name in strange.to_pylist()}
    unknown = [name for name, file in files.items() if file.name]
    if not unknown:
        return names
    stems = {name: files[name].stem for name in unknown}
    paths = {name: sample_id_of(str(files[name])) for name in unknown}
    told = _behind([*unknown, *stems.values()], catalog)
    told |= {sample_id: sample_id for sample_id in catalog["sample_id"][among(catalog["sample_id"], paths.values())]}
    meant = {name: told.get(name) or told.get(stems[name]) or told.get(paths[name], name) for name in unknown}
    return names.map(lambda name: meant.get(name, name))


def _behind(names: list[str], catalog: pd.DataFrame) -> dict[str, str]:
    """The sample_id of each of these names that is a blind one."""
    digits = {name[: len(_PREFIX) + _DIGITS] for name in names if name.startswith(_PREFIX)}
    near = catalog[pc.is_in(_short(catalog), value_set=pa.array(sorted(digits), pa.large_string())).to_pylist()]
    told = {name: sample_id for sample_id, name in blind_names(near).items()}
    return told | {_long(*row): row[0] for row in zip(near["sample_id"], near["sha256"], strict=True)}


def _short(catalog: pd.DataFrame) -> pa.Array:
    digits = pc.utf8_slice_codeunits(strings(catalog["sha256"]), 0, _DIGITS)
    prefix, nothing = (pa.scalar(text, pa.large_string()) for text in (_PREFIX, ""))
    return pc.binary_join_element_wise(prefix, digits, nothing).combine_chunks()


def _long(sample_id: str, content: str) -> str:
    return f"{_PREFIX}{content[:_DIGITS]}-{sha256(f'{content} {sample_id}'.encode())[:_DIGITS]}"
