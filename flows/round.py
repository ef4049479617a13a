"""The nightly round, as a deployment from a checkout names it: `flows.round.active_learning_round`."""

from vabal.flows.round import active_learning_round

__all__ = ["active_learning_round"]
