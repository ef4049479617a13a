"""Making and filling a workspace: `init`, `ingest`."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vabal.cli import chosen, complete
from vabal.cli.console import bars, say, show
from vabal.cli.following import say_next
from vabal.cli.options import AsJson, assignments, by_commas, taking
from vabal.errors import UserError

if TYPE_CHECKING:
    from vabal.rounds.choice import LearnerChoice


@dataclass(frozen=True)
class InitOptions:
    """Of `vabal init`."""

    source: Annotated[
        str,
        typer.Option(
            help="digits, folder:PATH, s3://BUCKET/PREFIX, uris:MANIFEST.csv, npz:PATH, cifar10:ROOT, cifar100:ROOT, "
            "neu:ROOT, elpv[:two-levels]",
            autocompletion=complete.sources,
        ),
    ]
    imbalance: Annotated[str | None, typer.Option(help="dominant:K[:FRACTION] or rare:K[:FRACTION]; K from 0.")] = None
    initial: Annotated[int, typer.Option(help="Images labelled (or asked for) in round 0.")] = 100
    holdout: Annotated[float, typer.Option(help="Share held out for evaluation, drawn first, stratified.")] = 0.2
    seed: Annotated[int | None, typer.Option(help="Decides every random choice; default: params.yaml's.")] = None
    classes: Annotated[
        str | None,
        typer.Option(help="Class names, by commas: of a source without labels, or to settle which they are."),
    ] = None
    layout: Annotated[
        str | None,
        typer.Option(
            help="How a folder is read: class-folders, parent-folders, splits or flat (docs/sources.md).",
            autocompletion=complete.layouts,
        ),
    ] = None
    name: Annotated[str | None, typer.Option(help="The workspace's name in MLflow and Prefect.")] = None
    learner: Annotated[
        str,
        typer.Option(
            help="scratch, probe or finetune (classifier.learner); auto: by trying probes on the initial labels.",
            autocompletion=complete.learners_of_init,
        ),
    ] = "auto"
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of params.yaml, as classifier.width=16.")
    ] = None


@taking(InitOptions)
def init(options: InitOptions) -> None:
    """Make round 0 in this folder: pools, settings, git and DVC.

    Example: `vabal init --source digits --imbalance dominant:0:0.3`
    """
    from vabal.adapters import storage
    from vabal.adapters.versioning import Versioning
    from vabal.rounds.initial import initialise

    root = chosen.folder(search=False)
    # where standard output is no terminal, bars would take its lines along to standard error
    tell = partial(typer.echo, file=None if sys.stdout.isatty() else sys.stdout)
    settings = _with_learner(assignments(options.settings or []), options.learner)
    chosen_here: list[LearnerChoice] = []
    with bars():
        done = initialise(
            root,
            source=options.source,
            imbalance=options.imbalance,
            initial=options.initial,
            holdout=options.holdout,
            seed=options.seed,
            classes=by_commas(options.classes),
            layout=options.layout,
            tell=tell,
            choose=partial(_choose_learner, tell, chosen_here),
            name=options.name,
            settings=settings,
            versions=Versioning(root),
            prepare=lambda storing: storage.preflight(storing.bucket, storing.prefix),
        )
    say(done)
    say(_cost(root, chosen_here[0] if chosen_here else None))
    say_next()


def _cost(root: Path, choice: "LearnerChoice | None") -> Iterator[str]:
    """What a night of the new workspace costs, and which learner it is where none was chosen here."""
    from vabal import rounds
    from vabal.cli.overview import size
    from vabal.cli.render import duration
    from vabal.workspace import Workspace

    place = Workspace(root)
    params, made = place.params(), rounds.head(place.data)
    if choice is None:
        yield f"learner: {params.classifier.learner}, as params.yaml has it; none was tried"
    seconds = choice.night if choice else None
    takes = f"{duration(seconds)} of learning here, and the servers' share" if seconds else "seconds were not measured"
    yield f"a night: {takes}; {params.selection.budget} labels asked for (selection.budget)"
    images = sum(path.stat().st_size for path in (place.data / "images").glob("*.parquet"))
    seen = made.counts["catalog"] * params.images.size**2 * params.images.channels
    seen += choice.embeddings if choice else 0
    yield f"disk: {size(images)} of images, the same in S3, and {size(seen)} of what the networks see of them"


def _with_learner(settings: Mapping[str, Any], learner: str) -> dict[str, Any]:
    """The settings of `--set` with that of `--learner`. Raises UserError for a learner that is none, or another one."""
    known = complete.learners_of_init("")
    if learner not in known:
        raise UserError(f"--learner {learner}: it is one of {', '.join(known)}")
    if learner == "auto":
        return dict(settings)
    other = settings.get("classifier.learner", learner)
    if other != learner:
        raise UserError(f"--learner {learner} contradicts --set classifier.learner={other}: name one of them")
    return {**settings, "classifier.learner": learner}


def _choose_learner(tell: Callable[[str], None], found_here: "list[LearnerChoice]", *made: Any) -> Mapping[str, Any]:
    """What `initialise` asks for where nobody named a learner; tells what was tried and what is taken."""
    from vabal.cli.render import show_choice
    from vabal.rounds import choice

    found = choice.choose(tell, *made)
    show_choice(found)
    found_here.append(found)
    return found.settings


def ingest(
    path: Annotated[
        str, typer.Argument(help="An image, a folder of images, an .npz file, s3://BUCKET/PREFIX or uris:MANIFEST.csv.")
    ],
    as_json: AsJson = False,
) -> None:
    """Add images to the pool; the next round takes them in.

    Those of a bucket stay there; of a prefix that was ingested before only new objects are read.

    Example: `vabal ingest camera/2024-06-01`
    """
    from datetime import UTC, datetime

    from vabal import pools
    from vabal.sources import ingestion

    place = chosen.with_pools()
    with chosen.reading(place):
        known = pools.load(place.data)
    with bars():
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
    show(report, as_json)
