"""Round 0: the pools of a source, the settings, and the first published state of a workspace."""

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vabal import params, pools, round_tables, rounds, sources
from vabal.datasets import Source
from vabal.errors import UserError
from vabal.params import Params, StorageSettings
from vabal.rounds import MANIFEST_VERSION, Plan, Versions, digest_of, round_folder, tag_message
from vabal.store import canonical_json, file_sha256, write_bytes
from vabal.workspace import Workspace

COMMITTED = ["params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"]


class Repository(Versions, Protocol):
    """What making a workspace needs of `adapters.versioning`."""

    def init(self, url: str) -> None: ...
    def tags(self) -> list[str]: ...


def initialise(
    root: Path,
    *,
    source: str,
    imbalance: str | None,
    initial: int,
    holdout: float,
    seed: int | None,
    classes: list[str] | None,
    name: str | None,
    settings: Mapping[str, Any],
    versions: Repository,
    prepare: Callable[[StorageSettings], None],
) -> list[str]:
    """Make round 0 in `root` and publish it; returns lines that say what there is now.

    The same arguments and packages give the same bytes below `data/`: nothing there carries a clock or a run id. Where
    `root` has a `data.dvc` but no `data/` (a fresh clone), what is made must be what `data.dvc` pins.

    `prepare` sees to the bucket, where S3 is up.

    Raises UserError, having changed nothing, for a folder that has pools already or arguments that do not fit.
    """
    place = Workspace(root)
    if (root / "data").exists():
        raise UserError(f"{root} has pools already (data/): `vabal init` makes new ones in an empty folder only")
    opened = sources.open_source(source, classes=classes)
    chosen, text = _settings(root, opened, name, seed, settings)
    if _has_storage():
        prepare(chosen.storage)
    temporary = place.state / f"init.{uuid.uuid4().hex}"
    try:
        built = sources.build_pools(
            opened,
            imbalance=imbalance,
            initial=initial,
            holdout=holdout,
            seed=chosen.seed,
            settings=chosen,
            folder=temporary,
            quarantine=place.quarantine,
        )
        arguments = {"source": opened.name, "imbalance": imbalance, "initial": initial, "holdout": holdout}
        plan, contents = round_zero(temporary, arguments, chosen.seed)
        if (root / "data.dvc").exists():
            sources.write_oracle(place.state / "oracle.csv", built.oracle)
            return _reproduce(place, versions, temporary, plan.message, built)
        if text is not None:
            write_bytes(root / "params.yaml", text.encode())
        versions.init(f"s3://{chosen.storage.bucket}/{chosen.storage.prefix}".rstrip("/"))
        versions.commit([path for path in COMMITTED if (root / path).exists()], "Workspace of VaB-AL")
        rounds.stage(place, plan, contents)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sources.write_oracle(place.state / "oracle.csv", built.oracle)
    return _publish(place, versions, built)


def _settings(
    root: Path, source: Source, name: str | None, seed: int | None, settings: Mapping[str, Any]
) -> tuple[Params, str | None]:
    """The workspace's settings, and the text of its new `params.yaml`; None where there is one already."""
    path = root / "params.yaml"
    if path.exists():
        if settings or name or seed is not None:
            raise UserError(f"{path} exists: change the settings there instead of with --set, --name or --seed")
        return params.load(path), None
    size, channels = source.size_hint
    raw: dict[str, Any] = {"images": {"size": size, "channels": channels}}
    if name:
        raw["workspace"] = {"name": name}
    if seed is not None:
        raw["seed"] = seed
    chosen = params.parse(params.override(raw, dict(settings)), where="--set")
    text = params.dump(chosen)
    if params.parse(params.read_yaml(text)) != chosen:
        raise ValueError("the settings do not survive being written")
    return chosen, text


def round_zero(folder: Path, arguments: Mapping[str, Any], seed: int) -> tuple[Plan, dict[str, Path]]:
    """The manifest of round 0, and everything that it publishes."""
    made = pools.load(folder)
    here = round_folder(folder, 0)
    here.mkdir(parents=True, exist_ok=True)
    asked = made.unlabeled.loc[made.unlabeled["status"] == pools.REQUESTED, "sample_id"]
    if len(asked):
        round_tables.write_selection(round_tables.unscored(list(asked), "initial"), here / "selection.parquet")
    shards = sorted((folder / "images").glob("*.parquet"))
    manifest = {
        "version": MANIFEST_VERSION,
        "round": 0,
        "parent": None,
        "strategy": "initial",
        "seed": seed,
        "settings": dict(arguments),
        "code": None,
        "class_terms": None,
        "pools_before": None,
        "pools_after": pools.digests(made),
        "tables": rounds.table_files(folder),
        "files": rounds.describe_files(here),
        "shards": {path.stem: file_sha256(path) for path in shards},
        "counts": rounds.counts_of(made, len(asked)),
        "intake": None,
        "model": None,
        "mlflow_run": None,
        "prefect_flow_run": None,
        "metrics": None,
        "times": None,
        "environment": None,
    }
    document = canonical_json(manifest)
    write_bytes(here / "manifest.json", document)
    contents = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: file_sha256(path) for name, path in contents.items()}
    return Plan(round=0, message=tag_message(manifest, digest_of(document)), files=files), contents


def _publish(place: Workspace, versions: Repository, built: sources.InitReport) -> list[str]:
    with place.lock("vabal init"):
        rounds.carry_out(place, versions, push=_has_storage())
    if _has_storage():
        return [*built.lines(), "published: in S3, git tag round/0000"]
    return [*built.lines(), "git tag round/0000; S3 is not up, so the first round pushes this state along"]


def _reproduce(
    place: Workspace, versions: Repository, made: Path, message: str, built: sources.InitReport
) -> list[str]:
    """A clone's missing `data/`, made again from its source: it must be what `data.dvc` pins."""
    pinned = place.root / "data.dvc"
    expected = pinned.read_bytes()
    with place.lock("vabal init"):
        made.rename(place.data)
        versions.add()
        if pinned.read_bytes() != expected:
            shutil.rmtree(place.data)
            write_bytes(pinned, expected)
            raise UserError(
                "that makes other pools than data.dvc pins: give the arguments that made them, with the packages of "
                "requirements.lock, or make a workspace of your own in an empty folder"
            )
        if _has_storage():
            versions.push()
        if rounds.tag_name(0) not in versions.tags():
            versions.tag(rounds.tag_name(0), message)
    return [*built.lines(), "data/ is what data.dvc pins"]


def _has_storage() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ACCESS_KEY_ID"))
