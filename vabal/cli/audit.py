"""What was picked, when, why and by what, and what it came to: `audit`, `curve`, `replay`, `show`."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vabal.cli import chosen, console
from vabal.cli.options import AsJson, taking
from vabal.errors import UserError

if TYPE_CHECKING:
    from vabal.adapters.versioning import Versioning
    from vabal.workspace import Workspace


@dataclass(frozen=True)
class AuditOptions:
    """Of `vabal audit`."""

    round: Annotated[int | None, typer.Argument(metavar="[ROUND]", help="A round's picks.")] = None
    sample: Annotated[str | None, typer.Option("--sample", help="One image's history.")] = None
    why: Annotated[str | None, typer.Option("--why", metavar="ID", help="With ROUND: why was it picked, or not?")] = (
        None
    )
    other: Annotated[str | None, typer.Option("--not", metavar="ID", help="With --why: and not this one?")] = None
    verify: Annotated[bool, typer.Option("--verify", help="Recompute every digest, chain, sum and pick.")] = False
    remote: Annotated[
        bool, typer.Option("--remote", help="With --verify: ask S3, the git remote and the registry too.")
    ] = False
    since: Annotated[
        int | None,
        typer.Option(min=0, metavar="ROUND", help="With --verify: rounds before are taken as verified before."),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --verify: processes; default: by cores and size of the record."),
    ] = None
    as_json: AsJson = False


@taking(AuditOptions)
def audit(options: AuditOptions) -> None:
    """What was picked, when, why, and by what; from the pools' files alone.

    Example: `vabal audit 2`, `vabal audit 2 --why digits-0693`, `vabal audit --verify`
    """
    _require_that_they_fit(options)
    from vabal.adapters.versioning import Versioning

    place = chosen.with_pools()
    versions = Versioning(place.root)
    if options.verify:
        _verify(place, versions, options)
    else:
        _tell(place, versions, options)


def _require_that_they_fit(options: AuditOptions) -> None:
    if options.other is not None and options.why is None:
        raise UserError("--not asks about a second sample: name the first one with --why")
    if options.why is not None and options.round is None:
        raise UserError(f"--why asks about a round: name it, as in `vabal audit 2 --why {options.why}`")
    if sum([options.verify, options.sample is not None, options.why is not None]) > 1:
        raise UserError("--verify, --sample and --why are questions of their own: ask one")
    if not options.verify and (options.since is not None or options.workers is not None):
        raise UserError("--since and --workers are for --verify: `vabal audit --verify --since ROUND`")


def _tell(place: "Workspace", versions: "Versioning", options: AuditOptions) -> None:
    from vabal import audit as ask
    from vabal.cli import audited

    # What is read is shown behind the lock: a pager may keep the output open for hours.
    if options.sample is not None:
        with chosen.reading(place):
            history = ask.history(place.data, options.sample, place.inbox, place.indices)
        audited.show_history(history, as_json=options.as_json)
    elif options.round is not None and options.why is not None:
        from vabal.audit.why import why

        with chosen.reading(place):
            answer = why(place.data, options.round, options.why, options.other)
        audited.show_why(answer, as_json=options.as_json)
    elif options.round is not None:
        with chosen.reading(place):
            picks = ask.picks(place.data, options.round)
        audited.show_picks(picks, as_json=options.as_json)
    else:
        tags = versions.tag_messages()
        with chosen.reading(place):
            records = ask.rounds(place.data, tags)
        audited.show_rounds(records, as_json=options.as_json)


def _verify(place: "Workspace", versions: "Versioning", options: AuditOptions) -> None:
    """Raises typer.Exit with 1 where something was found."""
    from vabal.audit import shared
    from vabal.audit.verification import verify
    from vabal.cli import audited
    from vabal.promotion.agreement import witness_here

    tags = versions.tag_messages()
    with console.bars(), chosen.reading(place):
        report = verify(
            place.data,
            tags,
            outside=_outside(place, versions, remote=options.remote),
            promotions=witness_here(place.data, versions),
            since=options.since or 0,
            workers=options.workers or shared.usual(place.data),
        )
    audited.show_report(report, as_json=options.as_json)
    if not report.ok:
        raise typer.Exit(1)


def _outside(place: "Workspace", versions: "Versioning", *, remote: bool) -> Any:
    """What the audit may ask besides `data/`: git, DVC's cache, the anchor if there is one; with `remote` the rest."""
    from vabal import objects, rounds
    from vabal.audit.places import Outside

    params, plan = place.params(), rounds.pending_publication(place)
    outside = Outside(versions, sign=params.audit.sign, pending=plan.round if plan else None)
    if remote or params.audit.anchor:
        from vabal.adapters import storage

        if params.audit.anchor:
            outside.anchor = storage.Anchor(params.audit.anchor, params.audit.anchor_years)
        if remote:
            outside.bucket = storage.Bucket(params.storage.bucket, params.storage.prefix)
            outside.objects = objects.store()
            outside.git_remote = params.storage.git_remote or versions.default_remote()
            if outside.git_remote is None:
                outside.notes.append("no git remote is known: tags were not compared (storage.git_remote)")
            from vabal.adapters.tracking import Tracking

            outside.registry = Tracking(params.workspace.name)
    return outside


