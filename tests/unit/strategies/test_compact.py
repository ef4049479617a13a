"""What a compact record keeps of a candidate, and that scores and picks follow from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vabal import strategies
from vabal.probabilities import ClassTerms
from vabal.rounds import tables
from vabal.settings import params
from vabal.strategies import Candidates, Context, Labeled, Selection, Shard, compact

NAMES = ("a", "b", "c")
TERMS = ClassTerms.from_json({"log_prior": np.log([0.2, 0.3, 0.5]).tolist(), "log_precision": [-0.1, -0.2, -0.3]})


def test_logits_are_told_from_the_largest_with_eight_binary_digits() -> None:
    seen_N_C = compact.logits(np.array([[3.0, 1.0, -1.0], [0.0, -1.0 - 2**-8, -1.0 - 3 * 2**-8]], dtype=np.float32))
    # 1 + 2^-8 lies between 1 and 1 + 2^-7: to the even one; 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6: likewise
    assert seen_N_C.tolist() == [[0, -2, -4], [0, -1, -1 - 2**-6]]
    assert seen_N_C.dtype == np.float32


def test_no_logit_is_off_by_more_than_a_half_of_the_last_digit_and_no_prediction_changes() -> None:
    random = np.random.default_rng(0)
    given_N_C = (random.normal(size=(4000, 10)) * 10 ** random.uniform(-6, 4, (4000, 1))).astype(np.float32)
    seen_N_C, centred_N_C = compact.logits(given_N_C), given_N_C - given_N_C.max(axis=1, keepdims=True)
    assert (np.abs(seen_N_C - centred_N_C) <= 2**-8 * np.abs(centred_N_C)).all()
    assert (seen_N_C.argmax(axis=1) == given_N_C.argmax(axis=1)).all()
    assert not (seen_N_C.view(np.uint32) & 0xFFFF).any()  # bfloat16's
    assert np.array_equal(compact.logits(seen_N_C), seen_N_C)


def test_what_is_not_finite_stays_so() -> None:
    seen_N_C = compact.logits(np.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0]], dtype=np.float32))
    assert np.isfinite(seen_N_C).tolist() == [[False, False], [False, False], [False, True]]
    assert compact.logits(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
    assert np.isnan(compact.features(np.array([[np.nan]])))


def test_the_level_is_the_mean_over_the_classes_with_eleven_binary_digits() -> None:
    assert compact.level(np.array([[-100.0, -300.0], [-1.0, -1.0 - 2**-8]])).tolist() == [-200, -1 - 2**-9]
    assert compact.level(np.array([[-2049.0]])).tolist() == [-2048]
    assert compact.level(np.zeros((0, 3))).shape == (0,)


def pool(count: int) -> Shard:
    random = np.random.default_rng(1)
    logits_N_C = random.normal(size=(count, 3)).astype(np.float32) * 3
    likelihood_N_C = random.normal(-300, 40, (count, 3)).astype(np.float32)
    ids = np.array([f"s{index:04d}" for index in range(count)], dtype=object)
    features_N_D = random.normal(size=(count, 8)).astype(np.float32)
    classes_N = likelihood_N_C.argmax(axis=1).astype(np.int32)
    return Shard(ids, logits_N_C, features_N_D, log_likelihood_N_C=likelihood_N_C, vae_class_N=classes_N)


def select(record: str, folder: Path, **probabilities: Any) -> tuple[Selection, Candidates, Path]:
    """The picks; the candidates as the table has them, and where it lies."""
    settings = params.parse({"selection": {"record": record}, "probabilities": probabilities})
    shard = pool(800).compact() if record == "compact" else pool(800)
    scored, path = folder / "scored.parquet", folder / f"{record}.parquet"
    labeled = Labeled(np.random.default_rng(2).normal(size=(20, 8)).astype(np.float32), np.arange(20) % 3)
    with tables.ScoredWriter(scored, strategies.schema(3)) as writer:
        context = Context(lambda: [shard], settings, 5, TERMS, labeled, lambda part: writer.write(part.to_table(NAMES)))
        selection = strategies.get("vabal").select(context, 10)
    ranks = {sample_id: rank for rank, sample_id in enumerate(selection.sample_ids, start=1)}
    tables.write_candidates(scored, path, ranks, "vabal", compact=record == "compact")
    return selection, Candidates.from_table(pq.ParquetFile(path).read(), NAMES), path


@pytest.mark.parametrize("guard", [0.0, 0.1])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_scores_follow_from_a_compact_table_to_the_last_digit(tmp_path: Path, guard: float, weight: float) -> None:
    selection, table, _ = select("compact", tmp_path, guard=guard, likelihood_weight=weight)
    settings = params.parse({"probabilities": {"guard": guard, "likelihood_weight": weight}})
    again = strategies.get("vabal").rescore(table, class_terms=selection.class_terms, settings=settings, seed=5)
    assert again is not None
    assert again.tolist() == table.score_N.tolist()
    assert (table.level_N is None) == (weight > 0)


def test_a_compact_score_is_that_of_a_full_record_but_for_what_rounding_leaves(tmp_path: Path) -> None:
    _, full, _ = select("full", tmp_path)
    _, small, _ = select("compact", tmp_path)
    asked_N = full.score_N > -1e5  # the guard's are last in both
    assert ((small.score_N > -1e5) == asked_N).mean() > 0.995
    both_N = asked_N & (small.score_N > -1e5)
    assert np.abs(full.score_N - small.score_N)[both_N].max() < 0.05
    assert full.margin_N is not None
    assert small.margin_N is not None
    assert np.abs(full.margin_N - small.margin_N).max() < 0.01
    assert full.predicted_class_N is not None
    assert small.predicted_class_N is not None
    assert np.array_equal(full.predicted_class_N, small.predicted_class_N)


def test_a_compact_table_takes_a_third_of_a_full_one_and_leaves_out_what_follows(tmp_path: Path) -> None:
    *_, full = select("full", tmp_path)
    *_, small = select("compact", tmp_path)
    told = pq.ParquetFile(small).read()
    empty = {name for name in told.schema.names if told.column(name).null_count == len(told)}
    assert {"posteriors", "log_likelihoods"} <= empty
    assert np.isnan(told.column("margin").to_numpy()).all()
    assert not {"score", "logits", "log_likelihood", "predicted_class"} & empty

    def bytes_of(path: Path) -> int:
        group = pq.ParquetFile(path).metadata.row_group(0)
        return sum(group.column(place).total_compressed_size for place in range(group.num_columns))

    assert bytes_of(small) < bytes_of(full) / 2.5


def test_the_shortlist_of_a_compact_record_has_float16_s_digits(tmp_path: Path) -> None:
    selection, *_ = select("compact", tmp_path)
    assert selection.shortlist is not None
    features_N_D = selection.shortlist.features_N_D
    assert np.array_equal(features_N_D, compact.features(features_N_D))
    assert not (features_N_D.view(np.uint32) & 0x1FFF).any()
    whole, *_ = select("full", tmp_path)
    assert whole.shortlist is not None
    assert (whole.shortlist.features_N_D.view(np.uint32) & 0x1FFF).any()


def test_margins_are_left_out_of_all_candidates_or_of_none(tmp_path: Path) -> None:
    *_, path = select("compact", tmp_path)
    told = pq.ParquetFile(path).read()
    place = told.schema.get_field_index("margin")
    forged_N = np.where(np.arange(len(told)) == 3, 0.5, np.nan)
    with pytest.raises(ValueError, match="margin: left to be computed for some candidates alone"):
        Candidates.from_table(told.set_column(place, "margin", pa.array(forged_N)), NAMES)
