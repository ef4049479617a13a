"""Which files the names in a source's `labels.csv` mean."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

from vabal.errors import UserError, shown, some
from vabal.sources.folder_names import Split

_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")


@dataclass(frozen=True)
class Known:
    """What is known of an image file besides its pixels. Files of one group never straddle pool and holdout."""

    label: str | None = None
    group: str | None = None
    split: Split | None = None


@dataclass
class Listed:
    """What a table says of the files that are there, and the names in it that mean none."""

    known: dict[PurePosixPath, Known] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def resolve(
    where: str, tops: Sequence[str], listed: Mapping[PurePosixPath, Known], paths: Sequence[PurePosixPath]
) -> Listed:
    """Find the files (of `paths`, below a place) that the names of the table `where` mean.

    `tops`: how the place is written in whole addresses.

    A name is a path below the folder, in either Unicode form, with either slash; an absolute one leads there, or one
    with the folder's own name in front. Failing that, the one file that has this name in another case, with an
    extension behind it, or in a sub-folder; such finds are noted.
    Raises UserError for names that lead elsewhere, if no name means a file, or if two names of one file disagree.
    """
    found = Listed()
    own = f"{PurePosixPath(tops[-1]).name}/"
    exact = {_key(path): path for path in paths}
    folded, plain, bases = (_unique(paths, of) for of in (_folded, _without_extension, _base))
    loose: list[str] = []
    meant: dict[PurePosixPath, PurePosixPath] = {}
    for name, values in listed.items():
        key = _below(tops, where, name)
        path = exact.get(key) or exact.get(key.removeprefix(own))
        if path is None:
            path = folded.get(key.casefold()) or plain.get(key.casefold())
            if path is None and "/" not in key:
                path = bases.get(key.casefold())
            if path is None:
                found.missing.append(shown(name))
                continue
            loose.append(f"{shown(name)} is {shown(path)}")
        before = found.known.setdefault(path, values)
        if before != values:
            raise UserError(
                f"{where}: {shown(meant[path])} and {shown(name)} mean the same file, with different values"
            )
        meant.setdefault(path, name)
    if listed and not found.known:
        raise UserError(f"{where}: none of its {len(listed)} names is a file there: {some(found.missing)}")
    if loose:
        found.notes.append(f"{PurePosixPath(where).name}: names that mean a file all the same: {some(loose)}")
    return found


def _key(path: PurePosixPath | str) -> str:
    return unicodedata.normalize("NFC", shown(path)).replace("\\", "/")


def _below(tops: Sequence[str], where: str, name: PurePosixPath) -> str:
    """The name as a path below the folder, as a key. Raises UserError for one that leads elsewhere."""
    text = str(name)
    address = _ADDRESS.fullmatch(text)
    if address and address[1].lower() == "file":
        text = "/" + unquote(address[2])
    elif address:
        text = f"{address[1].lower()}://{address[2]}"  # as a path it has lost a slash
    for top in tops:
        text = text.removeprefix(f"{top}/")
    if address and _ADDRESS.fullmatch(text):
        raise UserError(f"{where}: {shown(text)!r} is an address: fetch the images, and name their files")
    if text.startswith("/") or re.match(r"[A-Za-z]:/", text) or ".." in PurePosixPath(text).parts:
        raise UserError(f"{where}: {shown(name)!r} is no path below this folder")
    return _key(text)


def _unique(paths: Sequence[PurePosixPath], of: Callable[[str], str]) -> dict[str, PurePosixPath | None]:
    """Files by a looser key; None where several have the same."""
    index: dict[str, PurePosixPath | None] = {}
    for path in paths:
        key = of(_key(path))
        index[key] = None if key in index else path
    return index


def _folded(key: str) -> str:
    return key.casefold()


def _without_extension(key: str) -> str:
    """For names that bring no extension: `a/001` means `a/001.png`."""
    return re.sub(r"\.\w{2,4}$", "", key.casefold())


def _base(key: str) -> str:
    return PurePosixPath(key).name.casefold()
