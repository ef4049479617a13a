"""How many draws the estimate needs: `python -m benchmarks.draws`.

A narrow ResNet learns scikit-learn's digits, a VAE its features. Then the log likelihoods of the whole unlabelled pool
are estimated in several ways and compared with those of a very long run of independent draws, on the scale of sums.
Four errors are told, for what is common to many numbers cancels where they are ranked: `all` as it is; `samples` with
each class's mean error taken off; `classes` with each sample's; `both` with both. Picks are compared by two rankings:
as preset `vabal` scores, where the likelihood says little or nothing, and `eq6`, Eq. 6's sum over all classes alone,
which the likelihood decides.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi, qmc
from sklearn.datasets import load_digits
from torch import Tensor

from vabal import strategies
from vabal import vae as vaes
from vabal.learning import classifier, recipe
from vabal.probabilities import estimate_class_terms, estimate_likelihood, mistake_score, pool_moments
from vabal.probabilities import noise as probabilities_noise
from vabal.settings.learners import ClassifierSettings
from vabal.settings.presets import PRESETS
from vabal.strategies.base import Shard, posteriors
from vabal.strategies.candidates import margin

LABELED, PICKS = 200, 100
REFERENCE = 4000  # draws of the reference; its own error is a sixth of that of PLAIN draws
PLAIN, FEW = 100, 10
LEAST = 10.0  # independent draws that one anchored draw must be worth
SEEDS = 8
LARGE = 10_000  # samples of the pool that times are taken on

EQUATION_6 = {"likelihood_reduction": "sum", "classes": "all", "likelihood_weight": 1.0, "margin_weight": 0.0}

Noise = Callable[[int, int, torch.Generator], Tensor]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A pool, and the preset whose VAE models it. `dominant`: class 0 stays whole, of the others three tenths."""

    preset: str
    dominant: bool
    seed: int


CASES = {
    "vabal, natural": Case("vabal", dominant=False, seed=0),
    "vabal, dominant": Case("vabal", dominant=True, seed=1),
    "published_code, natural": Case("published_code", dominant=False, seed=0),
}
BOUND = [name for name, case in CASES.items() if case.preset == "vabal"]


@dataclass(frozen=True)
class Pool:
    """A trained VAE, and the features, logits and labels of its pool: unlabelled and labelled."""

    vae: vaes.FeatureVAE
    features_N_D: NDArray[np.float32]
    logits_N_C: NDArray[np.float32]
    labeled_M_D: NDArray[np.float32]
    labels_M: NDArray[np.int64]


def run(seeds: int = SEEDS, reference: int = REFERENCE) -> dict[str, Any]:
    """Errors, what a draw is worth in independent draws, overlaps of the picks, and times.

    `worth` is the least over the four errors, `least_worth` over the cases of preset `vabal`; `error` the largest ratio
    of an error to that of 100 independent draws.
    """
    results: dict[str, Any] = {"reference_draws": reference, "seeds": seeds}
    for name, case in CASES.items():
        results[name] = _measure(pool_of(case), seeds, reference)
    anchored = [results[name]["ways"][f"anchored {FEW}"] for name in BOUND]
    results["least_worth"] = min(way["worth"] for way in anchored)
    results["largest_error"] = max(way["error"] for way in anchored)
    return results


