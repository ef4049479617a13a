"""The first step: labels and images from the inbox into the pools."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal import pools, strategies
from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256, write_bytes
from vabal.images.shards import contents_many
from vabal.labels import arrivals as labels_arrivals
from vabal.labels.consensus import settle
from vabal.learning import committee
from vabal.rounds.believed import believed
from vabal.rounds.context import ASKED, CANDIDATE, HOLDOUT, LABELED, NONE, REJECTED, own_store, stage
from vabal.rounds.manifests import head
from vabal.rounds.opened import OpenRound
from vabal.rounds.steps.keys import intake_key
from vabal.settings.models import Params
from vabal.workspace import Workspace

# -- intake -------------------------------------------------------------------------------------------------------


def intake(workspace: Workspace, begun: OpenRound, consensus: str = "latest", *, asks: bool = True) -> str:
    """Pools after the inbox's labels and images came in, as a view laid out like `data/`; the key of that view.

    A round that does not ask for labels has no candidates.
    """
    key = intake_key(begun, begun.inbox, consensus, asks=asks)

    def produce(folder: Path) -> None:
        _take_in(workspace, begun, consensus, folder, asks=asks)

    return stage(own_store(workspace), key, produce)["key"]


def _take_in(workspace: Workspace, begun: OpenRound, consensus: str, folder: Path, *, asks: bool) -> None:
    before = pools.load(workspace.data)
    events, arrivals = labels_arrivals.read(workspace.inbox, list(begun.inbox))
    changes = labels_arrivals.read_changes(workspace.inbox, list(begun.inbox))
    after, told = pools.apply_classes(before, changes, begun.round)
    counts, said = Counter[str](), list(told)
    _refuse_unreadable(arrivals)
    for arrival in arrivals:
        after, came = pools.apply_images(after, arrival.catalog, begun.round)
        counts.update(_counts(came))
        said += [f"{name}: left out, the pool has it already" for name in came.duplicates]
    taken = pools.among(events["source"], before.label_events["source"])  # the very same file, by another machine
    said += [f"{name}: taken in by an earlier round already" for name in events.loc[taken, "source"].unique()]
    events = events[~taken].reset_index(drop=True)
    known = events[pools.among(events["sample_id"], after.catalog["sample_id"])]
    classes = pools.Classes.of(after)
    crowd = believed(workspace.data, begun.round - 1, classes) if consensus == "crowdlab" else None
    if consensus == "crowdlab" and crowd is None and len(known):
        said.append("labelling.consensus: the round before recorded no posteriors, what most say is set this time")
    settled = settle(pools.named(after.label_events, classes), pools.named(known, classes), consensus, crowd)
    after, came = pools.apply_labels(after, pools.stack([events, settled], pools.EVENTS), begun.round)
    counts.update(_counts(came))
    said += [f"{name}: a label for an image that no round took in" for name in came.unknown]
    written = pools.save(after, folder, before)
    for name in pools.table_files(workspace.data):
        if name not in written:
            (folder / name).hardlink_to(workspace.data / name)
    (folder / "images").mkdir()
    for source in [*(workspace.data / "images").glob("*.parquet"), *_arrived_shards(after, arrivals, before)]:
        (folder / "images" / source.name).hardlink_to(source)
    _write_report(workspace, begun.round, after, folder, counts, said, written, asks=asks)


def intake_again(workspace: Workspace, begun: OpenRound, after: pools.Pools, *, asks: bool = True) -> str:
    """The view of a past round's intake, from the pools that are known to have come of it; the key of that view.

    `workspace` has that round's `data/`: its shards are those that the round saw.
    """

    def produce(folder: Path) -> None:
        written = pools.save(after, folder)
        (folder / "images").mkdir()
        for source in (workspace.data / "images").glob("*.parquet"):
            (folder / "images" / source.name).hardlink_to(source)
        _write_report(workspace, begun.round, after, folder, Counter(), [], written, asks=asks)

    key = intake_key(begun, ["again", *pools.digests(after).values()], asks=asks)
    return stage(own_store(workspace), key, produce)["key"]


def _write_report(
    workspace: Workspace,
    round_number: int,
    after: pools.Pools,
    folder: Path,
    counts: Counter[str],
    said: list[str],
    written: list[str],
    *,
    asks: bool,
) -> None:
    """Roles and `intake.json`, behind the view's tables and images."""
    candidates = _write_roles(after, folder)
    missing = sorted(set(after.classes) - set(after.labeled["label"]))
    if missing and len(after.labeled):
        said.append(f"no labelled sample yet of {', '.join(missing)}: the classifier cannot know them")
    if added := sorted(_unmeasured(after)):
        said.append(f"no holdout image of {', '.join(added)}: nothing measures it, and the gate does not judge it")
    document = {
        "round": round_number,
        "classes": list(after.classes),
        "digests": pools.digests(after),
        "shards": _shard_digests(workspace, folder, after),
        "order": [str(name) for name in after.catalog["shard"].unique()],
        "intake": dict(counts),
        "candidates": candidates if asks else 0,
        "changed": sorted(written),
        "said": said,
    }
    write_bytes(folder / "intake.json", canonical_json(document))


