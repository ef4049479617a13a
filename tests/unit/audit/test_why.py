"""Why this sample and not that one: derived from the record of a round, for every rule by which batches are picked."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.support.small_books import Books, build, forge
from vabal import rounds
from vabal.audit.why import Why, why
from vabal.errors import UserError
from vabal.rounds import tables
from vabal.strategies.spread import spread

OWN_TERMS = {
    **{"classes": "predicted", "likelihood_weight": 1.0, "use_prior": True, "use_precision": True},
    **{"exponent": 0.5, "guard": 0.2},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Rounds by random, vabal (coverage) and entropy; then one whose score has all of Eq. 6's terms, by topk."""
    books = build(tmp_path_factory.mktemp("kept"))
    return books.round("vabal", batch="topk", probabilities=OWN_TERMS)


def candidates(books: Books, number: int) -> pd.DataFrame:
    return pd.read_parquet(books.data / f"rounds/{number:04d}/candidates.parquet").set_index("sample_id")


def left(books: Books, number: int) -> list[str]:
    """Those that were not picked, the highest score first."""
    table = candidates(books, number)
    return list(table[table["rank"].isna()].sort_values("score", ascending=False).index)


def one(directory: Path, strategy: str = "vabal", **options: Any) -> Books:
    return Books(directory / "books").begin().round(strategy, **options)


# -- scores --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_score_are_eq_6s_and_add_up_to_it(kept: Books) -> None:
    picked = kept.picked(4)[1]
    told, row = why(kept.data, 4, picked).sample, candidates(kept, 4).loc[picked]
    assert (told.state, told.rank, told.place) == ("picked", 2, 2)
    assert list(told.terms) == ["likelihood", "prior", "precision", "margin", "guard"]
    assert told.terms["prior"] == pytest.approx(-0.5 * np.log(row["prior"]))
    assert told.terms["precision"] == pytest.approx(-0.5 * np.log(row["precision"]))
    assert told.terms["margin"] == pytest.approx(np.log(1 - told.facts["margin"]))
    assert sum(told.terms.values()) == pytest.approx(row["score"])
    assert max(told.posterior, key=told.posterior.__getitem__) == row["predicted_class"]


def test_what_the_guard_put_last_is_told_so(kept: Books) -> None:
    last = left(kept, 4)[-1]
    told = why(kept.data, 4, last).sample
    assert told.terms["guard"] < -1e5
    assert "the guard put it last" in told.said


@pytest.mark.parametrize("classes", ["all", "classifier", "posterior"])
def test_the_parts_add_up_for_every_reading_of_the_classes(classes: str, tmp_path: Path) -> None:
    books = one(tmp_path, batch="topk", probabilities={**OWN_TERMS, "classes": classes})
    for sample in (books.picked(1)[0], left(books, 1)[0]):
        answer = why(books.data, 1, sample)
        assert answer.notes == []
        assert sum(answer.sample.terms.values()) == pytest.approx(candidates(books, 1).loc[sample, "score"], abs=1e-6)


@pytest.mark.parametrize("strategy", ["coreset", "balanced:entropy"])
def test_of_a_score_that_is_a_place_in_a_search_that_is_said(strategy: str, tmp_path: Path) -> None:
    books = one(tmp_path, strategy)
    answer = why(books.data, 1, books.picked(1)[0])
    assert answer.sample.terms == {}
    assert answer.notes == [f"a score of {strategy} is a place in its search; what that saw is not in the record"]


# -- the highest scores, drawn ones, quotas ------------------------------------------------------------------------


def test_with_the_highest_scores_the_gap_to_the_last_pick_decides_and_what_is_said_of_it_is_so(kept: Books) -> None:
    score, other = candidates(kept, 3)["score"].to_dict(), left(kept, 3)[2]
    answer = why(kept.data, 3, kept.picked(3)[0], other)
    gap = float(score[kept.picked(3)[-1]] - score[other])
    assert answer.rule == "topk"
    assert f"{other} would have been picked with a score {gap:.4g} higher" in answer.answer[1]
    assert answer.answer[1].endswith(f"above {kept.picked(3)[-1]}")
    assert answer.answer[0].endswith(f"below {left(kept, 3)[0]}")


