"""A workspace's `data/` of a few samples, made round by round as the flow makes it, without training anything."""

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from vabal import audit, files, images, pools, rounds, strategies
from vabal.audit.enough import verdict
from vabal.images import shards
from vabal.labels import again
from vabal.labels.again import HeldOut
from vabal.labels.consensus import settle
from vabal.labels.suspicion import can_be_doubted
from vabal.learning import metrics
from vabal.probabilities import ClassTerms
from vabal.rounds import drift, record, tables
from vabal.rounds.believed import believed
from vabal.settings import models, params
from vabal.strategies import control
from vabal.strategies.base import Listed

CLASSES = ("cat", "dog", "emu")
SEED = 5


class Books:
    """`data/` and the tags of its rounds; each method goes on from where the last one left it."""

    classes: tuple[str, ...] = CLASSES
    image_shape = (5, 4)
    shard_rows = 25

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.tags: dict[str, str] = {}
        self.number = -1
        self.random = np.random.default_rng(SEED)
        self.drawn: list[str] = []  # the newest round's control arm
        self.asked = pd.DataFrame({"sample_id": [], "reason": []}, dtype="str")  # what it asks about again

    def copied(self, root: Path) -> "Books":
        """The same in another folder, to change."""
        shutil.copytree(self.data, root / "data")
        own = copy.copy(self)
        own.root, own.data, own.tags = root, root / "data", dict(self.tags)
        own.random = copy.deepcopy(self.random)
        return own

    # -- rounds ---------------------------------------------------------------------------------------------

    def begin(self, *, labeled: int = 9, holdout: int = 6, total: int = 40, asked: int = 0) -> "Books":
        """Round 0: a source with labels; or one without, whose first `asked` images are asked about."""
        digits = max(3, len(str(total - 1)))
        names = [f"s{index:0{digits}d}" for index in range(total)]
        truth = [self.classes[index % len(self.classes)] for index in range(total)]
        catalog = self._images(names).assign(added_round=0)
        ids = pd.Series(names)
        self.pools = pools.Pools(
            catalog=pools.typed(catalog, pools.SCHEMAS["catalog"]),
            labeled=pools.no_rows("labeled"),
            unlabeled=pools.typed(
                pd.DataFrame({"sample_id": ids[holdout:], "status": "available", "requested_round": None}),
                pools.SCHEMAS["unlabeled"],
            ),
            holdout=pools.typed(pd.DataFrame({"sample_id": ids[:holdout], "label": None}), pools.SCHEMAS["holdout"]),
            label_events=pools.no_rows("label_events"),
            classes=self.classes,
        )
        given = dict(zip(names[: holdout + labeled], truth, strict=False)) if labeled else {}
        first = names[holdout : holdout + asked]
        self._publish(strategy="initial", events=given, annotator=pools.FROM_SOURCE, when=None, first=first)
        return self

    def round(
        self,
        strategy: str = "vabal",
        *,
        labels: dict[str, str | None] | None = None,
        new: int = 0,
        budget: int = 6,
        said: datetime | None = None,
        probabilities: Mapping[str, Any] | None = None,
        opinions: Sequence[tuple[str, str | None, str]] = (),
        consensus: str = "latest",
        changes: Sequence[tuple[str, str, str | None]] = (),
        shift: float | None = None,
        ask_again: float = 0.0,
        stop: Mapping[str, Any] | None = None,
        **selection: Any,
    ) -> "Books":
        """`selection` are further settings of that section, `probabilities` settings of the other. `opinions` (sample,
        label, annotator) come in the place of one person's `labels`; `changes` of the classes before them. With a
        `shift` the learner is a probe, and the new images' features lie so far from those of earlier ones. `stop` are
        settings of a stopping rule, which is obeyed."""
        fresh = self._images([f"n{self.number + 1}-{index}" for index in range(new)]) if new else None
        when = self._when(self.number + 1)
        self._publish(
            strategy=strategy,
            events=labels or {},
            annotator="ann",
            when=when,
            budget=budget,
            fresh=fresh,
            said=said,
            chosen=selection,
            probabilities=probabilities or {},
            opinions=opinions,
            consensus=consensus,
            changes=changes,
            shift=shift,
            ask_again=ask_again,
            stop=stop,
        )
        return self

    def picked(self, number: int) -> list[str]:
        return list(tables.read_selection(self.data / f"rounds/{number:04d}/selection.parquet")["sample_id"])

    def verify(self, **options: Any) -> audit.AuditReport:
        return audit.verify(self.data, self.tags, **options)

    # -- the parts of a round -------------------------------------------------------------------------------

    def _images(self, names: list[str]) -> pd.DataFrame:
        sha256: list[str] = []

        def named() -> Iterator[tuple[str, bytes]]:
            for name, content in zip(names, self._contents(len(names)), strict=True):
                sha256.append(hashlib.sha256(content).hexdigest())
                yield name, content

        placed = images.write_shards(
            named(),
            self.data / "images",
            settings=models.PoolSettings(shard_rows=self.shard_rows),
            name_prefix=f"r{self.number + 1}",
        )
        frame = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
        height, width = self.image_shape
        return frame.assign(sha256=sha256, width=width, height=height)

    def _contents(self, count: int) -> Iterable[bytes]:
        """The files of so many images."""
        return [shards.png(self.random.integers(0, 256, self.image_shape, dtype=np.uint8)) for _ in range(count)]

    def _publish(
        self,
        *,
        strategy: str,
        events: dict[str, Any],
        annotator: str,
        when: datetime | None,
        budget: int = 1,
        fresh: pd.DataFrame | None = None,
        first: Sequence[str] = (),
        said: datetime | None = None,
        chosen: Mapping[str, Any] | None = None,
        probabilities: Mapping[str, Any] | None = None,
        opinions: Sequence[tuple[str, str | None, str]] = (),
        consensus: str = "latest",
        changes: Sequence[tuple[str, str, str | None]] = (),
        shift: float | None = None,
        ask_again: float = 0.0,
        stop: Mapping[str, Any] | None = None,
    ) -> None:
        self.number += 1
        number = self.number
        state = self.pools
        asked_of = pd.DataFrame(list(changes), columns=["action", "name", "into"], dtype=object)
        asked_of = pools.typed(asked_of.assign(author="eve", reason="why not", at=when), pools.CLASS_CHANGES)
        state, _ = pools.apply_classes(state, asked_of, number)
        if fresh is not None:
            state, _ = pools.apply_images(state, fresh, number)
        frame = pd.DataFrame({"sample_id": list(events), "label": list(events.values())})
        frame = frame.assign(annotator=annotator, labeled_at=when, source="f.csv")
        if opinions:
            frame = pd.DataFrame(list(opinions), columns=["sample_id", "label", "annotator"], dtype=object)
            frame = pools.typed(frame.assign(labeled_at=when, source="f.csv"), pools.EVENTS)
            classes = pools.Classes.of(state)
            crowd = believed(self.data, number - 1, classes)
            settled = settle(pools.named(state.label_events, classes), pools.named(frame, classes), consensus, crowd)
            frame = pools.stack([frame, settled], pools.EVENTS)
        if said is not None:
            frame = frame.assign(labeled_at=said, imported_at=when)
        state, came = pools.apply_labels(state, frame, number)
        folder = self.data / f"rounds/{number:04d}"
        folder.mkdir(parents=True)
        asked = {
            "strategy": strategy,
            "budget": budget,
            "control_share": 0.0,
            **(chosen or {}),
        }  # tests of the arm ask for one
        settings = params.parse(
            {
                "seed": SEED,
                "selection": asked,
                "probabilities": dict(probabilities or {}),
                "labelling": {"consensus": consensus, "ask_again": ask_again, **(stop or {})},
                "classifier": {} if shift is None else {"learner": "probe"},
            }
        )
        drawn, measured = None, {}
        if number > 0:
            drawn = self._select(folder, state, settings, rounds.derive_seed(SEED, number, "selection"))
            measured = self._predict(folder, state)
            self._compare(folder, state, settings, shift or 0.0)
            state = pools.mark_requested(state, [*drawn.sample_ids, *self.drawn], number)
            state = pools.ask_again(state, self.asked, number)
        elif first:
            table = tables.unscored(list(first), strategy)
            tables.write_selection(table, folder / "selection.parquet")
            state = pools.mark_requested(state, first, number)
        before = rounds.read_manifest(self.data, number - 1) if number else None
        pools.save(state, self.data)
        self.pools = state
        manifest = {
            "version": rounds.MANIFEST_VERSION if number else rounds.FIRST_VERSION,
            "round": number,
            "parent": before.digest if before else None,
            "strategy": strategy,
            "seed": SEED,
            "settings": settings.model_dump(mode="json") if number else {"source": "made", "seed": SEED},
            "code": f"0.1.0+{number:012x}" if number else None,
            "class_terms": drawn.class_terms.to_json() if drawn and drawn.class_terms else None,
            **({"selection": _said(drawn)} if drawn else {}),
            "pools_before": before.pools_after if before else None,
            "pools_after": pools.digests(state),
            "tables": {name: files.file_sha256(self.data / name) for name in pools.table_files(self.data)},
            "files": rounds.describe_files(folder),
            "shards": {path.stem: files.file_sha256(path) for path in sorted((self.data / "images").iterdir())},
            "counts": pools.counts(state, len(drawn.picks) + len(self.drawn) if drawn else len(first)),
            "intake": _counts(came, 0 if fresh is None else len(fresh)) if number else None,
            "model": {"name": "vabal-classifier", "version": str(number), "sha256": "0" * 64} if number else None,
            "mlflow_run": f"{number:032x}" if number else None,
            "prefect_flow_run": None,
            "metrics": {f"holdout/{name}": value for name, value in measured.items()} if number else None,
            "times": {name: self._when(number).isoformat() for name in ("started", "finished")} if number else None,
            "environment": record.environment(settings) if number else None,
        }
        self.write_manifest(manifest)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Also used to forge one: the tag follows."""
        content = files.canonical_json(manifest)
        (self.data / f"rounds/{manifest['round']:04d}/manifest.json").write_bytes(content)
        self.tags[rounds.tag_name(manifest["round"])] = (
            f"round {manifest['round']}\n\nmanifest sha256:{files.sha256(content)}"
        )

    def _when(self, number: int) -> datetime:
        return datetime(2026, 3, 1, 6, 30, tzinfo=UTC) + timedelta(days=number)

    def _select(self, folder: Path, state: pools.Pools, settings: models.Params, seed: int) -> strategies.Selection:
        found = verdict(self.data, settings, self.number)
        if found is not None and found.reached:
            return self._nothing(folder, state, settings, seed)
        waiting = state.unlabeled.loc[state.unlabeled["status"] == pools.AVAILABLE, "sample_id"].to_numpy(dtype=object)
        strategy, asked = strategies.get(settings.selection.strategy), settings.selection
        count = control.size(strategy, asked.control_share, asked.budget, len(waiting))
        drawn = control.draw([waiting], count, rounds.derive_seed(SEED, self.number, "control"))
        everywhere = len(waiting)
        waiting = waiting[~np.isin(waiting.astype(str), drawn)]
        compact = asked.record == "compact"
        seen, scored = self._seen(waiting, len(state.classes)), self.root / "scored.parquet"
        with tables.ScoredWriter(scored, strategies.schema(len(state.classes))) as writer:
            context = strategies.Context(
                lambda: (shard.compact() if compact else shard for shard in seen),
                settings,
                seed,
                self._terms(state, settings) if strategy.needs.vae else None,  # as every version before 0.2.0
                self._labeled(state),
                lambda part: writer.write(part.to_table(state.classes)),
                listed=self._listed,
            )
            self.asked = self._again(folder, state, settings, len(drawn))
            selection = strategy.select(context, asked.budget - len(drawn) - len(self.asked))
        ranks = {sample_id: rank for rank, sample_id in enumerate(selection.sample_ids, start=1)}
        tables.write_candidates(scored, folder / "candidates.parquet", ranks, strategy.name, compact=compact)
        table = strategies.selection_table(selection.picks, state.classes, selection.strategy).to_pandas()
        if drawn:
            shard = self._shard(np.array(drawn, dtype=object), len(state.classes))
            arm = control.as_candidates(shard.compact() if compact else shard)
            pq.write_table(arm.to_table(state.classes), scored, store_schema=False)
            ranks = {name: len(table) + place for place, name in enumerate(drawn, start=1)}
            tables.write_candidates(scored, folder / "control.parquet", ranks, strategy.name, compact=compact)
            beside = strategies.selection_table(arm, state.classes, selection.strategy).to_pandas()
            beside = beside.assign(rank=list(ranks.values()), probability=len(drawn) / everywhere)
            table = pd.concat([table.astype(object), beside.astype(object)], ignore_index=True)
        tables.write_selection(table, folder / "selection.parquet")
        self.drawn = drawn
        if selection.shortlist is not None:
            listed = selection.shortlist
            path = folder / "shortlist.parquet"
            tables.write_shortlist(listed.sample_ids, listed.features_N_D, path, listed.labeled_distance_N)
        if getattr(strategy, "labeled_inputs", False):
            known = context.labeled
            assert known is not None
            assert known.sample_ids is not None
            assert known.logits_N_C is not None
            tables.write_labeled(known.sample_ids, known.logits_N_C, folder / "labeled.parquet")
        return selection

    def _nothing(self, folder: Path, state: pools.Pools, settings: models.Params, seed: int) -> strategies.Selection:
        """Of a round that asks for no labels."""
        self.drawn, scored = [], self.root / "scored.parquet"
        self.asked = self._again(folder, state, settings, 0).iloc[:0]
        pq.write_table(strategies.schema(len(state.classes)).empty_table(), scored, store_schema=False)
        tables.write_candidates(scored, folder / "candidates.parquet", {}, settings.selection.strategy)
        tables.write_selection(tables.unscored([], settings.selection.strategy), folder / "selection.parquet")
        return strategies.no_picks(settings.selection.strategy, settings.selection.budget, seed)

    def _compare(self, folder: Path, state: pools.Pools, settings: models.Params, shift: float) -> None:
        seed = rounds.derive_seed(SEED, self.number, "drift")
        found = drift.compared(state.catalog, state.holdout["sample_id"], self.number, settings, seed)
        if len(found.new):
            features_N_D = np.random.default_rng(self.number).normal(size=(len(found.sample_ids), 40))
            features_N_D[: len(found.new)] += shift
            ids = np.array(found.sample_ids, dtype=object)
            tables.write_shortlist(ids, drift.components(features_N_D), folder / tables.DRIFT_FILE)

    def _again(self, folder: Path, state: pools.Pools, settings: models.Params, drawn: int) -> pd.DataFrame:
        """What the round asks about again: with half of the labels not believed at random."""
        held_out, share = None, settings.labelling.ask_again
        wanted = share or settings.labelling.consensus == "crowdlab"
        if wanted and can_be_doubted(state.labeled["label"]):
            posterior_L_C = self.random.dirichlet([1] * len(state.classes), len(state.labeled)).astype(np.float32)
            held_out = HeldOut(list(state.labeled["sample_id"]), posterior_L_C)
            tables.write_held_out(*held_out, folder / "held_out.parquet")
        return again.choose(state, held_out, again.size(share, settings.selection.budget, drawn))

    _listed: Callable[[Any], Listed] | None = None  # what a search sees, where the shards have no features

    def _seen(self, ids: Any, classes: int) -> Iterable[strategies.Shard]:
        """What the strategy sees of the candidates, the same on each pass."""
        return [self._shard(ids, classes)]

    def _shard(self, ids: Any, classes: int) -> strategies.Shard:
        shape = (len(ids), classes)
        likelihood_N_C = self.random.normal(-20, 3, shape).astype(np.float32)
        return strategies.Shard(
            ids,
            logits_N_C=self.random.normal(size=shape).astype(np.float32),
            features_N_D=self.random.normal(size=(len(ids), 4)).astype(np.float32),
            predictive_N_C=self.random.dirichlet([1] * classes, len(ids)),
            expected_entropy_N=self.random.uniform(0, 0.5, len(ids)),
            votes_N_C=self.random.multinomial(5, _shares(classes), len(ids)).astype(np.int32),
            predicted_loss_N=self.random.normal(size=len(ids)).astype(np.float32),
            log_likelihood_N_C=likelihood_N_C,
            vae_class_N=likelihood_N_C.argmax(axis=1).astype(np.int32),
            images_N_H_W_K=self.random.integers(0, 256, (len(ids), 5, 4, 1), dtype=np.uint8),
        )

    def _labeled(self, state: pools.Pools) -> strategies.Labeled:
        ids = state.labeled["sample_id"].to_numpy(dtype=object)
        shard = self._shard(ids, len(state.classes))
        labels_N = np.array([state.classes.index(label) for label in state.labeled["label"]])
        assert shard.features_N_D is not None
        return strategies.Labeled(shard.features_N_D, labels_N, ids, shard.logits_N_C, shard.images_N_H_W_K)

    def _terms(self, state: pools.Pools, settings: models.Params) -> ClassTerms:
        """Of counts as Eqs. 11 and 12 make them: so many draws of each sample, smoothed."""
        chosen, count = settings.probabilities, len(state.labeled)
        draws = max(chosen.draws, 100) if chosen.sampling in ("anchored", "auto") else chosen.draws
        classes = len(state.classes)
        predicted_C = self.random.multinomial(draws * count, _shares(classes)) / draws
        correct_C = np.floor(0.8 * draws * predicted_C) / draws
        prior_C = (predicted_C + chosen.smoothing) / (count + classes * chosen.smoothing)
        precision_C = (correct_C + chosen.smoothing) / (predicted_C + classes * chosen.smoothing)
        return ClassTerms.from_json(
            {"log_prior": np.log(prior_C).tolist(), "log_precision": np.log(precision_C).tolist()}
        )

    def _predict(self, folder: Path, state: pools.Pools) -> dict[str, float]:
        known = state.holdout.dropna().sort_values("sample_id", ignore_index=True)
        probabilities_N_C = self.random.dirichlet([2] * len(state.classes), len(known)).astype(np.float32)
        predicted = [state.classes[index] for index in probabilities_N_C.argmax(axis=1)]
        table = known.assign(predicted_class=predicted, probabilities=list(probabilities_N_C))
        tables.write_predictions(table, folder / "holdout_predictions.parquet")
        labels_N = np.array([state.classes.index(label) for label in known["label"]], dtype=np.int64)
        return metrics.classification_metrics(labels_N, probabilities_N_C, state.classes)


def _shares(classes: int) -> list[float]:
    """Of 3 classes 0.5, 0.3, 0.2."""
    weights = [5, 3, 2, *([1] * classes)][:classes]
    return [weight / sum(weights) for weight in weights]


def _counts(came: pools.IntakeReport, images: int) -> dict[str, int]:
    counts = {name: len(value) if isinstance(value, list) else value for name, value in came.to_dict().items()}
    return counts | {"images": images}


def _said(drawn: strategies.Selection) -> dict[str, Any]:
    said = {name: getattr(drawn, name) for name in ("budget", "rule", "beta", "seed")}
    return said | {"shortlist": drawn.shortlist.per_pick if drawn.shortlist else None}


def build(root: Path, **selection: Any) -> Books:
    """Three rounds: a correction, a rejection, an answer that is still out, new images. `selection` are settings."""
    books = Books(root).begin().round("random", **selection)
    first = books.picked(1)
    answers: dict[str, str | None] = {**dict.fromkeys(first[:4], "dog"), first[4]: None, "s006": "emu"}
    books.round("vabal", labels=answers, new=5, **selection)
    return books.round("entropy", labels={books.picked(2)[0]: "cat"}, **selection)


def forge(books: Books, number: int, **changes: Any) -> None:
    """Rewrite a round's manifest with changed values, and every later one and every tag with it."""
    for later in range(number, books.number + 1):
        manifest = rounds.read_manifest(books.data, later).to_json()
        if later == number:
            manifest |= changes
            manifest["files"] = rounds.describe_files(books.data / f"rounds/{later:04d}")
        if later:
            manifest["parent"] = rounds.read_manifest(books.data, later - 1).digest
        if later == books.number:
            names = pools.table_files(books.data)
            manifest["tables"] = {name: files.file_sha256(books.data / name) for name in names}
        manifest["shards"] = {path.stem: files.file_sha256(path) for path in (books.data / "images").iterdir()}
        books.write_manifest(manifest)