def _unmeasured(after: pools.Pools) -> set[str]:
    """Classes without a holdout image that were added later: those of a source were told of when it was read."""
    added = after.class_events.loc[after.class_events["round"] > 0]
    names = pools.named(added.rename(columns={"name": "label"}), pools.Classes.of(after))
    return set(names.loc[names["action"] == pools.ADD, "label"]) - set(after.holdout["label"].dropna().unique())


def _counts(came: pools.IntakeReport) -> dict[str, int]:
    return {key: len(value) if isinstance(value, list) else value for key, value in came.to_dict().items()}


def _arrived_shards(after: pools.Pools, arrivals: Sequence[labels_arrivals.Arrival], before: pools.Pools) -> list[Path]:
    """New shards of which at least one image was taken in.

    Their names tell their content: one that the pool has (another machine took in the same images) is there already.
    """
    used = set(after.catalog["shard"].unique()) - set(before.catalog["shard"].unique())
    found = (path for arrival in arrivals for path in sorted(arrival.shards.glob("*.parquet")) if path.stem in used)
    return list({path.name: path for path in found}.values())


def _refuse_unreadable(arrivals: Sequence[labels_arrivals.Arrival]) -> None:
    """Raises UserError naming the entry of the inbox whose shards are not those of its catalog, with the way out."""
    for arrival in arrivals:
        expected = dict(zip(arrival.catalog["sample_id"], arrival.catalog["sha256"], strict=True))
        try:
            found = dict(contents_many(arrival.shards.parent, arrival.catalog))
        except (UserError, pa.ArrowException, OSError):
            found = {}
        if found != expected:
            raise UserError(f"inbox/{arrival.name}: its images are damaged; {labels_arrivals.MEND}")


def _shard_digests(workspace: Workspace, folder: Path, after: pools.Pools) -> dict[str, str]:
    """The sha256 of every shard. Shards never change, so those of the parent's manifest are not read again."""
    known = head(workspace.data).shards
    names = [str(name) for name in after.catalog["shard"].unique()]
    return {name: known.get(name) or file_sha256(folder / "images" / f"{name}.parquet") for name in names}


def _write_roles(after: pools.Pools, folder: Path) -> int:
    """What each row of each shard is for, so that no learning stage has to hold the catalog. Returns the candidates."""
    place_N = pools.places(after)
    status = after.unlabeled["status"]
    role_N = np.full(len(after.catalog), NONE, dtype=np.uint8)
    label_N = np.full(len(after.catalog), -1, dtype=np.int32)
    role_N[place_N["labeled"]] = LABELED
    label_N[place_N["labeled"]] = pd.Index(after.classes).get_indexer(pd.Index(after.labeled["label"].astype(object)))
    role_N[place_N["holdout"]] = HOLDOUT
    for name, role in ((pools.AVAILABLE, CANDIDATE), (pools.REQUESTED, ASKED), (pools.REJECTED, REJECTED)):
        role_N[place_N["unlabeled"][(status == name).to_numpy(dtype=bool)]] = role
    table = after.catalog[["shard", "row"]].assign(role=role_N, label=label_N)
    for shard, rows in table.groupby("shard", sort=False):
        total = pq.ParquetFile(folder / "images" / f"{shard}.parquet").metadata.num_rows
        roles, labels = np.full(total, NONE, np.uint8), np.full(total, -1, np.int32)
        roles[rows["row"]] = rows["role"]
        labels[rows["row"]] = rows["label"]
        np.savez(folder / f"roles-{shard}.npz", role=roles, label=labels)
    return int((role_N == CANDIDATE).sum())


def refuse_unserved(strategy: strategies.Strategy, settings: Params) -> None:
    """Raises UserError for a strategy that asks of training what no stage gives, before anything is trained."""
    try:
        committee.check(strategies.needs_of(strategy, settings))
    except UserError as error:
        raise UserError(f"strategy {strategy.name!r}: {error}") from None