def card(
    number: Annotated[
        int | None, typer.Argument(metavar="[ROUND]", help="A round's number; default: the newest.")
    ] = None,
) -> None:
    """The card of a round's version, as Markdown: what it learned from, its figures class by class, its limits.

    Example: `vabal card 2`
    """
    from vabal import rounds
    from vabal.audit.card import card as card_of

    place = chosen.with_pools()
    with chosen.reading(place):
        text = card_of(place.data, rounds.head(place.data).round if number is None else number)
    typer.echo(text, nl=False)


def curve(as_json: AsJson = False) -> None:
    """The learning curve of the real rounds: how well each one's model did on the holdout, and how sure that is.

    Example: `vabal curve`
    """
    from vabal.audit.curve import curve as measured
    from vabal.cli import audited

    place = chosen.with_pools()
    with chosen.reading(place):
        rows = measured(place.data)
    audited.show_curve(rows, as_json=as_json)


def forecast(
    labels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Labels to come; default: selection.budget.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the next labels would buy: the real rounds' learning curve, continued, with 90 % intervals.

    Example: `vabal forecast --labels 200`
    """
    from vabal.audit.forecast import forecast as continued
    from vabal.cli import audited

    place = chosen.with_pools()
    with chosen.reading(place):
        found = continued(place.data, labels or place.params().selection.budget)
    audited.show_forecast(found, as_json=as_json)


def control(as_json: AsJson = False) -> None:
    """What the control arm tells: accuracy and class shares on the pool, without bias, and whether the picks beat it;
    and whether each night's new images look like those before.

    Example: `vabal control`
    """
    from vabal.audit.control import arms
    from vabal.audit.drift import drifts
    from vabal.cli import audited

    place = chosen.with_pools()
    with chosen.reading(place):
        told, compared = arms(place.data), drifts(place.data)
    audited.show_control(told, compared, as_json=as_json)


def replay(
    round_number: Annotated[int, typer.Argument(metavar="ROUND", help="The round to compute again.")],
    as_json: AsJson = False,
) -> None:
    """Compute a past round again from its pinned pools, settings and seed, and compare weights, scores and picks.

    Example: `vabal replay 2`
    """
    from vabal.adapters.versioning import Versioning
    from vabal.audit.replay import replay as replay_round
    from vabal.rounds import tag_name
    from vabal.workspace import Workspace

    place = chosen.workspace()
    versions = Versioning(place.root)
    if tag_name(round_number) not in versions.tags():
        raise UserError(f"git has no tag {tag_name(round_number)} (`git fetch --tags` brings those of a remote)")
    scratch = place.state / "replay" / uuid.uuid4().hex
    scratch.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        versions.clone_at(scratch, tag_name(round_number)).bring_back()
        with console.bars():
            again = replay_round(Workspace(scratch), round_number, place.root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    console.show(again, as_json)
    if not again.identical and not again.versions:
        raise typer.Exit(1)


def show(
    sample: Annotated[str, typer.Argument(help="A sample id.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: the sample's id, here.")] = None,
) -> None:
    """Write an image of the pool, its own bytes, to a file.

    Example: `vabal show digits-0693 --out suspicious.png`
    """
    from vabal.audit import queries

    place = chosen.with_pools()
    with chosen.reading(place):
        written = queries.show(place.data, sample, out)
    typer.echo(str(written))