def pool_of(case: Case) -> Pool:
    """Trains the classifier and the VAE of a case, in seconds."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)[..., None]
    numbers = np.random.default_rng(case.seed)
    kept = np.flatnonzero((digits.target == 0) | (numbers.uniform(size=len(images)) < (0.3 if case.dominant else 1.0)))
    order = numbers.permutation(kept)
    labeled, unlabeled = order[:LABELED], order[LABELED:]
    settings = ClassifierSettings(network="resnet10", width=8, epochs=30)
    mean, std = recipe.channel_statistics(images[labeled])
    network = classifier.build(settings, num_classes=10, image_size=8, channels=1, mean=mean, std=std, seed=case.seed)
    for _ in classifier.fit(network, images[labeled], digits.target[labeled], settings, seed=case.seed):
        pass
    with torch.inference_mode():
        stages = [network.stages(piece) for piece in recipe.pieces(images, network, torch.device("cpu"))]
    features_N_D, logits_N_C = (torch.cat(parts).numpy() for parts in zip(*stages, strict=True))
    vae = vaes.build(network.feature_dims, 10, PRESETS[case.preset]["vae"], seed=case.seed)
    for _ in vaes.fit(vae, features_N_D[unlabeled], logits_N_C[unlabeled].argmax(axis=1), seed=case.seed):
        pass
    return Pool(vae, features_N_D[unlabeled], logits_N_C[unlabeled], features_N_D[labeled], digits.target[labeled])


def _measure(pool: Pool, seeds: int, reference: int) -> dict[str, Any]:
    truth_N_C = _estimated(pool, reference, "independent", seed=1000)
    spread = {name: float(np.sqrt(part.mean())) for name, part in _squares(truth_N_C - truth_N_C.mean()).items()}
    rankings = {"preset": PRESETS["vabal"]["probabilities"], "eq6": EQUATION_6}
    best = {name: _picks(pool, truth_N_C, settings) for name, settings in rankings.items()}
    ways: dict[str, Any] = {}
    for name, (draws, sampling, noise) in _ways().items():
        squares: dict[str, list[float]] = {kind: [] for kind in spread}
        overlaps: dict[str, list[float]] = {ranking: [] for ranking in rankings}
        for seed in range(seeds):
            with _noise_of(noise):
                found_N_C = _estimated(pool, draws, sampling, seed)
            for kind, part in _squares(found_N_C - truth_N_C).items():
                squares[kind].append(float(part.mean()))
            for ranking, settings in rankings.items():
                same = best[ranking] & _picks(pool, found_N_C, settings)
                overlaps[ranking].append(len(same) / len(best[ranking]))
        ways[name] = {f"rmse_{kind}": float(np.sqrt(np.mean(values))) for kind, values in squares.items()}
        ways[name] |= {f"overlap_{ranking}": float(np.mean(values)) for ranking, values in overlaps.items()}
        ratios = [ways[name][f"rmse_{kind}"] / ways[f"independent {PLAIN}"][f"rmse_{kind}"] for kind in spread]
        ways[name]["error"] = max(ratios)
        ways[name]["worth"] = PLAIN / draws / max(ratios) ** 2
    return {"samples": len(truth_N_C), "spread": spread, "ways": ways, "seconds": _seconds(pool)}


def _ways() -> dict[str, tuple[int, str, Noise | None]]:
    """Draws, sampling, and other noise in the place of the sampling's own."""
    return {
        f"independent {PLAIN}": (PLAIN, "independent", None),
        f"independent {FEW}": (FEW, "independent", None),
        f"antithetic {FEW}": (FEW, "antithetic", None),
        f"moments matched {FEW}": (FEW, "independent", _matched),
        f"orthogonal {FEW}": (FEW, "independent", _orthogonal),
        f"Sobol {FEW}": (FEW, "independent", _sobol),
        f"Sobol {PLAIN}": (PLAIN, "independent", _sobol),
        "the mean alone 1": (1, "independent", lambda rows, columns, _: torch.zeros(rows, columns).double()),
        "anchored 4": (4, "anchored", None),
        f"anchored {FEW}": (FEW, "anchored", None),
        "anchored 20": (20, "anchored", None),
    }


def _estimated(pool: Pool, draws: int, sampling: str, seed: int) -> Values:
    settings = {"likelihood_reduction": "sum", "sampling": sampling}
    [(log_likelihood_N_C, _)] = estimate_likelihood(
        pool.vae, [pool.features_N_D], draws=draws, generator=seed, settings=settings
    )
    return np.asarray(log_likelihood_N_C, dtype=np.float64)


