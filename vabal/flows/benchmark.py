"""`vabal bench --ray`: a benchmark's cells as Prefect tasks on Ray, over the cores and GPUs of one machine or of many.

`RAY_ADDRESS` names a cluster, without it Ray starts on this machine. On several machines the results' folder lies on a
file system that all of them share. Which cells there are, and what they come to, is `vabal.benchmark.running`'s affair.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.futures import as_completed
from prefect.logging import get_run_logger
from prefect.states import Completed

from vabal.adapters.tracking import Tracking
from vabal.benchmark import cells, grids, running
from vabal.benchmark.variants import Variant
from vabal.errors import UserError
from vabal.flows.logs import one_line_for_user_errors
from vabal.pages import report

try:
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options
except ModuleNotFoundError as missing:
    raise UserError("--ray needs Ray: install it with `pip install 'vabal[ray]'`") from missing

AT_ONCE = 64  # tasks that Ray is given; a grid may have thousands


@task(name="bench-cell", task_run_name="{cell[source]} {cell[imbalance]} {cell[label]} seed {cell[seed]}")
def bench_cell(cell: dict[str, Any], prepared: dict[str, Any], folder: str) -> cells.CellOutcome:
    return cells.run_cell(grids.Cell(**cell), cells.Prepared(**prepared), Path(folder))


def on_task_runner(gpus_per_task: float) -> running.Execute:
    """Runs cells as tasks of the flow around it, wherever its task runner puts them."""

    def execute(work: Sequence[running.Work]) -> Iterator[cells.CellOutcome]:
        for first in range(0, len(work), AT_ONCE):
            with remote_options(num_cpus=1, num_gpus=gpus_per_task):
                futures = [
                    bench_cell.submit(asdict(cell), asdict(prepared), str(folder))
                    for cell, prepared, folder in work[first : first + AT_ONCE]
                ]
            for future in as_completed(futures):
                yield future.result()

    return execute


@flow(name="benchmark", flow_run_name="benchmark into {out}", task_runner=RayTaskRunner(), persist_result=False)
def benchmark(
    grid: dict[str, Any], out: str, title: str, command: str, workspace: str | None, gpus_per_task: float = 0.0
) -> State[Any]:
    """Run what is missing of the grid (`bench.Grid`'s fields) into the folder `out`. Ends in the state Compared."""
    one_line_for_user_errors()
    variants = tuple(Variant(**variant) for variant in grid["variants"])
    tracking = Tracking(workspace, experiment="vabal-bench") if workspace else None
    summary = running.run(
        grids.Grid(**{**_tuples(grid), "variants": variants}),
        Path(out),
        on_task_runner(gpus_per_task),
        title=title,
        command=command,
        tell=get_run_logger().info,
        record=tracking.log_cell if tracking else running.nobody,
        page=report.write,
    )
    return Completed(name="Compared", message=f"{summary.cells} cells in {out}")


def _tuples(grid: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in grid.items()}
