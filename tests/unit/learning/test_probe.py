"""The probe: its head against an obvious minimisation, what cross-validation chooses, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from vabal.errors import UserError
from vabal.learning import logistic, probe
from vabal.learning.backbones import Layer
from vabal.learning.probe import Embedded, LabelledEmbeddings
from vabal.learning.recipe import stratified_folds
from vabal.settings.learners import ClassifierSettings

LAYERS = (Layer(64, 1, 3), Layer(64, 2, 4), Layer(64, 0, 5), Layer(96, 1, 3), Layer(96, 2, 4), Layer(96, 0, 5))
EMBEDDED = Embedded({"name": "a backbone"}, LAYERS)


def settings(**chosen: object) -> ClassifierSettings:
    return ClassifierSettings.model_validate({"learner": "probe", **chosen})


def labelled(samples: int = 60, classes: int = 3, seed: int = 0, informative: str = "stages") -> LabelledEmbeddings:
    """Embeddings of which the informative layers tell the class, and the others nothing."""
    draw = np.random.default_rng(seed)
    labels_L = draw.integers(classes, size=samples)
    labels_L[:classes] = np.arange(classes)
    embeddings_L_E = draw.normal(size=(samples, EMBEDDED.width))
    columns_D, _ = EMBEDDED.columns(informative)
    embeddings_L_E[:, columns_D] += 2 * draw.normal(size=(classes, len(columns_D)))[labels_L]
    ids = [f"s{number:04d}" for number in range(samples)]
    return LabelledEmbeddings(embeddings_L_E.astype(np.float32), labels_L, ids)


def slowly(
    features_L_D: np.ndarray, labels_L: np.ndarray, classes: int, penalty: float, weights_L: np.ndarray
) -> float:
    """The least value of the sum of weighted cross entropies and the penalty, by a general minimiser."""
    features = features_L_D.shape[1]

    def value(flat: np.ndarray) -> float:
        weight_C_D, bias_C = flat[: classes * features].reshape(classes, features), flat[classes * features :]
        log_L = log_softmax(features_L_D @ weight_C_D.T + bias_C, axis=1)[np.arange(len(labels_L)), labels_L]
        return float(-weights_L @ log_L + penalty / 2 * (weight_C_D**2).sum())

    return float(minimize(value, np.zeros(classes * (features + 1)), method="BFGS", tol=1e-9).fun)


@pytest.mark.parametrize("samples", [40, 9])  # more than there are features, and fewer: solved in their span
@pytest.mark.parametrize("imbalance", ["none", "balanced"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_minimises_the_penalised_cross_entropy(samples: int, imbalance: str, classes: int) -> None:
    known = labelled(samples, classes)
    features_L_D = known.embeddings_L_E[:, :12].astype(np.float64)
    weights_L = probe.balanced_weights(known.labels_L) if imbalance == "balanced" else np.ones(samples)
    weight_C_D, bias_C = probe.solve(features_L_D, known.labels_L, classes, 2.0, settings(imbalance=imbalance))
    log_L_C = log_softmax(features_L_D @ weight_C_D.T + bias_C, axis=1)
    value = -weights_L @ log_L_C[np.arange(samples), known.labels_L] + (weight_C_D**2).sum()
    assert value == pytest.approx(slowly(features_L_D, known.labels_L, classes, 2.0, weights_L), rel=2e-3)


@pytest.mark.parametrize("penalty", [100.0, 1.0, 0.1])
def test_posteriors_are_those_of_a_patient_minimiser(penalty: float) -> None:
    """scikit-learn's, run to its end on the features as they are."""
    draw = np.random.default_rng(1)
    labels_L = draw.choice(4, size=150, p=[0.7, 0.1, 0.1, 0.1])
    features_L_D = draw.normal(size=(150, 300)) * draw.gamma(0.3, size=300) + draw.normal(size=(4, 300))[labels_L] / 4
    weight_C_D, bias_C = probe.solve(features_L_D, labels_L, 4, penalty, settings())
    patient = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-8, max_iter=10_000)
    expected_L_C = patient.fit(features_L_D, labels_L).predict_proba(features_L_D)
    assert softmax(features_L_D @ weight_C_D.T + bias_C, axis=1) == pytest.approx(expected_L_C, abs=5e-3)