def test_a_drawn_batch_tells_the_noise_that_was_drawn(tmp_path: Path) -> None:
    books = one(tmp_path, batch="gumbel")
    answer = why(books.data, 1, books.picked(1)[0], left(books, 1)[0])
    assert answer.other is not None
    keys = [(stand.score or 0) + stand.facts["noise"] for stand in (answer.sample, answer.other)]
    assert keys[0] > keys[1]
    assert f"{keys[0] - keys[1]:.4g} higher" in answer.answer[2]


def test_a_quota_is_told_by_its_class(tmp_path: Path) -> None:
    books = one(tmp_path, batch="quota")
    table = candidates(books, 1)
    other = left(books, 1)[0]
    own = str(table["own_class"].to_dict()[other])
    last = table[table["rank"].notna() & (table["own_class"] == own)]["score"].idxmin()
    [line] = why(books.data, 1, other).answer
    assert f"picked for the class {own} with a score" in line
    assert line.endswith(f"above {last}")


# -- searches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["coverage", "spread", "quota_spread"])
def test_a_search_is_told_at_the_place_where_it_was_decided_and_another_score_would_have_turned_it(
    batch: str, tmp_path: Path
) -> None:
    books = one(tmp_path, batch=batch)
    picked, other = books.picked(1)[3], left(books, 1)[0]
    lines = why(books.data, 1, picked, other).answer
    assert lines[0].startswith(f"at place 4, where {picked} was picked, ")
    if "no place left" in lines[0]:
        return
    assert f"{other} would have been picked there, all else equal" in lines[1]
    assert ("labelled image" in lines[2]) == (batch == "coverage")
    assert any(f"{before}, picked at place" in lines[2] for before in books.picked(1)[:3])


def test_the_score_that_a_spread_batch_asks_for_is_the_one_that_turns_it(tmp_path: Path) -> None:
    books = one(tmp_path, batch="spread")
    other = left(books, 1)[2]
    line = why(books.data, 1, other).answer[1]
    higher = float(line.partition("with a score ")[2].split()[0])
    ids, features_N_D, _ = tables.read_shortlist(books.data / "rounds/0001" / tables.SHORTLIST_FILE)
    score_N = candidates(books, 1)["score"].reindex(ids).to_numpy()
    for turned, step in ((False, 0.99), (True, 1.01)):
        changed_N = score_N + np.where(np.array(ids) == other, step * higher, 0.0)
        assert (other in [ids[row] for row in spread(changed_N, features_N_D, 6)]) is turned


def test_what_labels_cover_already_is_told_that_no_score_would_have_done(tmp_path: Path) -> None:
    books = one(tmp_path, batch="coverage")
    path = books.data / "rounds/0001" / tables.SHORTLIST_FILE
    ids, features_N_D, _ = tables.read_shortlist(path)
    tables.write_shortlist(np.array(ids), features_N_D, path, np.zeros(len(ids), np.float32))
    forge(books, 1)
    picked, other = books.picked(1)[0], left(books, 1)[0]
    assert (
        why(books.data, 1, picked, other).answer[1]
        == f"{other} covered nothing that was left: no score would have done"
    )
    assert not any("came nearest" in line for line in why(books.data, 1, picked, other).answer)


def test_another_candidate_is_told_where_it_came_nearest_too(tmp_path: Path) -> None:
    books = one(tmp_path, batch="spread")
    other = left(books, 1)[0]
    place = why(books.data, 1, other).answer[0].partition(", where")[0]
    elsewhere = books.picked(1)[0 if place != "at place 1" else 1]
    lines = why(books.data, 1, elsewhere, other).answer
    assert any(line.startswith(f"{other} came nearest {place}") for line in lines)


def test_a_pick_of_a_search_is_held_against_the_next_best_and_another_candidate_where_it_came_nearest(
    kept: Books,
) -> None:
    first, other = kept.picked(2)[0], left(kept, 2)[-1]
    assert why(kept.data, 2, first).answer[0].startswith(f"at place 1, where {first} was picked, it covered ")
    assert f"{other} would have been picked there" in why(kept.data, 2, other).answer[1]


