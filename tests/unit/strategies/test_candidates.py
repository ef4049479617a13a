"""The columns of the candidates, one by one, in tables and back."""

from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.special
from numpy.typing import NDArray

from vabal.strategies import Candidates, schema, selection_table
from vabal.strategies.candidates import COLUMNS, as_parts, concatenate, softmax
from vabal.strategies.columns import rows_of_lists

NAMES = ("cat", "dog")
FILLED = [field for field in fields(Candidates) if field.name != "level_N"]  # which stands in the place of another


def full() -> Candidates:
    """Two candidates with every column: no two hold the same numbers."""
    return Candidates(
        np.array(["a", "b"], dtype=object),
        np.array([0.1, 0.2]),
        predicted_class_N=np.array([1, 0], dtype=np.int32),
        vae_class_N=np.array([0, 0], dtype=np.int32),
        log_likelihood_N_C=np.array([[-1.0, -2.0], [-3.0, -4.0]], dtype=np.float32),
        prior_N=np.array([0.3, 0.4]),
        precision_N=np.array([0.5, 0.6]),
        margin_N=np.array([0.7, 0.8]),
        own_class_N=np.array([1, 1], dtype=np.int32),
        posterior_N_C=np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32),
        logits_N_C=np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
        predictive_N_C=np.array([[0.1, 0.9], [0.2, 0.8]]),
        expected_entropy_N=np.array([0.9, 1.0]),
        votes_N_C=np.array([[5, 0], [3, 2]], dtype=np.int32),
        predicted_loss_N=np.array([7.0, 8.0], dtype=np.float32),
    )


KINDS = {
    "sample_id": "string",
    "score": "double",
    "predicted_class": "string",
    "vae_class": "string",
    "log_likelihood": "float",
    "prior": "double",
    "precision": "double",
    "margin": "double",
    "log_likelihoods": "fixed_size_list<item: float>[2]",
    "posteriors": "fixed_size_list<item: float>[2]",
    "own_class": "string",
    "logits": "fixed_size_list<item: float>[2]",
    "mean_posteriors": "fixed_size_list<item: double>[2]",
    "expected_entropy": "double",
    "votes": "fixed_size_list<item: int32>[2]",
    "predicted_loss": "float",
}


def test_the_table_s_columns_and_their_kinds() -> None:
    assert {field.name: str(field.type) for field in schema(2)} == KINDS
    assert full().to_table(NAMES).schema.equals(schema(2))


def test_every_column_of_the_table_holds_what_it_is_named_after() -> None:
    assert full().to_table(NAMES).to_pydict() == {
        "sample_id": ["a", "b"],
        "score": [0.1, 0.2],
        "predicted_class": ["dog", "cat"],
        "vae_class": ["cat", "cat"],
        "log_likelihood": [-2, -4],  # of the sample's own class
        "prior": [0.3, 0.4],
        "precision": [0.5, 0.6],
        "margin": [0.7, 0.8],
        "log_likelihoods": [[-1, -2], [-3, -4]],
        "posteriors": [[0.25, 0.75], [0.5, 0.5]],
        "own_class": ["dog", "dog"],
        "logits": [[1, 2], [3, 4]],
        "mean_posteriors": [[0.1, 0.9], [0.2, 0.8]],
        "expected_entropy": [0.9, 1.0],
        "votes": [[5, 0], [3, 2]],
        "predicted_loss": [7, 8],
    }


@pytest.mark.parametrize("by", ["table", "batch", "chunks"])
def test_every_column_comes_back_from_the_table_in_its_kind(by: str) -> None:
    table: Any = full().to_table(NAMES)
    if by == "batch":
        [table] = table.to_batches()
    if by == "chunks":
        table = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    back = Candidates.from_table(table, NAMES)
    for field in FILLED:
        found, expected = getattr(back, field.name), getattr(full(), field.name)
        assert found.dtype == expected.dtype, field.name
        assert np.array_equal(found, expected), field.name


def test_what_a_table_of_an_earlier_version_lacks_is_none() -> None:
    table = full().to_table(NAMES)
    for name in [*COLUMNS, "own_class"]:
        back = Candidates.from_table(table.drop_columns([name]), NAMES)
        assert getattr(back, COLUMNS.get(name, "own_class_N")) is None
        assert back.prior_N is not None


@pytest.mark.parametrize(
    ("name", "attribute", "values"),
    [
        ("margin", "margin_N", [0.5, None]),
        ("vae_class", "vae_class_N", ["cat", None]),
        ("own_class", "own_class_N", [None, None]),
        ("posteriors", "posterior_N_C", [None, None]),
    ],
)
def test_a_column_with_nulls_counts_as_missing(name: str, attribute: str, values: list[Any]) -> None:
    table = full().to_table(NAMES)
    place = table.schema.get_field_index(name)
    changed = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    back = Candidates.from_table(changed, NAMES)
    assert getattr(back, attribute) is None
    assert back.prior_N is not None


