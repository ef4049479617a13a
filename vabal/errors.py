"""What a user can mend is told in one line; everything else is a bug and keeps its traceback."""

#: How damaged or missing files of `data/` are mended.
BRING_BACK = "`vabal checkout --force` brings the published files back"


class UserError(Exception):
    """One clear line: what is wrong, where, and how to mend it. The command line prints it and exits with 1."""


class Unavailable(UserError):  # noqa: N818 -- says what is so, as its siblings in the field do
    """A server (S3, MLflow, Prefect) is down, or refuses the credentials. Nothing was changed."""
