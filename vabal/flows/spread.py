"""A flow's tasks on Ray's workers, over the cores and GPUs of one machine or of many.

`RAY_ADDRESS` names a cluster, without it Ray starts on this machine. Whatever Ray says of workers and nodes that are
gone becomes one line: what was finished is kept, and the same command goes on behind it.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from prefect import Task
from prefect.futures import PrefectFuture, as_completed

from vabal.errors import Unavailable, UserError

try:
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options
except ModuleNotFoundError as missing:
    raise UserError("this needs Ray: install it with `pip install 'vabal[ray]'`") from missing

AnyResult = TypeVar("AnyResult")
_KNOCK_S: Final = 10.0


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at host:port, which Ray tries for a minute and tells in a dozen lines."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


class Cluster(RayTaskRunner[Any]):  # type: ignore[misc]  # it comes without types
    """Prefect's task runner on Ray, of which a cluster that is not there is told in one line.

    Without `RAY_ADDRESS` it is a Ray of the run's own, without Ray's web page: one that somebody else started on this
    machine is left alone, which Ray would join otherwise. What workers log goes to the Prefect server, and not into
    the driver's terminal as well.
    """

    def __init__(self) -> None:
        own = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
        super().__init__(init_kwargs={"log_to_driver": False, "logging_level": logging.WARNING, **own})

    def duplicate(self) -> "Cluster":
        """Another one, as Prefect asks for one a run."""
        return Cluster()

    def __enter__(self) -> "Cluster":
        try:
            _knock(os.environ.get("RAY_ADDRESS", ""))
            super().__enter__()
        except (OSError, RuntimeError, SystemExit, ray.exceptions.RayError) as error:
            where = os.environ.get("RAY_ADDRESS")
            what = f"Ray at {where} (RAY_ADDRESS) cannot be reached" if where else "Ray cannot be started here"
            raise Unavailable(f"{what}: {_line(error)}") from None
        return self


def put(content: bytes) -> Any:
    """Bytes into Ray's object store, where workers `get` them by what is returned."""
    return ray.put(content)


def get(content: Any) -> bytes:
    """What `put` put there."""
    return bytes(ray.get(content))


def submit(task: Task[..., Any], calls: Iterable[tuple[Any, ...]], *, gpus: float) -> list[PrefectFuture[Any]]:
    """The task once a call, each on a CPU and so many GPUs of a worker."""
    with remote_options(num_cpus=1, num_gpus=gpus):
        return [task.submit(*arguments) for arguments in calls]


def in_order(futures: Iterable[PrefectFuture[AnyResult]]) -> list[AnyResult]:
    """What the tasks return. Raises Unavailable, in one line, where workers went away again and again."""
    return [_result(future.result) for future in futures]


def as_they_end(futures: list[PrefectFuture[AnyResult]]) -> Iterator[AnyResult]:
    """The same, each as soon as it is there."""
    for future in as_completed(futures):
        yield _result(future.result)


def _result(ask: Callable[[], AnyResult]) -> AnyResult:
    try:
        return ask()
    except ray.exceptions.RayTaskError:
        raise  # of the task itself
    except ray.exceptions.RayError as error:
        raise Unavailable(
            f"Ray lost a worker too often ({_line(error)}): look at its node's memory and log; then run this again, "
            "what is finished is kept"
        ) from None


def _line(error: BaseException) -> str:
    """What Ray says, in one line that people can read."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__
