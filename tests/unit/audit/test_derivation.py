"""What a round recorded is derived again, for every strategy: a changed value contradicts another one.

A changed record of picks leaves the pools as they are. So they are read and replayed once, and of each change the round
that it is in is checked, with the functions that `verify` calls; that this is what `verify` finds is a test, too.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_books import Books, forge
from vabal import rounds, strategies
from vabal.audit.chain import read_records
from vabal.audit.class_terms import wrong_terms
from vabal.audit.findings import Finding
from vabal.audit.manifests import check_manifests
from vabal.audit.replayed import read_pools, replay
from vabal.audit.round_checks import Rounds
from vabal.audit.selections import read_selections
from vabal.probabilities import ClassTerms
from vabal.settings.params import parse

DERIVED = ("vabal", "random", "entropy", "margin", "bald", "power_bald", "ensemble", "learning_loss")
SEARCHED_AGAIN = ("galaxy", "direct", "balanced:vabal", "stochastic:bald")
SEARCHES = ("coreset", "typiclust", "stochastic:badge")
COLUMNS = ("score", "predicted_class", "own_class", "prior", "precision", "margin", "log_likelihood", "strategy")


class Newest:
    """The newest round of books whose pools and picked samples stay as they are, while all else may change."""

    def __init__(self, books: Books) -> None:
        self.books, self.data = books, books.data
        records, _ = read_records(self.data)
        current, _ = read_pools(self.data, records)
        selections, _ = read_selections(self.data, records)
        assert current is not None
        self.current = current
        *_, self.step = replay(current, records, selections)

    def findings(self) -> set[Finding]:
        """Of its manifest, and of all that it recorded."""
        records, found = read_records(self.data)
        selections, unread = read_selections(self.data, records)
        here = Rounds(self.data, self.current, records, selections).of_round(records[-1], self.step)
        return {*found, *unread, *check_manifests(records), *here}


@pytest.fixture(scope="module", params=[*DERIVED, *SEARCHED_AGAIN, *SEARCHES])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Books:
    """A round of each strategy."""
    return Books(tmp_path_factory.mktemp("made")).begin().round(request.param)


@pytest.fixture
def books(made: Books) -> Iterator[Books]:
    """The same; what a test changed is put back."""
    with restored(made):
        yield made


@contextmanager
def restored(books: Books) -> Iterator[None]:
    kept = {path: path.read_bytes() for path in books.data.rglob("*") if path.is_file()}
    yield
    for path, content in kept.items():
        path.write_bytes(content)
    books.tags[rounds.tag_name(books.number)] = rounds.read_manifest(books.data, books.number).tag_message


@pytest.fixture(scope="module")
def newest(made: Books) -> Newest:
    return Newest(made)


def change(path: Path, column: str, row: int, value: Any = None) -> bool:
    """Another value in one cell; whether there was one to change."""
    table = pq.ParquetFile(path).read()
    values = table.column(column).to_pylist()
    if values[row] is None:
        return False
    values[row] = another(values[row]) if value is None else value
    kind = table.schema.field(column)
    pq.write_table(table.set_column(table.schema.names.index(column), kind, pa.array(values, kind.type)), path)
    return True


def another(value: Any) -> Any:
    if isinstance(value, str):
        return "dog" if value == "cat" else "cat"
    if isinstance(value, list):
        return [-item for item in value]  # its largest is another one
    if isinstance(value, float):
        return 0.25 if math.isnan(value) else value + 0.25  # NaN: left to be computed
    return value + 1


def test_an_untouched_round_of_every_strategy_is_intact(made: Books) -> None:
    assert made.verify().findings == ()


@pytest.mark.parametrize("column", COLUMNS)
def test_a_value_that_was_changed_in_candidates_and_picks_alike_is_found(
    books: Books, newest: Newest, column: str
) -> None:
    folder = books.data / "rounds/0001"
    rank = pq.ParquetFile(folder / "candidates.parquet").read(columns=["rank"]).column("rank").to_pylist()
    row = rank.index(3)
    if not change(folder / "candidates.parquet", column, row):
        return
    if column in pq.ParquetFile(folder / "selection.parquet").schema_arrow.names:
        change(folder / "selection.parquet", column, 2)
    forge(books, 1)
    assert newest.findings()


@pytest.mark.parametrize("column", ["logits", "mean_posteriors", "expected_entropy", "votes", "posteriors"])
def test_a_changed_input_of_a_score_is_found(books: Books, newest: Newest, column: str) -> None:
    folder = books.data / "rounds/0001"
    if change(folder / "candidates.parquet", column, 5):
        forge(books, 1)
        assert newest.findings()


@pytest.mark.parametrize("column", ["score", "margin"])
def test_a_value_of_a_candidate_that_was_not_picked_is_found_too(books: Books, newest: Newest, column: str) -> None:
    folder = books.data / "rounds/0001"
    ranks = pq.ParquetFile(folder / "candidates.parquet").read(columns=["rank"]).column("rank").to_pylist()
    value = -7.5 if column == "score" else None
    if change(folder / "candidates.parquet", column, ranks.index(None), value):
        forge(books, 1)
        assert newest.findings()


def test_columns_that_were_emptied_do_not_switch_a_check_off(books: Books, newest: Newest) -> None:
    path = books.data / "rounds/0001/candidates.parquet"
    table = pq.ParquetFile(path).read()
    for name in ("logits", "posteriors", "mean_posteriors", "votes", "margin"):
        nothing = pa.nulls(table.num_rows, table.schema.field(name).type)
        table = table.set_column(table.schema.names.index(name), table.schema.field(name), nothing)
    pq.write_table(table, path)
    forge(books, 1)
    found = newest.findings()
    assert found
    assert found == {*books.verify(images=False).findings}


@pytest.mark.parametrize("name", ["rule", "beta", "budget", "seed", "shortlist"])
def test_how_the_picks_were_made_is_what_the_settings_say(books: Books, newest: Newest, name: str) -> None:
    selection = rounds.read_manifest(books.data, 1).to_json()["selection"]
    others = {"rule": "quota", "beta": 7.0, "budget": 5, "seed": 1, "shortlist": 3}
    forge(books, 1, selection=selection | {name: others[name]})
    assert newest.findings()


def test_a_prior_of_the_labels_is_held_against_the_labels(tmp_path: Path) -> None:
    books = Books(tmp_path).begin()
    labels_C = np.array([(books.pools.labeled["label"] == name).sum() for name in books.pools.classes])
    settings = parse({"probabilities": {"prior_pool": "labels", "smoothing": 1.0}})

    def found(counts_C: Any) -> list[str]:
        prior_C = (np.asarray(counts_C) + 1) / (sum(counts_C) + 3)
        terms = ClassTerms.from_json(
            {"log_prior": np.log(prior_C).tolist(), "log_precision": np.log([0.5] * 3).tolist()}
        )
        return wrong_terms(terms, settings, strategies.get("vabal"), books.pools)

    assert labels_C.tolist() == [3, 3, 3]
    assert found(labels_C) == []
    assert found([4, 2, 3]) == ["class_terms: the priors are not those of the labels"]


def test_terms_that_were_counted_without_a_vae_are_those_of_the_labels_or_off(tmp_path: Path) -> None:
    books = Books(tmp_path).begin()
    chosen = {"guard": 0.0, "precision_from": "cross_fitted", "use_precision": True, "draws": 100}

    def found(prior_C: list[float] | None, **changed: Any) -> list[str]:
        told = None if prior_C is None else {"log_prior": np.log(prior_C).tolist(), "log_precision": [0.0] * 3}
        settings = parse({"probabilities": {**chosen, **changed}})
        terms = None if told is None else ClassTerms.from_json(told)
        return wrong_terms(terms, settings, strategies.get("vabal"), books.pools)

    assert found([1.0] * 3) == []
    assert found([0.9] * 3) == ["class_terms: the priors do not add up to 1"]
    assert found([1 / 3] * 3, use_prior=True, prior_pool="labels") == []
    assert found([0.5, 0.25, 0.25], use_prior=True, prior_pool="labels") != []
    assert found(None) == ["class_terms are there where none are needed, or missing"]
    assert found(None, use_precision=False) == []


@pytest.mark.parametrize(
    ("guard", "floor", "right"), [(0.1, -3.5, True), (0.1, None, True), (0.0, -3.5, False), (0.1, math.inf, False)]
)
def test_how_likely_labels_are_stands_only_where_a_guard_asks(
    tmp_path: Path, guard: float, floor: float | None, right: bool
) -> None:
    books = Books(tmp_path).begin()
    settings = parse({"probabilities": {"guard": guard, "prior_pool": "labels", "smoothing": 1.0}})
    even = {"log_prior": np.log([1 / 3] * 3).tolist(), "log_precision": np.log([0.5] * 3).tolist()}
    terms = ClassTerms.from_json(even | {"labeled_floor": floor})
    found = wrong_terms(terms, settings, strategies.get("vabal"), books.pools)
    assert any("labeled_floor" in what for what in found) != right


def test_a_round_of_before_whose_vae_nothing_took_is_intact_and_held_against_it(tmp_path: Path) -> None:
    off = {"likelihood_weight": 0.0, "use_prior": False, "use_precision": False}
    books = Books(tmp_path).begin().round("vabal", probabilities=off, record="full")
    assert rounds.read_manifest(books.data, 1).class_terms is not None
    assert books.verify(images=False).findings == ()
    assert change(books.data / "rounds/0001/candidates.parquet", "log_likelihoods", 0)
    forge(books, 1)
    assert not books.verify(images=False).ok


def test_a_spread_batch_within_quotas_is_held_against_both(tmp_path: Path) -> None:
    books = Books(tmp_path).begin().round("vabal", batch="quota_spread")
    assert books.verify(images=False).ok
    selection = rounds.read_manifest(books.data, 1).to_json()["selection"]
    forge(books, 1, selection=selection | {"rule": "spread"})
    assert not books.verify(images=False).ok


@pytest.mark.parametrize("narrowing", [False, True])
def test_a_round_of_direct_from_before_its_first_phase_is_held_against_what_it_did(
    narrowing: bool, tmp_path: Path
) -> None:
    books = Books(tmp_path).begin().round("direct", narrowing=narrowing)
    settings = rounds.read_manifest(books.data, 1).to_json()["settings"]
    assert settings["selection"].pop("narrowing") is narrowing
    forge(books, 1, settings=settings)
    assert books.verify(images=False).ok is not narrowing


# -- what the manifest says ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Books:
    books = Books(tmp_path_factory.mktemp("nights")).begin().round("random")
    first = books.picked(1)
    answers: dict[str, str | None] = {**dict.fromkeys(first[:3], "dog"), first[3]: None, "s006": "emu"}
    return books.round("vabal", labels=answers, new=3)


@pytest.fixture(scope="module")
def second_night(nights: Books) -> Newest:
    assert nights.verify(images=False).findings == ()
    return Newest(nights)


def raised(path: str) -> Any:
    """A change of the number at a path of the manifest."""

    def change(manifest: dict[str, Any]) -> None:
        *above, last = path.split("|")
        place = manifest
        for key in above:
            place = place[key]
        place[last] += 1 if isinstance(place[last], int) else 0.01

    return change


def replaced(**values: Any) -> Any:
    return lambda manifest: manifest.update(values)


@pytest.mark.parametrize(
    "change",
    [
        *(raised(f"metrics|holdout/{name}") for name in ("accuracy", "balanced_accuracy", "macro_f1", "recall/cat")),
        *(raised(f"metrics|holdout/{name}") for name in ("calibration_error", "negative_log_likelihood")),
        *(raised(f"intake|{name}") for name in ("received", "new", "corrected", "rejected", "images", "unknown")),
        lambda manifest: manifest["metrics"].pop("holdout/recall/dog"),
        lambda manifest: manifest["class_terms"]["log_prior"].reverse(),
        lambda manifest: manifest["class_terms"]["log_precision"].__setitem__(0, 0.1),
        lambda manifest: manifest["times"].update(finished="2026-01-01T00:00:00+00:00"),
        lambda manifest: manifest["times"].update(started="2026-03-01T00:00:00+00:00"),
        lambda manifest: manifest["environment"].pop("torch"),
        lambda manifest: manifest["model"].update(version="0"),
        replaced(seed=6),
        replaced(strategy="entropy"),
        replaced(code="0.1.0"),
        replaced(mlflow_run="x"),
        replaced(prefect_flow_run="x"),
        replaced(model=None),
        replaced(metrics=None),
        replaced(version=3),
        replaced(note="all is well"),
        replaced(class_terms=None),
    ],
)
def test_a_statement_of_the_manifest_that_is_not_so_is_found(nights: Books, second_night: Newest, change: Any) -> None:
    assert second_night.findings() == set()
    with restored(nights):
        manifest = rounds.read_manifest(nights.data, 2).to_json()
        change(manifest)
        forge(nights, 2, **manifest)
        found = second_night.findings()
    assert any(finding.round == 2 for finding in found)


@pytest.mark.parametrize("column", ["label", "predicted_class", "probabilities", "sample_id"])
def test_predictions_that_are_not_those_of_the_metrics_are_found(
    nights: Books, second_night: Newest, column: str
) -> None:
    assert second_night.findings() == set()
    with restored(nights):
        change(nights.data / "rounds/0002/holdout_predictions.parquet", column, 1)
        forge(nights, 2)
        found = second_night.findings()
    assert found


def test_a_manifest_that_was_written_otherwise_is_found(nights: Books) -> None:
    path = nights.data / "rounds/0002/manifest.json"
    with restored(nights):
        path.write_bytes(path.read_bytes().replace(b",", b", ", 1))
        whats = [finding.what for finding in nights.verify().findings]
    assert "its bytes are not canonical JSON" in whats


def test_class_terms_are_those_of_counts(nights: Books) -> None:
    """Priors that add up to 1 and are of no number of draws over so many samples."""
    manifest = rounds.read_manifest(nights.data, 2).to_json()
    prior = np.exp(manifest["class_terms"]["log_prior"])
    other = np.log([prior[0] + 0.00123, prior[1] - 0.00123, prior[2]]).tolist()
    with restored(nights):
        forge(nights, 2, class_terms=manifest["class_terms"] | {"log_prior": other})
        whats = [finding.what for finding in nights.verify().findings]
    assert any("no prior of a count over" in what for what in whats)
