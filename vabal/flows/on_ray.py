"""The nightly round with its learning tasks on Ray: shards side by side, over the GPUs of one machine or of many.

Chosen by the setting `compute.task_runner: ray`. Ray's own settings decide where: `RAY_ADDRESS` names a cluster,
without it Ray starts on this machine. On several machines the workspace lies on a file system that all of them share,
and `stages` may name S3.
"""

from vabal.errors import UserError
from vabal.flows import round as on_this_machine

try:
    from prefect_ray import RayTaskRunner
except ModuleNotFoundError as missing:
    raise UserError("compute.task_runner: ray needs Ray: install it with `pip install 'vabal[ray]'`") from missing

active_learning_round = on_this_machine.active_learning_round.with_options(task_runner=RayTaskRunner())
