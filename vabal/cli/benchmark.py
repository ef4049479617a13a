"""Strategies compared: `bench`."""

import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vabal.cli import chosen, complete
from vabal.cli.console import say_end
from vabal.cli.options import AsJson, assignments, taking

if TYPE_CHECKING:
    from vabal.benchmark.grids import Grid


@dataclass(frozen=True)
class BenchOptions:
    """Of `vabal bench`; what is None comes from the protocol, or else has the default of `benchmark.grids`."""

    out: Annotated[Path, typer.Option(help="A folder for the results; a grid that was stopped goes on there.")]
    source: Annotated[
        list[str] | None,
        typer.Option(help="As with `vabal init`; may be repeated.", autocompletion=complete.sources),
    ] = None
    layout: Annotated[
        str | None,
        typer.Option(help="How folders are read, as with `vabal init`.", autocompletion=complete.layouts),
    ] = None
    imbalance: Annotated[
        list[str] | None, typer.Option(help="As with `vabal init`, or `natural`; may be repeated.")
    ] = None
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Names by commas, settings of their own in brackets (docs/protocols.md).",
            autocompletion=complete.strategies,
        ),
    ] = None
    learners: Annotated[
        str | None,
        typer.Option(
            help="Who learns, by commas: scratch, probe, ..., and the baselines svm-pixels, svm-hog, logreg-pixels.",
            autocompletion=complete.learners,
        ),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(help="The row that all others are tested against; default: vabal, on the first learner."),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(help="Runs of each row, with matched seeds; default: 20 where one takes seconds, else 5."),
    ] = None
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0
    rounds: Annotated[int | None, typer.Option(help="Trainings, each on one batch more than the one before.")] = None
    budget: Annotated[int | None, typer.Option(help="Labels a round asks for.")] = None
    initial: Annotated[int | None, typer.Option(help="Labels of the first round, drawn at random.")] = None
    holdout: Annotated[float | None, typer.Option(help="Share held out, where the source brings no test split.")] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of params.yaml for all, as classifier.width=16.")
    ] = None
    protocol: Annotated[
        str | None,
        typer.Option(help="A named set-up (docs/protocols.md), as cifar10.", autocompletion=complete.protocols),
    ] = None
    root: Annotated[Path | None, typer.Option(help="Where a protocol's data lies.")] = None
    jobs: Annotated[int | None, typer.Option(help="Processes at once; default: the cores.")] = None
    ray: Annotated[bool, typer.Option("--ray", help="As Prefect tasks on Ray; needs the Prefect server.")] = False
    mlflow: Annotated[bool, typer.Option(help="One MLflow run a cell, in the workspace's server or OUT/mlflow.db.")] = (
        True
    )
    as_json: AsJson = False

    def grid(self) -> "Grid":
        """What is compared. Raises UserError for options that are missing or do not fit."""
        from vabal.benchmark.grids import BenchmarkOptions
        from vabal.sources import with_layout

        return BenchmarkOptions(
            protocol=self.protocol,
            root=self.root,
            sources=[with_layout(spec, self.layout) for spec in self.source or []],
            imbalances=self.imbalance or [],
            strategies=self.strategies,
            learners=self.learners,
            reference=self.reference,
            seeds=self.seeds,
            first_seed=self.first_seed,
            rounds=self.rounds,
            budget=self.budget,
            initial=self.initial,
            holdout=self.holdout,
            settings=assignments(self.settings or []),
        ).grid()


@taking(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Compare strategies and learners by simulated active learning, with matched seeds.

    Writes results.csv, summary.json, report.html.

    Example: `vabal bench --source digits --imbalance dominant:0:0.1 --strategies random,margin,vabal --seeds 5
    --rounds 5 --budget 20 --initial 20 --out results/digits`
    """
    from vabal.benchmark import cells, running
    from vabal.benchmark.summary import Summary
    from vabal.cli import render
    from vabal.pages import report

    grid, out = options.grid(), options.out
    cells.own(out)
    title = f"{options.protocol or ', '.join(grid.sources)}: active learning compared"
    command = shlex.join(["vabal", *sys.argv[1:]])
    if options.ray:
        _on_ray(grid, out, title, command, mlflow=options.mlflow)
    else:
        running.run(
            grid,
            out,
            running.on_processes(options.jobs or os.cpu_count() or 1),
            title=title,
            command=command,
            tell=lambda line: typer.echo(line, err=True),
            record=_cell_recorder(out) if options.mlflow else running.nobody,
            page=report.write,
        )
    summary = Summary.read(out / "summary.json")
    shown = out / "report.html"  # which needs matplotlib
    render.show_comparison(summary, shown if shown.exists() else out / "summary.json", as_json=options.as_json)


def _cell_recorder(out: Path) -> Callable[[Any], object]:
    """Logs cells to the MLflow server that the workspace or the environment names, else to a database in `out`."""
    from vabal.adapters.tracking import Tracking

    place = chosen.workspace_if_any()
    if os.environ.get("MLFLOW_TRACKING_URI"):
        tracking = Tracking(place.params().workspace.name if place else "default", experiment="vabal-bench")
        tracking.preflight()
    else:
        out.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # it tells of every table that it makes
        tracking = Tracking("default", f"sqlite:///{out.absolute()}/mlflow.db", experiment="vabal-bench")
    return tracking.log_cell


def _on_ray(grid: "Grid", out: Path, title: str, command: str, *, mlflow: bool) -> None:
    from vabal.adapters import orchestration

    place = chosen.workspace_if_any()
    orchestration.preflight()
    from vabal.flows.benchmark import benchmark
    from vabal.flows.here import run_here

    name = place.params().workspace.name if place else "default"
    gpus = place.params().compute.gpus_per_task if place else 0.0
    state = run_here(benchmark, asdict(grid), str(out.absolute()), title, command, name if mlflow else None, gpus)
    say_end(state)
