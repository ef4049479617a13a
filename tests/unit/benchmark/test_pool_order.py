"""In which order a simulated run hands its pool to a VAE that does not shuffle."""

from typing import Any

import numpy as np
import pytest

from vabal.benchmark import simulation
from vabal.benchmark.simulation import SimulatedPool
from vabal.rounds.learner import Learner
from vabal.settings.params import parse

LABELS = np.array([1, 0, 2, 0, 1, 2, 2, 0, 1, 0, 2, 1])
SETTINGS: dict[str, Any] = {
    "images": {"size": 8, "channels": 1},
    "classifier": {"network": "resnet10", "width": 4, "epochs": 1},
    "selection": {"budget": 2},
    "compute": {"device": "cpu"},
}


class SeenError(Exception):
    """The VAE was about to be trained."""


def pool(*, thinned: bool) -> SimulatedPool:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    ids = np.array([f"s{row:02d}" for row in range(12)], dtype=object)
    begun, holdout, initial = np.arange(10), np.array([10, 11]), np.array([0, 1, 2])
    return SimulatedPool(("a", "b", "c"), ids, images, LABELS, begun, holdout, initial, thinned=thinned)


@pytest.mark.parametrize(
    ("preset", "thinned", "expected"),
    [
        ("published_code", True, [3, 7, 9, 4, 8, 5, 6]),  # 0 0 0, 1 1, 2 2
        ("published_code", False, [3, 4, 5, 6, 7, 8, 9]),
        ("paper", True, [3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_the_published_code_reads_a_thinned_pool_class_by_class(
    preset: str, thinned: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []

    def watched(_: Learner, features_N_D: Any, predicted_N: Any, *__: Any) -> None:
        seen.append((features_N_D, predicted_N))
        raise SeenError

    made = pool(thinned=thinned)
    params = parse({**SETTINGS, "method": {"preset": preset}})
    described: list[Any] = []
    monkeypatch.setattr(Learner, "vae", watched)
    describe = simulation._describe

    def described_by(*given: Any) -> Any:
        described.append(describe(*given))
        return described[-1]

    monkeypatch.setattr(simulation, "_describe", described_by)
    with pytest.raises(SeenError):
        list(simulation.run(made, params, rounds=2))
    [(features_N_D, logits_N_C)], [(seen_N_D, predicted_N)] = described, seen
    assert np.array_equal(seen_N_D, features_N_D[expected])
    assert predicted_N.tolist() == logits_N_C[expected].argmax(axis=1).tolist()
