"""What was picked, when, why and by what: read from the pools' files alone (and the git tags, where they are given)."""

from typing import TYPE_CHECKING

from vabal._lazy import members

if TYPE_CHECKING:
    from vabal.audit.listing import rounds
    from vabal.audit.queries import picks, show
    from vabal.audit.sample import history
    from vabal.audit.verification import AuditReport, verify

__all__ = ["AuditReport", "history", "picks", "rounds", "show", "verify"]

__getattr__ = members(
    __name__,
    {
        "listing": ("rounds",),
        "queries": ("picks", "show"),
        "sample": ("history",),
        "verification": (
            "AuditReport",
            "verify",
        ),
    },
)