def test_what_was_not_on_the_shortlist_is_told_by_its_score_against_the_last_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vabal.strategies.spread.SHORTLIST", 2)
    books = one(tmp_path)
    table = candidates(books, 1).sort_values("score", ascending=False)
    [line] = why(books.data, 1, str(table.index[20])).answer
    gap = table["score"].iloc[11] - table["score"].iloc[20]
    assert line == (
        f"{table.index[20]} would have been among the 12 candidates that were searched with a score {gap:.4g} higher, "
        f"above {table.index[11]}"
    )


def test_a_class_without_a_place_in_a_batch_of_quotas_is_told(tmp_path: Path) -> None:
    books = one(tmp_path, batch="quota", budget=1)
    own = candidates(books, 1)["own_class"]
    other = str(own[own != own[books.picked(1)[0]]].index[0])
    assert why(books.data, 1, other).answer == [f"{other} could not be picked: the class {own[other]} had no place"]


# -- no candidates -------------------------------------------------------------------------------------------------


def test_what_was_no_candidate_is_told_why(kept: Books) -> None:
    rejected, open_ = kept.picked(1)[4], kept.picked(2)[1]
    asked = {(2, "s000"): "holdout", (2, "s007"): "labeled", (1, "n2-1"): "absent", (2, rejected): "rejected"}
    asked[3, open_] = "requested"
    for (number, sample), state in asked.items():
        answer = why(kept.data, number, sample)
        assert (answer.sample.state, answer.sample.score, answer.answer) == (state, None, [])
        assert answer.sample.said.startswith("was no candidate: ")
    assert "labelled emu by ann, taken in by round 2" in why(kept.data, 3, "s006").sample.said
    assert why(kept.data, 1, "s006").sample.said.startswith("was no candidate: it was labelled cat by source")
    assert "the label that round 2 asked for" in why(kept.data, 3, open_).sample.said
    both = why(kept.data, 2, "s000", kept.picked(2)[0])
    assert both.other is not None
    assert both.other.rank == 1


@pytest.mark.parametrize(
    ("number", "sample", "other", "said"),
    [
        (0, "s006", None, "round 0 picked nothing by score"),
        (9, "s006", None, "no round 9: there are rounds 0 to 4"),
        (2, "nobody", None, "no sample 'nobody'"),
        (2, "s006", "s006", "name the same sample"),
    ],
)
def test_a_question_that_has_no_answer_is_refused_in_one_line(
    kept: Books, number: int, sample: str, other: str | None, said: str
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        why(kept.data, number, sample, other)
    assert "\n" not in str(refused.value)


# -- what a record lacks -------------------------------------------------------------------------------------------


def _without(books: Books, *columns: str) -> None:
    path = books.data / "rounds/0001/candidates.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(list(columns)), path)


def test_what_an_earlier_version_did_not_record_is_one_line_and_the_rest_is_answered(tmp_path: Path) -> None:
    books = one(tmp_path, batch="topk", probabilities={**OWN_TERMS, "classes": "posterior"})
    _without(books, "posteriors", "logits", "mean_posteriors", "votes", "expected_entropy", "predicted_loss")
    forge(books, 1, version=rounds.FIRST_VERSION)
    answer: Why = why(books.data, 1, books.picked(1)[0])
    assert (answer.sample.rank, answer.sample.terms, answer.sample.posterior) == (1, {}, {})
    assert answer.notes == ["this round's version recorded less than its score takes: it is not taken apart"]
    assert "would not have been picked" in answer.answer[0]


def test_a_search_whose_list_is_gone_leaves_the_score_told(tmp_path: Path) -> None:
    books = one(tmp_path)
    (books.data / "rounds/0001/shortlist.parquet").unlink()
    answer = why(books.data, 1, books.picked(1)[0])
    assert answer.sample.terms
    assert answer.answer == []
    assert answer.notes[0].startswith("what decided is not told, for the record lacks something: ")


def test_a_damaged_table_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    books = one(tmp_path)
    (books.data / "rounds/0001/candidates.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="vabal checkout --force"):
        why(books.data, 1, books.picked(1)[0])
