"""Round 0: the pools of a source, the settings, and the first published state of a workspace."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vabal import pools, sources
from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256, sha256, write_bytes
from vabal.rounds import manifests, plans, publication, tables
from vabal.rounds.manifests import FIRST_VERSION, Manifest, round_folder
from vabal.rounds.plans import Plan
from vabal.rounds.versions import Versions
from vabal.settings import params
from vabal.settings.models import Params, StorageSettings
from vabal.sources.base import Source
from vabal.workspace import PINS, Workspace

# The pools' workspace and folder, what they are made of, the settings so far, those that the user has given: others.
Choose = Callable[[Workspace, Path, sources.InitReport, Params, Mapping[str, Any]], Mapping[str, Any]]


class Repository(Versions, Protocol):
    """What making a workspace needs of `adapters.versioning`."""

    def init(self, url: str) -> list[str]: ...
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
    layout: str | None = None,
    tell: Callable[[str], None] | None = None,
    choose: Choose | None = None,
    reached: Callable[[str], None] | None = None,
) -> list[str]:
    """Make round 0 in `root` and publish it; returns lines that say what there is now.

    The same arguments and packages give the same bytes below `data/`: nothing there carries a clock or a run id. Where
    `root` has the pins of `data/` but no `data/` (a fresh clone), what is made must be what they pin.

    Killed anywhere, or refused by git, it may be called again: the same arguments finish what was begun, others start
    clean. `prepare` sees to the bucket, where S3 is up. `layout` says how the folders of a folder are read. `tell`
    gets, line by line, what was understood of the source, before anything is made of it. `choose` is asked for the
    learner's settings where neither the user nor a `params.yaml` names a learner. `reached` hears the name of each step
    once it is done.

    Raises UserError, having changed nothing, for a folder that has pools already or arguments that do not fit.
    """
    place = Workspace(root)
    asked = _Asked(source, imbalance, initial, holdout, seed, classes, layout, name, dict(settings))
    reached = reached or (lambda _step: None)
    with place.lock("vabal init"):
        if (said := _settle(place, versions, asdict(asked))) is not None:
            return said
        if place.data.exists():
            raise UserError(f"{root} has pools already (data/): `vabal init` makes new ones in an empty folder only")
        temporary = place.state / f"init.{uuid.uuid4().hex}"
        try:
            made = _build(place, asked, temporary, prepare, tell, choose)
            reached("built")
            if (root / PINS).exists():
                with versions.in_one_process():
                    return _reproduce(place, versions, asked, made)
            _stage(place, versions, asked, made, reached)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return [*made.report.summary(), _publish(place, versions, reached)]


@dataclass(frozen=True)
class _Asked:
    """The arguments of `initialise` that decide what is made."""

    source: str
    imbalance: str | None
    initial: int
    holdout: float
    seed: int | None
    classes: list[str] | None
    layout: str | None
    name: str | None
    settings: dict[str, Any]

    def drawn(self, source: str) -> dict[str, Any]:
        """What the manifest says of the draws."""
        return {"source": source, "imbalance": self.imbalance, "initial": self.initial, "holdout": self.holdout}


@dataclass(frozen=True)
class _Made:
    """Round 0 in a folder of its own: its settings (and the text of a new `params.yaml`), what it publishes."""

    folder: Path
    settings: Params
    text: str | None
    report: sources.InitReport
    plan: Plan
    contents: dict[str, Path]


def _build(
    place: Workspace,
    asked: _Asked,
    folder: Path,
    prepare: Callable[[StorageSettings], None],
    tell: Callable[[str], None] | None,
    choose: Choose | None,
) -> _Made:
    opened = sources.open_source(asked.source, classes=asked.classes, layout=asked.layout)
    chosen, text = _settings(place.root, opened, asked)
    _check_backbone(chosen.below(place.root))
    if _has_storage():
        prepare(chosen.storage)
    built = sources.build_pools(
        opened,
        imbalance=asked.imbalance,
        initial=asked.initial,
        holdout=asked.holdout,
        seed=chosen.seed,
        settings=chosen,
        folder=folder,
        quarantine=place.quarantine,
        tell=tell,
        fingerprints=place.fingerprints,
    )
    plan, contents = round_zero(folder, asked.drawn(opened.name), chosen.seed)
    sources.write_oracle(place.state / "oracle.csv", built.oracle)
    if text is not None:
        chosen = _settled(place, asked, folder, chosen, built, choose)
        text = params.dump(chosen)
    return _Made(folder, chosen, text, built, plan, contents)


def _stage(place: Workspace, versions: Repository, asked: _Asked, made: _Made, reached: Callable[[str], None]) -> None:
    """Settings, repository and what is to be published, noted first so that a later call can finish or undo it."""
    digest = None if made.text is None else sha256(made.text.encode())
    begun = {"asked": asdict(asked), "params": digest, "said": made.report.summary()}
    write_bytes(_journal(place), canonical_json(begun))
    reached("begun")
    if made.text is not None:
        write_bytes(place.root / "params.yaml", made.text.encode())
    storage = made.settings.storage
    kept = versions.init(f"s3://{storage.bucket}/{storage.prefix}".rstrip("/"))
    reached("repository")
    versions.commit(["params.yaml", *kept], "Workspace of VaB-AL")
    reached("workspace committed")
    publication.stage(place, made.plan, made.contents)
    reached("staged")


# -- one that was cut short -------------------------------------------------------------------------------------------


def _journal(place: Workspace) -> Path:
    return place.state / "init.json"


def _settle(place: Workspace, versions: Repository, asked: Mapping[str, Any]) -> list[str] | None:
    """Finish an earlier call that was cut short, or take away what it had made. Its lines if it is what was asked for.

    One with other arguments is finished as well where its tag stands: round 0 is published then.
    """
    for left in place.state.glob("init.*"):
        if re.fullmatch(r"init\.[0-9a-f]{32}", left.name) and not left.is_symlink():
            shutil.rmtree(left)
    if not _journal(place).exists():
        return None
    begun = json.loads(_journal(place).read_text(encoding="utf-8"))
    if "pinned" in begun:  # a clone's pools, made again and not yet compared
        shutil.rmtree(place.data, ignore_errors=True)
        write_bytes(place.root / PINS, begun["pinned"].encode())
        _journal(place).unlink()
        return None
    plan = plans.pending_publication(place)
    same = begun["asked"] == json.loads(canonical_json(dict(asked)))
    tagged = (place.root / ".git").exists() and manifests.tag_name(0) in versions.tags()
    if plan is not None and plan.round == 0 and (same or tagged):
        last = _publish(place, versions)
        return [*begun["said"], f"{last} (an earlier call had been cut short)"] if same else None
    if plan is None and tagged:  # cut short after all was done
        _journal(place).unlink()
        return [*begun["said"], "git tag round/0000 (an earlier call had been cut short)"] if same else None
    _take_away(place, plan, begun["params"])
    return None


def _take_away(place: Workspace, plan: Plan | None, params_sha256: str | None) -> None:
    """Remove what an earlier call made and no tag stands for: its own files alone."""
    if plan is not None:
        for name, sha256 in plan.files.items():
            path = place.data / name
            if path.is_file() and file_sha256(path) == sha256:
                path.unlink()
        folders = [path for path in place.data.rglob("*") if path.is_dir()] if place.data.exists() else []
        for folder in [*sorted(folders, reverse=True), place.data]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        shutil.rmtree(place.state / "publish")
        (place.root / PINS).unlink(missing_ok=True)
    path = place.root / "params.yaml"
    if path.is_file() and file_sha256(path) == params_sha256:
        path.unlink()
    _journal(place).unlink()


def _settings(root: Path, source: Source, asked: _Asked) -> tuple[Params, str | None]:
    """The workspace's settings, and the text of its new `params.yaml`; None where there is one already."""
    path = root / "params.yaml"
    if path.exists():
        if asked.settings or asked.name or asked.seed is not None:
            raise UserError(f"{path} exists: change the settings there instead of with --set, --name or --seed")
        return params.load(path), None
    size, channels = source.size_hint
    raw: dict[str, Any] = {"images": {"size": size, "channels": channels}}
    if asked.name:
        raw["workspace"] = {"name": asked.name}
    if asked.seed is not None:
        raw["seed"] = asked.seed
    chosen = params.parse(params.override(raw, asked.settings), where="--set")
    chosen = chosen.model_copy(update={"backbone": chosen.backbone.seen_from(root)})
    text = params.dump(chosen)
    if params.parse(params.read_yaml(text)) != chosen:
        raise ValueError("the settings do not survive being written")
    return chosen, text