def test_folds_and_penalties_share_their_work_and_give_what_each_gives_alone() -> None:
    known = labelled(80, informative="all")
    fold_L, columns_D = known.folds(4, 0), np.arange(EMBEDDED.width)
    folds = probe.Folds(known, columns_D, fold_L, 3, settings())
    shared = [softmax(folds.held_out_logits(penalty), axis=1) for penalty in probe.PENALTIES]
    values_L_D = known.embeddings_L_E.astype(np.float64)
    mean_D, std_D = probe.standardisation(values_L_D)
    features_L_D = (values_L_D - mean_D) / std_D
    for penalty, found_L_C in zip(probe.PENALTIES, shared, strict=True):
        for fold in range(4):
            held_L = fold_L == fold
            weight_C_D, bias_C = probe.solve(features_L_D[~held_L], known.labels_L[~held_L], 3, penalty, settings())
            alone_P_C = softmax(features_L_D[held_L] @ weight_C_D.T + bias_C, axis=1)
            assert found_L_C[held_L] == pytest.approx(alone_P_C, abs=1e-2)


def test_every_class_weighs_alike_and_the_mean_weight_is_one() -> None:
    weights_L = probe.balanced_weights(np.array([0, 0, 0, 2]))
    assert weights_L.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


def test_logits_are_adjusted_by_the_log_of_the_classes_shares() -> None:
    known = labelled(40)
    features_L_D = known.embeddings_L_E.astype(np.float64)
    _, plain_C = probe.solve(features_L_D, known.labels_L, 3, 1.0, settings(imbalance="none"))
    _, adjusted_C = probe.solve(features_L_D, known.labels_L, 3, 1.0, settings(imbalance="logit_adjusted"))
    assert plain_C - adjusted_C == pytest.approx(np.log(np.bincount(known.labels_L) / 40))


def test_two_classes_have_a_row_each_and_an_unlabelled_one_is_unlikely() -> None:
    known = labelled(40, classes=2)
    features_L_D = known.embeddings_L_E.astype(np.float64)
    weight_C_D, bias_C = probe.solve(features_L_D, known.labels_L, 3, 1.0, settings())
    assert weight_C_D[0] == pytest.approx(-weight_C_D[1])
    assert not weight_C_D[2].any()
    posterior_L_C = np.exp(log_softmax(features_L_D @ weight_C_D.T + bias_C, axis=1))
    assert posterior_L_C[:, 2].max() < 0.05
    assert (posterior_L_C.argmax(axis=1) == known.labels_L).mean() > 0.9


def test_one_class_alone_is_what_every_sample_is_said_to_be() -> None:
    known = LabelledEmbeddings(np.zeros((4, EMBEDDED.width), np.float32), np.array([1, 1, 1, 1]), list("abcd"))
    network, training = probe.fit(known, EMBEDDED, 3, settings(), seed=0)
    list(training)
    assert network(torch.zeros(2, EMBEDDED.width)).argmax(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("informative", ["stages", "last"])
def test_cross_validation_takes_the_layers_that_tell_the_classes(informative: str) -> None:
    chosen = probe.choose(labelled(90, informative=informative), EMBEDDED, 3, settings(), seed=0)
    assert chosen.layers == informative
    assert chosen.balanced_accuracy > 0.9


def test_the_layers_and_the_penalty_of_the_settings_are_taken_as_they_are() -> None:
    network, training = probe.fit(labelled(), EMBEDDED, 3, settings(layers="last", penalty=7.0), seed=0)
    list(training)
    assert network.feature_dims == (5, 5)
    assert network.columns.tolist() == [*range(7, 12), *range(19, 24)]
    assert network.config["penalty"] == 7.0


def test_a_posterior_that_is_too_sure_of_itself_is_cooled() -> None:
    draw = np.random.default_rng(0)
    labels_L = draw.integers(2, size=400)
    noisy = draw.normal(size=(400, EMBEDDED.width)).astype(np.float32)
    noisy[:, 0] += labels_L
    known = LabelledEmbeddings(noisy, labels_L, [f"s{number:04d}" for number in range(400)])
    chosen = probe.choose(known, EMBEDDED, 2, settings(penalty=0.1, layers="all"), seed=0)
    assert chosen.temperature > 1.2


def test_pixels_are_a_layer_that_cross_validation_may_take_beside_the_stages_or_alone() -> None:
    embedded = Embedded({}, (Layer(64, 1, 7), Layer(64, 0, 5), Layer(2, -1, 12)))
    assert "pixels" not in EMBEDDED.choices
    assert {"pixels", "stages+pixels"} < set(embedded.choices)
    columns_D, widths = embedded.columns("stages+pixels")
    assert columns_D.tolist() == [*range(7), *range(12, 24)] and widths == (7, 12)
    chosen = probe.choose(labelled(90), embedded, 3, settings(layers="pixels"), seed=0)
    assert chosen.layers == "pixels"
    with pytest.raises(UserError, match="no pixels are kept"):
        probe.choose(labelled(90), EMBEDDED, 3, settings(layers="pixels"), seed=0)


def test_features_are_the_chosen_columns_standardised() -> None:
    known = labelled()
    network, training = probe.fit(known, EMBEDDED, 3, settings(layers="stages"), seed=0)
    list(training)
    features_L_D, logits_L_C = network.stages(torch.from_numpy(known.embeddings_L_E))
    assert features_L_D.shape == (60, 14) and network.feature_dims == (3, 4, 3, 4)
    assert features_L_D.mean(dim=0).abs().max() < 1e-4
    assert features_L_D.std(dim=0, correction=0) == pytest.approx(torch.ones(14), abs=1e-3)
    assert torch.equal(logits_L_C, network(torch.from_numpy(known.embeddings_L_E)))


def test_a_column_that_hardly_varies_does_not_blow_up() -> None:
    values_L_D = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 3.0]])
    mean_D, std_D = probe.standardisation(values_L_D)
    assert mean_D.tolist() == [0.5, 0.0, 2.0]
    assert std_D.tolist() == pytest.approx([0.5, 0.075, 1.0])


