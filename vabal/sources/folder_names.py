"""What the names of folders look like: splits, images without a label, or what is no class (days, cameras, copies)."""

import re
from collections.abc import Sequence
from typing import Final, Literal

from vabal.errors import shown, some

Split = Literal["pool", "holdout"]

_ROLES: Final[dict[str, str]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
}
_SPLIT: Final = re.compile(rf"({'|'.join(_ROLES)})([ _-]?(set|data|split|images|imgs|\d{{1,4}}))?")
_UNLABELLED: Final = re.compile(r"(unlabell?ed|no[ _-]?labels?|without[ _-]labels?)")
_DAYS: Final = re.compile(
    r"(mon|tues?|wed(nes)?|thu(rs)?|fri|satur|sat|sun)(day)?|(mon|diens|donners|frei|sams|sonn)tag|mittwoch|sonnabend"
    r"|lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche|lunes|martes|mi[eé]rcoles|jueves|viernes|s[aá]bado|domingo"
)
_MONTHS: Final = re.compile(
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?|januar|februar|m[aä]rz|mai|jun[io]|jul[io]|oktober|dezember)"
)
_DATE: Final = re.compile(  # a day at the front of a name
    r"((19|20)\d\d[-_. ]?(0[1-9]|1[0-2])[-_. ]?(0[1-9]|[12]\d|3[01])"
    r"|(0[1-9]|[12]\d|3[01])[-_. ](0[1-9]|1[0-2])[-_. ](19|20)\d\d)([-_ t.]?\d.*|[-_ ].*)?"
)
_PERIOD: Final = re.compile(r"(19|20)\d\d([-_. ]?(w|kw|q)?\d{1,2})?")
_NUMBERED: Final = re.compile(
    r"(cam|camera|kamera|kw|cw|tag|woche|schicht|charge|linie|webcam|gopro|sensor|device|station|channel|line|site|batch|session|run|day|week|month|shift|visit"
    r"|patient|subject|scan|roll|shoot|fold|shard|chunk|clip|video|sequence|seq|upload|export|dcim|folder|dir)"
    r"([ _.#-]*\d+[a-z]?|[ _.#-]+[a-z])|cam[a-d]"
)
_CAMERA_CARD: Final = re.compile(  # as cameras name folders: 100CANON, 101MSDCF
    r"1\d\d_?(canon|nikon|ncd\w*|nd\w+|msdcf|media|gopro|olymp|pana|fuji|apple|eos\w*|dscim|photo|leica|casio|andro)|dcim"
)
_HASH: Final = re.compile(r"(?=.*\d)([0-9a-f]{12,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_NUMBER: Final = re.compile(r"\d{8,}")  # times in seconds, ids
_COPY: Final = re.compile(r"(?i)(?P<of>.+?)[ _-]+(copy|kopie|copie|copia|\(\d+\)|\[\d+\])([ _]*\(?\d+\)?)?")
_SHARD: Final = re.compile(r"[0-9a-f]{2,3}")
_FILE_KINDS: Final = {
    *("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "pics", "frames", "masks", "mask"),
    *("annotations", "annots", "gt", "ground_truth", "groundtruth", "segmentationclass", "segmentationobject"),
    *("thumbs", "thumbnails", "thumbnail", "previews", "preview", "rgb", "depth"),
    *("jpg", "jpeg", "png", "bmp", "tif", "tiff"),
}
_LOOKS: Final = (  # what folders look like, and from which share of the names on that is a doubt
    (_DATE, "days", 0),
    (_CAMERA_CARD, "folders of a camera", 0),
    (_NUMBERED, "cameras, places or batches", 0.5),
    (_DAYS, "days of the week", 1),
    (_MONTHS, "months", 1),
    (_PERIOD, "years, months or weeks", 1),
    (_HASH, "digests", 1),
    (_NUMBER, "times or serial numbers", 1),
)


def is_unlabelled(name: str) -> bool:
    return _is(_UNLABELLED, name)


def is_split(name: str) -> bool:
    return _is(_SPLIT, name)


def _is(pattern: re.Pattern[str], name: str) -> bool:
    return pattern.fullmatch(name.casefold().strip()) is not None


def split_roles(names: Sequence[str]) -> dict[str, Split]:
    """Split folders by what they are for: test, else val, is held out. Empty where one of the two is missing."""
    kinds = {name: _ROLES[found.group(1)] for name in names if (found := _SPLIT.fullmatch(name.casefold().strip()))}
    held = next((kind for kind in ("test", "val") if kind in kinds.values()), None)
    roles: dict[str, Split] = {name: "holdout" if kind == held else "pool" for name, kind in kinds.items()}
    return roles if set(roles.values()) == {"pool", "holdout"} else {}


def look_like(names: Sequence[str]) -> str | None:
    """What the folders of these names look like, if not like classes, in words; None where they may well be classes."""
    for pattern, what, share in _LOOKS:
        if sum(_is(pattern, name) for name in names) >= max(1, share * len(names)):
            return f"the folders {named(names)} look like {what}"
    if len(names) >= 16 and all(_is(_SHARD, name) for name in names) and any(not name.isdecimal() for name in names):
        return f"the folders {named(names)} look like parts of a digest"
    copies = [name for name in names if (found := _COPY.fullmatch(name)) and found.group("of").strip() in names]
    kinds = [name for name in names if name.casefold().strip() in _FILE_KINDS]
    for odd, what in ((copies, "a copy of another folder"), (kinds, "a kind of file, not a class")):
        if odd:
            return f"{named(odd)} look{'s' * (len(odd) == 1)} like {what}"
    return None


def named(names: Sequence[str], *, quoted: bool = False) -> str:
    """Names for people, shortened."""
    return some([repr(shown(name)) if quoted else shown(name) for name in names], 6)
