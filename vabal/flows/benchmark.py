"""`vabal bench --ray`: a benchmark's cells as Prefect tasks on Ray, over the cores and GPUs of one machine or of many.

Workers need nothing of the driver's file system: a source's decoded images come to them through Ray's object store,
once a node, and results go back with the tasks. Where Ray runs is told in `vabal.flows.spread`; which cells there are,
and what they come to, is `vabal.benchmark.running`'s affair.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from vabal.adapters.tracking import Tracking
from vabal.benchmark import cells, grids, running
from vabal.benchmark.variants import Variant
from vabal.files import locked, private_folder, touched, write_bytes
from vabal.flows import spread
from vabal.flows.context import scratch_place
from vabal.flows.logs import one_line_for_user_errors
from vabal.pages import report
from vabal.rounds import scratch
from vabal.settings.models import ComputeSettings

AT_ONCE = 64  # tasks that Ray is given; a grid may have thousands


class Sent:
    """The files of a prepared source in Ray's object store; Prefect hands it on as it is."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: spread.put(path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()}

    def below(self, folder: Path) -> Path:
        """The files in a folder of this machine, written by whoever needs them first."""
        private_folder(folder.parent)
        with locked(folder.parent / f".{folder.name}.lock"):
            if not touched(folder):
                with TemporaryDirectory(dir=folder.parent, prefix=".sent-") as temporary:
                    for name, content in self.files.items():
                        write_bytes(Path(temporary) / "all" / name, spread.get(content))
                    shutil.move(Path(temporary) / "all", folder)
        return folder


@task(
    name="bench-cell",
    task_run_name="{cell[source]} {cell[imbalance]} {cell[label]} seed {cell[seed]}",
    cache_policy=NO_CACHE,
)
def bench_cell(cell: dict[str, Any], prepared: dict[str, Any], sent: Sent) -> tuple[cells.CellOutcome, bytes | None]:
    """How the cell ended, and its document. The prepared folder's name tells its content."""
    ready = cells.Prepared(**prepared)
    if _readable(Path(ready.folder)):
        return _document(cell, ready)
    place = scratch_place()
    with scratch.at_work(place):
        ended = _document(cell, replace(ready, folder=str(sent.below(place.bench / Path(ready.folder).name))))
    scratch.trim(place, ComputeSettings().scratch_gigabytes)
    return ended


def _document(cell: dict[str, Any], ready: cells.Prepared) -> tuple[cells.CellOutcome, bytes | None]:
    with TemporaryDirectory(prefix="vabal-") as folder:
        outcome = cells.run_cell(grids.Cell(**cell), ready, Path(folder))
        return outcome, (Path(folder) / outcome.file).read_bytes() if outcome.file else None


def _readable(folder: Path) -> bool:
    """Whether this machine sees what the folder holds."""
    try:
        for path in folder.iterdir():
            if path.is_file():
                path.open("rb").close()
    except OSError:
        return False
    return True


def on_task_runner(gpus_per_task: float) -> running.Execute:
    """Runs cells as tasks of the flow around it, wherever its task runner puts them."""

    def execute(work: Sequence[running.Work]) -> Iterator[cells.CellOutcome]:
        sent = {folder: Sent(Path(folder)) for folder in {prepared.folder for _, prepared, _ in work}}
        for first in range(0, len(work), AT_ONCE):
            part = work[first : first + AT_ONCE]
            calls = [(asdict(cell), asdict(prepared), sent[prepared.folder]) for cell, prepared, _ in part]
            for outcome, content in spread.as_they_end(spread.submit(bench_cell, calls, gpus=gpus_per_task)):
                if outcome.file and content is not None:
                    write_bytes(part[0][2] / outcome.file, content)
                yield outcome

    return execute


@flow(name="benchmark", flow_run_name="benchmark into {out}", task_runner=spread.Cluster(), persist_result=False)
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