def test_held_out_predictions_are_of_heads_that_had_not_seen_the_sample() -> None:
    known = labelled(30)
    network, training = probe.fit(known, EMBEDDED, 3, settings(), seed=0)
    list(training)
    fitted = probe.cross_fit(network, known, settings(), folds=3, seed=0)
    other = LabelledEmbeddings(known.embeddings_L_E, known.labels_L.copy(), known.sample_ids)
    other.labels_L[fitted.fold_N == 0] = (other.labels_L[fitted.fold_N == 0] + 1) % 3
    held = probe.held_out_logits(known, network.columns.numpy(), fitted.fold_N, 3, 1.0, settings())
    again = probe.held_out_logits(other, network.columns.numpy(), fitted.fold_N, 3, 1.0, settings())
    assert np.array_equal(held[fitted.fold_N == 0], again[fitted.fold_N == 0])
    assert not np.allclose(held[fitted.fold_N == 1], again[fitted.fold_N == 1])


def test_a_group_stays_in_one_fold() -> None:
    groups_N = np.repeat(np.arange(20), 3)
    fold_N = stratified_folds(
        [f"s{number:02d}" for number in range(60)], np.arange(60) % 4, folds=4, seed=1, groups_N=groups_N
    )
    assert all(len(set(fold_N[groups_N == group])) == 1 for group in range(20))
    assert np.bincount(fold_N).tolist() == [15, 15, 15, 15]


def test_no_samples_and_arrays_that_do_not_fit_are_refused() -> None:
    nothing = LabelledEmbeddings(np.zeros((0, EMBEDDED.width), np.float32), np.zeros(0, np.int64), [])
    with pytest.raises(UserError, match="no labelled sample"):
        probe.fit(nothing, EMBEDDED, 3, settings(), seed=0)
    with pytest.raises(ValueError, match="expected 2 x 24 numbers"):
        probe.fit(
            LabelledEmbeddings(np.zeros((2, 3), np.float32), np.zeros(2, np.int64), ["a", "b"]),
            EMBEDDED,
            3,
            settings(),
            seed=0,
        )


def test_a_pool_of_one_group_is_judged_sample_by_sample() -> None:
    known = labelled(24)
    together = LabelledEmbeddings(known.embeddings_L_E, known.labels_L, known.sample_ids, np.zeros(24))
    assert probe.choose(together, EMBEDDED, 3, settings(), seed=0) == probe.choose(
        known, EMBEDDED, 3, settings(), seed=0
    )


def test_fits_have_one_thread_and_look_for_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    threads: set[int] = set()

    def look() -> Any:
        looked.append(ThreadpoolController())
        return looked[-1]

    def watched(*given: Any, **chosen: Any) -> Any:
        threads.update(library["num_threads"] for library in looked[0].info() if library["user_api"] == "blas")
        return minimize(*given, **chosen)

    monkeypatch.setattr(logistic, "ThreadpoolController", look)
    monkeypatch.setattr(logistic, "minimize", watched)
    logistic._libraries.cache_clear()
    features_L_D, labels_L = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    for _ in range(3):
        logistic.fit(logistic.rotate(features_L_D), labels_L, np.ones(30), 3, 1.0)
    assert len(looked) == 1
    assert threads == {1}
