"""The `vabal` command. Each command loads what it needs when it runs, so that `vabal --help` stays quick."""

import csv
import io
import json
import logging
import os
import shlex
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vabal.errors import UserError, os_error_line

if TYPE_CHECKING:
    from rich.console import Console

    from vabal.workspace import Workspace


class _Commands(TyperGroup):
    """Ctrl-C is told in one line; typer says nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("vabal: stopped; nothing is lost: run the same command again to go on", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Nightly active learning for image classes that are neither equally common nor equally hard.",
)
labels_app = typer.Typer(no_args_is_help=True, help="Labels out (requests) and in (answers).")
app.add_typer(labels_app, name="labels")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
_chosen: dict[str, Path] = {}
PATIENCE_S = 60.0  # with a promotion that the schedule has just started


def _print_version(wanted: bool) -> None:
    if wanted:
        import vabal

        typer.echo(vabal.__version__)
        raise typer.Exit


@app.callback()
def _options(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-C", help="The workspace's folder; default: the one you stand in.")
    ] = None,
    version: Annotated[  # noqa: ARG001 -- its callback does it
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    _chosen.clear()
    if workspace is not None:
        _chosen["workspace"] = workspace


def main() -> None:
    """Run the command; a user's mistake, or what the system refuses, is one line on standard error and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows other characters as their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        typer.echo(f"vabal: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `vabal audit | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        typer.echo(f"vabal: {os_error_line(error)}", err=True)
        sys.exit(1)


# -- making and filling a workspace -------------------------------------------------------------------------------


@app.command()
def init(
    source: Annotated[
        str, typer.Option(help="digits, folder:PATH, npz:PATH, cifar10:ROOT, cifar100:ROOT, neu:ROOT, elpv")
    ],
    imbalance: Annotated[str | None, typer.Option(help="dominant:K[:FRACTION] or rare:K[:FRACTION]; K from 0.")] = None,
    initial: Annotated[int, typer.Option(help="Images labelled (or asked for) in round 0.")] = 100,
    holdout: Annotated[float, typer.Option(help="Share held out for evaluation, drawn first, stratified.")] = 0.2,
    seed: Annotated[int | None, typer.Option(help="Decides every random choice; default: params.yaml's.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names, by commas: of a source without labels, or to settle which they are."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="How a folder is read: class-folders, parent-folders, splits or flat (docs/sources.md)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The workspace's name in MLflow and Prefect.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of params.yaml, as classifier.width=16.")
    ] = None,
) -> None:
    """Make round 0 in this folder: pools, settings, git and DVC.

    Example: `vabal init --source digits --imbalance dominant:0:0.3`
    """
    from vabal.adapters import storage
    from vabal.adapters.versioning import Versioning
    from vabal.rounds.initial import initialise

    root = _folder(search=False)
    # where standard output is no terminal, bars would take its lines along to standard error
    say = partial(typer.echo, file=None if sys.stdout.isatty() else sys.stdout)
    with _bars():
        done = initialise(
            root,
            source=source,
            imbalance=imbalance,
            initial=initial,
            holdout=holdout,
            seed=seed,
            classes=_by_commas(classes),
            layout=layout,
            tell=say,
            name=name,
            settings=_assignments(settings or []),
            versions=Versioning(root),
            prepare=lambda storing: storage.preflight(storing.bucket, storing.prefix),
        )
    for line in done:
        typer.echo(line)


@app.command()
def ingest(
    path: Annotated[Path, typer.Argument(help="An image, a folder of images, or an .npz file.")],
    as_json: AsJson = False,
) -> None:
    """Add images to the pool; the next round takes them in.

    Example: `vabal ingest camera/2024-06-01`
    """
    from datetime import UTC, datetime

    from vabal import pools
    from vabal.sources import ingestion

    place = _workspace()
    place.require_round_zero()
    with _reading(place):
        known = pools.load(place.data)
    with _bars():
        report = ingestion.ingest(
            place.inbox,
            known,
            path,
            place.params(),
            quarantine=place.quarantine,
            when=datetime.now(UTC),
            data=place.data,
            fingerprints=place.fingerprints,
        )
    _say(report, as_json)