def _check_backbone(chosen: Params) -> None:
    """Raises UserError for a pretrained backbone that is not there or does not fit."""
    if chosen.classifier.learner != "scratch":
        from vabal.learning import backbones  # noqa: PLC0415 -- torch takes two seconds to import

        backbones.load(chosen.backbone)


def _settled(
    place: Workspace, asked: _Asked, folder: Path, chosen: Params, built: sources.InitReport, choose: Choose | None
) -> Params:
    """The settings with what the images tell: the depth of their grey values, so that later ones are scaled alike, and
    the learner."""
    changes: dict[str, Any] = {} if built.bit_depth == "auto" else {"images.bit_depth": built.bit_depth}
    section = asked.settings.get("classifier")
    is_given = "classifier.learner" in asked.settings or (isinstance(section, dict) and "learner" in section)
    if choose is not None and not is_given:
        changes |= choose(place, folder, built, chosen.below(place.root), asked.settings)
    return params.changed(chosen, changes)


def round_zero(folder: Path, arguments: Mapping[str, Any], seed: int) -> tuple[Plan, dict[str, Path]]:
    """The manifest of round 0, and everything that it publishes."""
    made = pools.load(folder)
    here = round_folder(folder, 0)
    here.mkdir(parents=True, exist_ok=True)
    asked = made.unlabeled.loc[made.unlabeled["status"] == pools.REQUESTED, "sample_id"]
    if len(asked):
        tables.write_selection(tables.unscored(list(asked), "initial"), here / tables.SELECTION_FILE)
    shards = sorted((folder / "images").glob("*.parquet"))
    manifest = Manifest(
        version=FIRST_VERSION,
        round=0,
        parent=None,
        strategy="initial",
        seed=seed,
        settings=dict(arguments),
        code=None,
        class_terms=None,
        pools_before=None,
        pools_after=pools.digests(made),
        tables=manifests.table_files(folder),
        files=manifests.describe_files(here),
        shards={path.stem: file_sha256(path) for path in shards},
        counts=pools.counts(made, len(asked)),
        intake=None,
        model=None,
        mlflow_run=None,
        prefect_flow_run=None,
        metrics=None,
        times=None,
        environment=None,
    )
    write_bytes(here / "manifest.json", manifest.content)
    contents = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: file_sha256(path) for name, path in contents.items()}
    return Plan(round=0, message=manifest.tag_message, files=files), contents