def _squares(error_N_C: Values) -> dict[str, Values]:
    """Squared errors, with nothing, with each class's mean, each sample's, or both taken off."""
    samples_N_C = error_N_C - error_N_C.mean(axis=0)
    return {
        "all": error_N_C**2,
        "samples": samples_N_C**2,
        "classes": (error_N_C - error_N_C.mean(axis=1, keepdims=True)) ** 2,
        "both": (samples_N_C - samples_N_C.mean(axis=1, keepdims=True)) ** 2,
    }


def _picks(pool: Pool, log_likelihood_N_C: Values, settings: dict[str, Any]) -> set[str]:
    ids_N = np.array([f"s{row}" for row in range(len(log_likelihood_N_C))], dtype=object)
    terms = estimate_class_terms(pool.vae, pool.labeled_M_D, pool.labels_M, draws=PLAIN, generator=0)
    probabilities_N_C = posteriors(Shard(ids_N, logits_N_C=pool.logits_N_C))
    score_N = mistake_score(
        log_likelihood_N_C,
        terms.with_moments(pool_moments([log_likelihood_N_C])),
        settings,
        predicted_class_N=pool.logits_N_C.argmax(axis=1),
        margin_N=margin(probabilities_N_C),
        posterior_N_C=probabilities_N_C,
    )
    candidates = strategies.Candidates(ids_N, score_N)
    return set(strategies.pick(candidates, PICKS, "topk", 1.0, 0).sample_ids)


def _seconds(pool: Pool) -> dict[str, float]:
    """Of the two ways on a pool of LARGE samples, in turn; `ratio` is the median of the repeats'."""
    rows = np.resize(np.arange(len(pool.features_N_D)), LARGE)
    large = Pool(pool.vae, pool.features_N_D[rows], pool.logits_N_C, pool.labeled_M_D, pool.labels_M)
    taken: dict[str, list[float]] = {"independent": [], "anchored": []}
    for seed in range(3):
        for sampling, draws in (("independent", PLAIN), ("anchored", FEW)):
            start = time.perf_counter()
            _estimated(large, draws, sampling, seed)
            taken[sampling].append(time.perf_counter() - start)
    ratios = np.array(taken["independent"]) / np.array(taken["anchored"])
    return {
        "samples": LARGE,
        **{sampling: float(np.median(values)) for sampling, values in taken.items()},
        "ratio": float(np.median(ratios)),
    }


# -- other noise ----------------------------------------------------------------------------------------------------


@contextmanager
def _noise_of(make: Noise | None) -> Iterator[None]:
    if make is None:
        yield
        return

    def noise(vae: vaes.FeatureVAE, rows: int, generator: Any, _sampling: str) -> Tensor:
        generator = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
        return make(rows, vae.num_latents, generator).to(vae.reconstruction.weight)

    with patch.object(probabilities_noise, "_noise", noise):
        yield


def _matched(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Antithetic pairs, scaled so that each dimension's variance over the draws is 1."""
    half = torch.randn(rows // 2, columns, generator=generator, dtype=torch.float64)
    half = half / half.square().mean(dim=0).sqrt()
    return torch.cat([half, -half])


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Antithetic pairs of orthogonal directions, with lengths as independent draws have them."""
    directions = torch.linalg.qr(torch.randn(columns, rows // 2, generator=generator, dtype=torch.float64))[0].T
    uniform = torch.rand(rows // 2, 1, generator=generator, dtype=torch.float64).numpy()
    half = directions * torch.from_numpy(chi.ppf(uniform, columns))
    return torch.cat([half, -half])


def _sobol(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Scrambled Sobol points through the normal quantile function."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    points = qmc.MultivariateNormalQMC(np.zeros(columns), rng=np.random.default_rng(seed))
    return torch.from_numpy(np.asarray(points.random(1 << (rows - 1).bit_length()))[:rows])


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
