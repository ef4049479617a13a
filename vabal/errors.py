"""What a user can mend is told in one line; everything else is a bug and keeps its traceback."""

import errno

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


class Unavailable(UserError):  # noqa: N818 -- says what is so, as its siblings in the field do
    """A server (S3, MLflow, Prefect) is down, or refuses the credentials. Nothing was changed."""
