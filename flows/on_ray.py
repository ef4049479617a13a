"""The nightly round with its learning tasks on Ray, for a deployment from a checkout."""

from vabal.flows.on_ray import active_learning_round

__all__ = ["active_learning_round"]