def test_lists_of_which_some_are_missing_are_refused() -> None:
    table = full().to_table(NAMES)
    place = table.schema.get_field_index("logits")
    changed = table.set_column(place, "logits", pa.array([[1.0, 2.0], None], pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="logits: its lists are not all there"):
        Candidates.from_table(changed, NAMES)


def test_an_empty_table_gives_no_candidates_and_back() -> None:
    back = Candidates.from_table(schema(2).empty_table(), NAMES)
    assert (len(back), back.score_N.shape, back.vae_class_N) == (0, (0,), None)
    assert back.to_table(NAMES).num_rows == 0


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        (pa.array([[1.0]], pa.list_(pa.float64())), "x: expected lists of float32, found list"),
        (pa.array([1.0], pa.float32()), "x: expected lists of float32, found float"),
        (pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())), "x: its lists are not all there and of one length"),
        (pa.array([[1.0], None], pa.list_(pa.float32())), "x: its lists are not all there and of one length"),
        (pa.array([[1.0, None]], pa.list_(pa.float32())), "x: there are nulls in its lists"),
    ],
)
def test_lists_that_are_no_rows_are_refused(lists: pa.Array, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rows_of_lists(lists, "x")


@pytest.mark.parametrize(("of", "told"), [(pa.float64(), "float64"), (pa.int32(), "int32")])
def test_the_kind_that_was_expected_is_told_by_its_name(of: pa.DataType, told: str) -> None:
    with pytest.raises(ValueError, match=f"x: expected lists of {told}, found"):
        rows_of_lists(pa.array([[1.0]], pa.list_(pa.float32())), "x", of)


def test_rows_of_lists_of_either_kind_and_of_none() -> None:
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2)):
        assert rows_of_lists(pa.array([[1.0, 2.0], [3.0, 4.0]], kind), "x").tolist() == [[1, 2], [3, 4]]
    assert rows_of_lists(pa.array([], pa.list_(pa.float32())), "x").shape == (0, 0)


# -- rows ---------------------------------------------------------------------------------------------------------


def test_a_column_of_another_length_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="margin_N: 1 values for 2 candidates"):
        Candidates(np.array(["a", "b"]), np.zeros(2), margin_N=np.zeros(1))


def test_rows_are_taken_of_every_column_in_the_order_asked() -> None:
    turned = full().take(np.array([1, 0, 1]))
    assert list(turned.sample_ids) == ["b", "a", "b"]
    for field in FILLED:
        assert np.array_equal(getattr(turned, field.name), getattr(full(), field.name)[[1, 0, 1]])
    assert Candidates(np.array(["a"]), np.zeros(1)).take(np.array([0])).margin_N is None


def test_parts_are_joined_and_a_column_that_one_of_them_lacks_is_left_out() -> None:
    joined = concatenate([full(), full().take(np.array([1]))])
    for field in FILLED:
        assert np.array_equal(getattr(joined, field.name), getattr(full(), field.name)[[0, 1, 1]])
    bare = Candidates(np.array(["c"], dtype=object), np.zeros(1), margin_N=np.ones(1))
    mixed = concatenate([full(), bare])
    assert list(mixed.sample_ids) == ["a", "b", "c"]
    assert mixed.margin_N is not None
    assert mixed.margin_N.tolist() == [0.7, 0.8, 1]
    assert mixed.prior_N is None
    with pytest.raises(ValueError, match="at least one part"):
        concatenate([])


def test_candidates_are_one_part_and_parts_are_themselves() -> None:
    one = full()
    assert list(as_parts(one)) == [one]
    assert list(as_parts(iter([one, one]))) == [one, one]


def test_the_log_likelihood_is_that_of_the_own_class_or_else_of_the_vae_s() -> None:
    ids, likelihood_N_C = np.array(["a", "b"]), np.array([[-1, -2], [-3, -4]], dtype=np.float32)
    vae, own = np.array([1, 0]), np.array([0, 0])
    found = Candidates(ids, np.zeros(2), vae_class_N=vae, log_likelihood_N_C=likelihood_N_C)
    assert found.log_likelihood_N is not None
    assert found.log_likelihood_N.tolist() == [-2, -3]
    found = Candidates(ids, np.zeros(2), vae_class_N=vae, own_class_N=own, log_likelihood_N_C=likelihood_N_C)
    assert found.log_likelihood_N is not None
    assert found.log_likelihood_N.tolist() == [-1, -3]
    assert Candidates(ids, np.zeros(2), vae_class_N=vae).log_likelihood_N is None
    assert Candidates(ids, np.zeros(2), log_likelihood_N_C=likelihood_N_C).log_likelihood_N is None


def test_the_selection_s_table_row_by_row() -> None:
    table = selection_table(full(), NAMES, "mine")
    kinds = {name: KINDS[name] for name in list(KINDS)[:7]}
    assert {field.name: str(field.type) for field in table.schema} == {"rank": "int32", **kinds, "strategy": "string"}
    assert table.to_pylist()[1] == {
        "rank": 2,
        "sample_id": "b",
        "score": 0.2,
        "predicted_class": "cat",
        "vae_class": "cat",
        "log_likelihood": -4,
        "prior": 0.4,
        "precision": 0.6,
        "strategy": "mine",
    }


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_softmax_is_scipys_to_the_bit_and_changes_no_logits(kind: type) -> None:
    logits_N_C: NDArray[Any] = np.random.default_rng(0).normal(scale=30, size=(2000, 11)).astype(kind)
    logits_N_C[0], logits_N_C[1], logits_N_C[2, 3] = 0, 700, -np.inf
    before = logits_N_C.copy()
    found_N_C = softmax(logits_N_C)
    assert found_N_C.tobytes() == scipy.special.softmax(logits_N_C.astype(np.float64), axis=1).tobytes()
    assert logits_N_C.tobytes() == before.tobytes()
    assert softmax(np.zeros((0, 3), np.float32)).shape == (0, 3)