@labels_app.command("export")
def labels_export(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    as_json: AsJson = False,
) -> None:
    """Write the open requests as images, a CSV to fill in, and Label Studio's JSON.

    Example: `vabal labels export requests/`
    """
    from vabal import pools, rounds
    from vabal.adapters.versioning import Versioning
    from vabal.labels import export

    place = _workspace()
    place.require_round_zero()
    with _bars(), _reading(place):
        rounds.refuse_older_checkout(place, Versioning(place.root))
        report = export.export_requests(pools.load(place.data), place.data, folder, place.inbox)
    _say(report, as_json)


@labels_app.command("import")
def labels_import(
    file: Annotated[Path, typer.Argument(help="CSV (sample_id,label,annotator) or Label Studio's export.")],
    reject: Annotated[bool, typer.Option("--reject", help="Also a file that rejects most of its images.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take labels in: all lines or none, durable at once; the next round learns from them.

    Example: `vabal labels import requests/requests.csv`
    """
    from datetime import UTC, datetime

    from vabal import pools
    from vabal.labels import answers

    place = _workspace()
    place.require_round_zero()
    with _reading(place):
        known = pools.load(place.data)
    report = answers.import_labels(place.inbox, known, file, datetime.now(UTC), reject=reject)
    _say(report, as_json)


# -- the local stack ----------------------------------------------------------------------------------------------


@app.command()
def up() -> None:
    """Start the local stack: S3, MLflow, Prefect server and worker, on loopback.

    Example: `vabal up`
    """
    from vabal.adapters import stack

    root = _folder()
    with _bars() as bars:
        notes = stack.up(root, bars)
    for note in notes:
        typer.echo(note)
    _print_status(stack.status(root), as_json=False)


@app.command()
def down() -> None:
    """Stop the local stack; its data, ports and credentials stay for the next `vabal up`.

    Example: `vabal down`
    """
    from vabal.adapters import stack

    for line in stack.down(_folder()):
        typer.echo(line)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the local stack, the newest round, and what waits in the inbox.

    Example: `vabal status --json`
    """
    from vabal.adapters import stack

    _print_status(stack.status(_folder()), as_json)


# -- rounds -------------------------------------------------------------------------------------------------------


@app.command(name="round")
def round_(
    strategy: Annotated[str | None, typer.Option(help="Instead of params.yaml's selection.strategy.")] = None,
    worker: Annotated[bool, typer.Option("--worker", help="Through a worker, as the schedule does.")] = False,
) -> None:
    """Run one round now: take in, train, estimate, select, publish.

    Example: `vabal round --strategy entropy`
    """
    place = _workspace()
    place.require_round_zero()
    params = place.params({"selection.strategy": strategy} if strategy else None)
    from vabal.adapters import orchestration

    orchestration.preflight()
    if worker:
        from vabal.flows.deploy import deployment_names, run_now

        ended = run_now(deployment_names(params)[0], typer.echo, {"strategy": strategy} if strategy else None)
        if not ended.completed:
            raise UserError(f"the round ended as {ended.name}: {ended.message}")
        return
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    with _bars(console):
        from vabal.flows.here import run_here
        from vabal.flows.logs import leave_the_end_to_the_command

        if params.compute.task_runner == "ray":
            from vabal.flows.on_ray import active_learning_round
        else:
            from vabal.flows.round import active_learning_round
        leave_the_end_to_the_command(console)
        state = run_here(active_learning_round, str(place.root), strategy)
    _end(state)


@app.command()
def abandon() -> None:
    """Drop the round that was begun, or that is half published; what came in stays in the inbox.

    Example: `vabal abandon`, then `vabal round`
    """
    place = _workspace()
    place.require_round_zero()
    from vabal.flows.tasks import abandon as abandon_now

    with place.lock("vabal abandon"):
        lines = abandon_now(place)
    for line in lines:
        typer.echo(line)


@app.command()
def deploy() -> None:
    """Put the nightly round, and the promotion after it, on the Prefect server's schedule.

    Example: `vabal deploy`
    """
    place = _workspace()
    from vabal.adapters import orchestration

    orchestration.preflight()
    from vabal.flows.deploy import deploy as deploy_flows

    for line in deploy_flows(place.root, place.params()):
        typer.echo(line)


# -- audit --------------------------------------------------------------------------------------------------------


@app.command()
def audit(
    round_number: Annotated[int | None, typer.Argument(metavar="[ROUND]", help="A round's picks.")] = None,
    sample: Annotated[str | None, typer.Option("--sample", help="One image's history.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute every digest, chain, sum and pick.")] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="With --verify: ask S3, the git remote and the registry too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What was picked, when, why, and by what; from the pools' files alone.

    Example: `vabal audit 2`, `vabal audit --sample digits-0042`, `vabal audit --verify`
    """
    from vabal import audit as auditing
    from vabal.adapters.versioning import Versioning
    from vabal.cli import render
    from vabal.promotion.agreement import witness_here

    place = _workspace()
    place.require_round_zero()
    versions = Versioning(place.root)
    tags = versions.tag_messages()
    if verify:
        with _bars(), _reading(place):
            outside = _outside(place, versions, remote=remote)
            report = auditing.verify(place.data, tags, outside=outside, promotions=witness_here(place.data, versions))
        render.show_report(report, as_json=as_json)
        if not report.ok:
            raise typer.Exit(1)
    elif sample is not None:
        with _reading(place):
            history = auditing.history(place.data, sample)
        render.show_history(history, as_json=as_json)
    elif round_number is not None:
        with _reading(place):
            picks = auditing.picks(place.data, round_number)
        render.show_picks(picks, as_json=as_json)
    else:
        with _reading(place):
            records = auditing.rounds(place.data, tags)
        render.show_rounds(records, as_json=as_json)


def _outside(place: "Workspace", versions: Any, *, remote: bool) -> Any:
    """What the audit may ask besides `data/`: git, DVC's cache, the anchor if there is one; with `remote` the rest."""
    from vabal import rounds
    from vabal.audit.places import Outside

    params, plan = place.params(), rounds.pending_publication(place)
    outside = Outside(versions, sign=params.audit.sign, pending=plan.round if plan else None)
    if remote or params.audit.anchor:
        from vabal.adapters import storage

        if params.audit.anchor:
            outside.anchor = storage.Anchor(params.audit.anchor, params.audit.anchor_years)
        if remote:
            outside.bucket = storage.Bucket(params.storage.bucket, params.storage.prefix)
            outside.git_remote = params.storage.git_remote or versions.default_remote()
            if outside.git_remote is None:
                outside.notes.append("no git remote is known: tags were not compared (storage.git_remote)")
            from vabal.adapters.tracking import Tracking

            outside.registry = Tracking(params.workspace.name)
    return outside


@app.command()
def checkout(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[ROUND]", help="A round's number, or `newest`; default: this commit's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what was edited by hand below data/.")] = False,
) -> None:
    """Bring back the pools of a round, from the cache or S3; without ROUND those that this commit pins.

    Example: `vabal checkout 2`, then `vabal checkout newest`
    """
    from vabal.adapters.versioning import Versioning
    from vabal.rounds.checkout import checkout as check_out

    place = _workspace()
    with place.lock("vabal checkout"):
        typer.echo(check_out(place, Versioning(place.root), wanted, force=force))


@app.command()
def replay(
    round_number: Annotated[int, typer.Argument(metavar="ROUND", help="The round to compute again.")],
    as_json: AsJson = False,
) -> None:
    """Compute a past round again from its pinned pools, settings and seed, and compare weights, scores and picks.

    Example: `vabal replay 2`
    """
    import shutil

    from vabal.adapters.versioning import Versioning
    from vabal.audit.replay import replay as replay_round
    from vabal.rounds import tag_name
    from vabal.workspace import Workspace

    place = _workspace()
    versions = Versioning(place.root)
    if tag_name(round_number) not in versions.tags():
        raise UserError(f"git has no tag {tag_name(round_number)} (`git fetch --tags` brings those of a remote)")
    scratch = place.state / "replay" / uuid.uuid4().hex
    scratch.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        versions.clone_at(scratch, tag_name(round_number)).bring_back()
        with _bars():
            again = replay_round(Workspace(scratch), round_number)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _say(again, as_json)
    if not again.identical and not again.versions:
        raise typer.Exit(1)


@app.command()
def env() -> None:
    """Print what a shell needs so that MLflow's, Prefect's and DVC's own commands work: addresses, keys, folders.

    Example: `eval "$(vabal env)"`
    """
    from vabal.adapters.versioning import Versioning

    place = _workspace()
    before = dict(os.environ)
    place.environment()
    Versioning(place.root).keep_cache_private()
    wanted = {name: value for name, value in os.environ.items() if before.get(name) != value}
    wanted |= {name: value for name, value in before.items() if name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))}
    for name, value in sorted(wanted.items()):
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def show(
    sample: Annotated[str, typer.Argument(help="A sample id.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: the sample's id, here.")] = None,
) -> None:
    """Write an image of the pool, its own bytes, to a file.

    Example: `vabal show digits-0042 --out suspicious.png`
    """
    from vabal import audit as auditing

    place = _workspace()
    place.require_round_zero()
    with _reading(place):
        written = auditing.show(place.data, sample, out)
    typer.echo(str(written))


# -- promotion ----------------------------------------------------------------------------------------------------


@app.command()
def promote(
    version: Annotated[str | None, typer.Option("--version", help="Instead of the challenger.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the challenger champion, if it is shown to be better on the holdout, and no class to be much worse.

    Example: `vabal promote --version 3`
    """
    place = _workspace()
    place.require_round_zero()
    from vabal.flows.promote import promote as promote_now

    _say(promote_now(place, version, wait=PATIENCE_S), as_json)


@app.command()
def rollback(as_json: AsJson = False) -> None:
    """Put the previous champion back.

    Example: `vabal rollback`
    """
    place = _workspace()
    place.require_round_zero()
    from vabal.flows.promote import rollback as rollback_now

    _say(rollback_now(place, wait=PATIENCE_S), as_json)


# -- the benchmark ------------------------------------------------------------------------------------------------


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="A folder for the results; a grid that was stopped goes on there.")],
    source: Annotated[list[str] | None, typer.Option(help="As with `vabal init`; may be repeated.")] = None,
    layout: Annotated[str | None, typer.Option(help="How folders are read, as with `vabal init`.")] = None,
    imbalance: Annotated[
        list[str] | None, typer.Option(help="As with `vabal init`, or `natural`; may be repeated.")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Names by commas, settings of their own in brackets (docs/protocols.md).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each strategy, with matched seeds.")] = None,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Trainings, each on one batch more than the one before.")] = None,
    budget: Annotated[int | None, typer.Option(help="Labels a round asks for.")] = None,
    initial: Annotated[int | None, typer.Option(help="Labels of the first round, drawn at random.")] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share held out, where the source brings no test split.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of params.yaml for all, as classifier.width=16.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="A named set-up (docs/protocols.md), as cifar10.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where a protocol's data lies.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes at once; default: the cores.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="As Prefect tasks on Ray; needs the Prefect server.")] = False,
    mlflow: Annotated[
        bool, typer.Option(help="One MLflow run a cell, in the workspace's server or OUT/mlflow.db.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare strategies by simulated active learning, with matched seeds: results.csv, summary.json, report.html.

    Example: `vabal bench --source digits --imbalance dominant:0:0.1 --strategies random,margin,vabal --seeds 5
    --rounds 5 --budget 20 --initial 20 --out results/digits`
    """
    from vabal.benchmark import cells, grids, running
    from vabal.cli import render
    from vabal.sources import with_layout

    wishes = grids.BenchmarkOptions(
        protocol=protocol,
        root=root,
        sources=[with_layout(spec, layout) for spec in source or []],
        imbalances=imbalance or [],
        strategies=strategies,
        seeds=seeds,
        first_seed=first_seed,
        rounds=rounds,
        budget=budget,
        initial=initial,
        holdout=holdout,
        settings=_assignments(settings or []),
    )
    grid = wishes.grid()
    cells.own(out)
    title = f"{protocol or ', '.join(grid.sources)}: active learning strategies compared"
    command = shlex.join(["vabal", *sys.argv[1:]])
    if ray:
        _bench_on_ray(grid, out, title, command, mlflow=mlflow)
    else:
        running.run(
            grid,
            out,
            running.on_processes(jobs or os.cpu_count() or 1),
            title=title,
            command=command,
            tell=lambda line: typer.echo(line, err=True),
            record=_cell_recorder(out) if mlflow else running.nobody,
        )
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    render.show_comparison(summary, out / "report.html", as_json=as_json)


def _bench_workspace() -> "Workspace | None":
    """The workspace whose servers a benchmark may use; none is needed."""
    from vabal.workspace import Workspace

    with suppress(UserError):
        place = Workspace.find(_chosen.get("workspace"))
        place.environment()
        return place
    return None


def _cell_recorder(out: Path) -> Any:
    """Logs cells to the MLflow server that the workspace or the environment names, else to a database in `out`."""
    from vabal.adapters.tracking import Tracking

    place = _bench_workspace()
    if os.environ.get("MLFLOW_TRACKING_URI"):
        tracking = Tracking(place.params().workspace.name if place else "default", experiment="vabal-bench")
        tracking.preflight()
    else:
        out.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # it tells of every table that it makes
        tracking = Tracking("default", f"sqlite:///{out.absolute()}/mlflow.db", experiment="vabal-bench")
    return tracking.log_cell


def _bench_on_ray(grid: Any, out: Path, title: str, command: str, *, mlflow: bool) -> None:
    from dataclasses import asdict

    from vabal.adapters import orchestration

    place = _bench_workspace()
    orchestration.preflight()
    from vabal.flows.benchmark import benchmark
    from vabal.flows.here import run_here

    name = place.params().workspace.name if place else "default"
    gpus = place.params().compute.gpus_per_task if place else 0.0
    state = run_here(benchmark, asdict(grid), str(out.absolute()), title, command, name if mlflow else None, gpus)
    _end(state)


# -- what the commands share --------------------------------------------------------------------------------------


def _folder(*, search: bool = True) -> Path:
    """The workspace's root; for commands that may come before there is one, the folder itself."""
    from vabal.workspace import Workspace

    start = _chosen.get("workspace", Path.cwd()).absolute()
    place = Workspace(start)
    if search:
        with suppress(UserError):
            place = Workspace.find(start)
    place.environment()
    return place.root


def _workspace() -> "Workspace":
    from vabal.workspace import Workspace

    place = Workspace.find(_chosen.get("workspace"))
    place.environment()
    return place


def _assignments(pairs: list[str]) -> dict[str, Any]:
    import yaml

    from vabal.settings.params import read_yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"--set {pair}: write it as section.key=value")
        try:
            values[key] = read_yaml(value)
        except yaml.YAMLError:
            quoted = shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")
            raise UserError(f"--set {pair}: {value!r} is no value in YAML; as text: --set {quoted}") from None
    return values


@contextmanager
def _reading(place: "Workspace") -> Iterator[None]:
    """`data/` as one round left it, whatever a killed run left half published."""
    from vabal import rounds
    from vabal.adapters.versioning import Versioning

    with rounds.reading(place, Versioning(place.root)):
        yield


def _end(state: Any) -> None:
    """Say how a flow run ended; a failed one raises what it failed with."""
    if state.is_completed():
        typer.echo(f"{state.name}: {state.message}")
        return
    state.result(raise_on_failure=True)


def _by_commas(text: str | None) -> list[str] | None:
    """Names between commas; a name with a comma in it stands in double quotes."""
    return None if text is None else [item.strip() for item in next(csv.reader([text], skipinitialspace=True), [])]


def _say(report: Any, as_json: bool) -> None:
    if as_json:
        from vabal.cli.render import print_json

        print_json(report.to_json())
        return
    for line in report.lines():
        typer.echo(line)


def _print_status(services: list[dict[str, Any]], as_json: bool) -> None:
    from vabal.cli import render

    render.show_status(services, _chosen.get("workspace", Path.cwd()), as_json=as_json)


@contextmanager
def _bars(console: "Console | None" = None) -> Iterator[Any]:
    """Progress bars for what takes long, on a terminal; silence elsewhere. What `console` prints comes above them."""
    from vabal.progress import listening

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console or Console(stderr=True),
        transient=True,
    ) as progress:
        bars: dict[str, Any] = {}

        def listen(stage: str, done: int, total: int | None) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=total)

        with listening(listen):
            yield listen