def _publish(place: Workspace, versions: Repository, reached: Callable[[str], None] | None = None) -> str:
    publication.carry_out(place, versions, reached=reached, push=_has_storage())
    _journal(place).unlink()
    if _has_storage():
        return "published: in S3, git tag round/0000"
    return "git tag round/0000; S3 is not up, so the first round pushes this state along"


def _reproduce(place: Workspace, versions: Repository, asked: _Asked, made: _Made) -> list[str]:
    """A clone's missing `data/`, made again from its source: it must be what is pinned."""
    pinned = place.root / PINS
    expected = pinned.read_bytes()
    write_bytes(_journal(place), canonical_json({"asked": asdict(asked), "pinned": expected.decode("utf-8")}))
    made.folder.rename(place.data)
    versions.add()
    plan = made.plan
    if pinned.read_bytes() != expected and (earlier := _without_groups(place.data, asked, made)) is not None:
        plan = earlier
        versions.add()
    if pinned.read_bytes() != expected:
        shutil.rmtree(place.data)
        write_bytes(pinned, expected)
        _journal(place).unlink()
        raise UserError(
            f"that makes other pools than {PINS} pins: give the arguments that made them, with the packages of "
            "requirements.lock, or make a workspace of your own in an empty folder"
        )
    if _has_storage():
        versions.push()
    if manifests.tag_name(0) not in versions.tags():
        versions.tag(manifests.tag_name(0), plan.message)
    _journal(place).unlink()
    return [*made.report.summary(), f"data/ is what {PINS} pins"]


def _without_groups(data: Path, asked: _Asked, made: _Made) -> Plan | None:
    """Makes of `data` what versions made whose catalogs had no groups; None where there are none."""
    now = pools.load(data)
    before = replace(now, catalog=now.catalog.assign(group=None))
    if not pools.save(before, data, now):
        return None
    return round_zero(data, asked.drawn(made.report.source), made.settings.seed)[0]


def _has_storage() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ACCESS_KEY_ID"))
