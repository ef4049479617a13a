"""The nightly round with its learning tasks on Ray: shards side by side, over the GPUs of one machine or of many.

Chosen by the setting `compute.task_runner: ray`; where Ray runs is told in `vabal.flows.spread`. On several machines
`stages` names S3, where all that tasks read and write lies then; or the workspace lies on a file system that all share.
"""

from vabal.flows import round as on_this_machine
from vabal.flows.spread import Cluster

active_learning_round = on_this_machine.active_learning_round.with_options(task_runner=Cluster())
