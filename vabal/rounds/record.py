"""The record of a round: what `data/` holds after it, and the manifest that ties it together."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vabal import pools
from vabal.files import file_sha256, write_bytes
from vabal.rounds import manifests, steps, tables
from vabal.rounds.context import RoundContext
from vabal.rounds.manifests import MANIFEST_VERSION, Manifest, ModelRecord, Times, round_folder
from vabal.rounds.plans import Plan
from vabal.rounds.stage_store import code_version
from vabal.settings.models import Params


def assemble(
    context: RoundContext,
    refs: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    mlflow_run: str,
    flow_run: str | None,
    promotions: Mapping[str, Any] | None,
    now: datetime,
) -> tuple[Plan, dict[str, Path]]:
    """What the round publishes: the plan, and for each file below `data/` where its content lies.

    `refs` has the outputs of evaluate, select-batch and estimate-probabilities by name; `promotions` is the head of the
    promotion record, None while it is empty.
    """
    number = context.round.round
    staging = context.workspace.state / "record"
    before, after, contents = _pools_after(context, refs["selected"], staging)
    contents |= _round_files(context, refs)
    known = {name: (getattr(before, name), told) for name, told in context.report["digests"].items()}
    digests = pools.digests(after, known)  # what the selection leaves as it was has the intake's
    manifest = _manifest(context, refs, model, after, digests, contents, mlflow_run, flow_run, promotions, now)
    write_bytes(staging / "manifest.json", manifest.content)
    contents[f"{_here(context)}/manifest.json"] = staging / "manifest.json"
    plan = Plan(
        round=number,
        message=manifest.tag_message,
        files={name: file_sha256(path) for name, path in contents.items()},
        inbox=list(context.round.inbox),
        git_remote=context.params.storage.git_remote,
        after={"run": mlflow_run, "version": model["version"]},
    )
    return plan, contents


def _manifest(
    context: RoundContext,
    refs: Mapping[str, Any],
    model: Mapping[str, Any],
    after: pools.Pools,
    digests: dict[str, str],
    contents: Mapping[str, Path],
    mlflow_run: str,
    flow_run: str | None,
    promotions: Mapping[str, Any] | None,
    now: datetime,
) -> Manifest:
    selection = steps.selection_document(context, refs["selected"])
    parent = manifests.read_manifest(context.workspace.data, context.round.round - 1)
    own = {Path(name).name: path for name, path in contents.items() if name.startswith(f"{_here(context)}/")}
    return Manifest(
        version=MANIFEST_VERSION,
        round=context.round.round,
        parent=context.round.parent,
        strategy=context.params.selection.strategy,
        seed=context.params.seed,
        settings=context.params.model_dump(mode="json"),
        code=code_version(),
        class_terms=selection["class_terms"],
        selection={name: selection[name] for name in ("rule", "beta", "budget", "seed", "shortlist")},
        pools_before=parent.pools_after,
        pools_after=digests,
        tables=_published_tables(context, contents),
        files={name: file_sha256(path) for name, path in own.items()},
        shards=context.report["shards"],
        counts=pools.counts(after, len(tables.read_selection(own[tables.SELECTION_FILE]))),
        intake=context.report["intake"],
        model=ModelRecord(**model),
        promotions=dict(promotions) if promotions else None,
        mlflow_run=mlflow_run,
        prefect_flow_run=flow_run,
        metrics={metric.name: metric.value for metric in steps.evaluation(context, refs["evaluated"])},
        times=_times(context.round.started, now, parent.times),
        environment=environment(context.params),
    )


def _here(context: RoundContext) -> str:
    return round_folder(Path(), context.round.round).as_posix()


def _times(started: str, now: datetime, before: Times | None) -> Times:
    """When the round began and ended. Time never runs backwards in a record, though a clock may: the end of the round
    before is the least."""
    least = datetime.fromisoformat(before.finished if before else started)
    begun = max(least, datetime.fromisoformat(started))
    ended = max(begun, now.astimezone(UTC).replace(microsecond=0))
    return Times(started=begun.isoformat(timespec="seconds"), finished=ended.isoformat(timespec="seconds"))


def environment(params: Params) -> dict[str, str]:
    """Versions of what the numbers depend on, and what they were computed on."""
    from vabal.learning.device import device_name, device_of, precision_of  # noqa: PLC0415 -- torch takes two seconds

    device = device_of(params)
    names = ("torch", "numpy", "pandas", "pyarrow", "scikit-learn")
    return {name: version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device_name(device),
        "precision": str(precision_of(params, device)).removeprefix("torch."),
    }


def _pools_after(
    context: RoundContext, selected: dict[str, str], staging: Path
) -> tuple[pools.Pools, pools.Pools, dict[str, Path]]:
    """The intake's pools, those with the picks marked as requested, and the files that differ from those in `data/`."""
    before = pools.read(context.view)  # the intake checked them, and saving checks what changes here
    picks = tables.read_selection(steps.selection_folder(context, selected) / tables.SELECTION_FILE)
    after = pools.mark_requested(before, list(picks["sample_id"]), context.round.round)
    after = pools.ask_again(after, steps.asked_again(context, selected), context.round.round)
    written = pools.save(after, staging, before)
    contents = {name: context.view / name for name in context.report["changed"]}
    contents |= {name: staging / name for name in written}
    published = {path.name for path in (context.workspace.data / "images").glob("*.parquet")}
    for shard in context.report["shards"]:
        if f"{shard}.parquet" not in published:
            contents[f"images/{shard}.parquet"] = context.view / "images" / f"{shard}.parquet"
    return before, after, contents


def _round_files(context: RoundContext, refs: Mapping[str, Any]) -> dict[str, Path]:
    selected = steps.selection_folder(context, refs["selected"])
    evaluated = steps.evaluation_folder(context, refs["evaluated"])
    files = [selected / tables.SELECTION_FILE, selected / tables.CANDIDATES_FILE, evaluated / tables.PREDICTIONS_FILE]
    # Of a batch that was searched over features, where the strategy looks at the labelled pool, of a control arm,
    # of new images, and where images are asked about again.
    names = (tables.SHORTLIST_FILE, tables.LABELED_FILE, tables.CONTROL_FILE, tables.DRIFT_FILE, tables.HELD_OUT_FILE)
    more = [selected / name for name in names]
    return {f"{_here(context)}/{path.name}": path for path in [*files, *more] if path in files or path.exists()}


def _published_tables(context: RoundContext, contents: Mapping[str, Path]) -> dict[str, str]:
    there = set(pools.table_files(context.view)) | set(contents)
    names = [name for name in pools.TABLE_FILES.values() if name in there]
    return {name: file_sha256(contents.get(name, context.view / name)) for name in names}
