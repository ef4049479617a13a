"""What was picked, when, why and by what: read from the pools' files alone (and the git tags, where they are given)."""

from typing import TYPE_CHECKING

from vabal._lazy import members

if TYPE_CHECKING:
    from vabal.audit.queries import history, picks, rounds, show
    from vabal.audit.verification import AuditReport, verify

__all__ = ["AuditReport", "history", "picks", "rounds", "show", "verify"]

__getattr__ = members(
    __name__,
    {
        "queries": (
            "history",
            "picks",
            "rounds",
            "show",
        ),
        "verification": (
            "AuditReport",
            "verify",
        ),
    },
)
