"""What was picked, when, why and by what: read from the pools' files alone (and the git tags, where they are given)."""

from vabal.audit.queries import history, picks, rounds, show
from vabal.audit.verification import AuditReport, verify

__all__ = ["AuditReport", "history", "picks", "rounds", "show", "verify"]
