"""A night's new images among earlier ones: what select-batch records of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tests.support.small_rounds import first_round
from vabal import pools
from vabal.learning import features
from vabal.rounds import drift, steps, tables
from vabal.rounds.context import StageReference, output_of, stage
from vabal.rounds.steps.compare import write_compared
from vabal.rounds.steps.keys import features_key, selection_key

SETTINGS = {"classifier.learner": "probe", "pool.shard_rows": 40, "compute.device": "cpu", "backbone.sizes": [32]}


def test_a_round_records_the_features_of_its_new_images_and_of_earlier_ones(tmp_path: Path) -> None:
    with first_round(tmp_path, 60, SETTINGS) as begun:
        after = pools.load(begun.view)
        came = after.unlabeled["sample_id"].iloc[:12]
        added = after.catalog["sample_id"].isin(came).astype("int64")
        after = replace(after, catalog=after.catalog.assign(added_round=added))
        context = replace(begun, intake_key=steps.intake_again(begun.workspace, begun.round, after))
        trained = {"stage": "train-classifier", "key": "some"}
        extracted: list[StageReference] = []
        said: dict[str, np.ndarray] = {}
        for shard in steps.shard_names(context):
            ids = context.shards.sample_ids(shard)
            values = np.random.default_rng(len(extracted)).normal(size=(len(ids), 6)).astype(np.float32)
            said |= dict(zip(map(str, ids), values, strict=True))

            def produce(folder: Path, values: np.ndarray = values) -> None:
                np.save(folder / features.FEATURES, values)

            key = features_key(context, trained, shard)
            extracted.append(stage(context.stages, key, produce) | {"shard": shard})
        assert len(extracted) == 2
        assert output_of(context, extracted[0]).is_dir()
        write_compared(context, extracted, tmp_path)
        found = tables.read_drift(tmp_path / tables.DRIFT_FILE)
        assert set(found.sample_ids[:12]) == set(came)
        held = set(after.holdout["sample_id"])
        assert sorted(found.sample_ids[12:]) == sorted(set(pd.Index(after.catalog["sample_id"])) - set(came) - held)
        expected = drift.components(np.stack([said[name] for name in found.sample_ids]))
        np.testing.assert_array_equal(found.features_N_D, expected)
        assert selection_key(context, extracted, None).inputs["compared"] == "\n".join(found.sample_ids)
        assert selection_key(begun, extracted, None).inputs["compared"] == ""
        nothing = tmp_path / "nothing"
        nothing.mkdir()
        write_compared(begun, extracted, nothing)
        assert not list(nothing.iterdir())
