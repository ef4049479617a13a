"""The promotion after a round, as a deployment from a checkout names it: `flows.promote.promote_challenger`."""

from vabal.flows.promote import promote_challenger

__all__ = ["promote_challenger"]
