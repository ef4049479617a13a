"""Cells of a benchmark that never ran: plausible, cheap, and the same for the same arguments."""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

STRATEGIES = (
    "vabal", "vabal-paper", "vabal-published", "random", "entropy", "margin", "bald", "power_bald", "ensemble",
    "learning_loss", "coreset", "vaal", "badge", "typiclust", "balanced:margin",
)  # fmt: skip
SETTINGS = (("digits", "natural"), ("digits", "dominant:0:0.1"))


def cell(
    curve: Sequence[float],
    *,
    strategy: str = "random",
    seed: int = 0,
    source: str = "digits",
    imbalance: str = "natural",
    picked: Sequence[Sequence[int]] | None = None,
    recall: Sequence[float | None] = (0.5, 0.9),
    pool: Sequence[int] = (100, 20),
    classes: Sequence[str] = ("a", "b"),
    step: int = 20,
    learner: str = "",
    caveat: str | None = None,
) -> dict[str, Any]:
    """A run whose accuracies are `curve`; balanced accuracy and macro F1 are 0.1 and 0.2 less."""
    rounds = [
        {
            "round": place + 1,
            "labeled": step * (place + 1),
            "accuracy": value,
            "balanced_accuracy": value - 0.1,
            "macro_f1": value - 0.2,
            "recall_per_class": list(recall),
            "picked_per_class": list(picked[place]) if picked else [step // 2] * len(classes),
            "seconds": {"train": 2.0} if place + 1 == len(curve) else {"train": 2.0, "select": 0.5},
            "cpu_seconds": 3.0,
            "trained": 1 if place + 1 == len(curve) else 5,
        }
        for place, value in enumerate(curve)
    ]
    return {
        "version": 1,
        "source": source,
        "imbalance": imbalance,
        "strategy": f"{learner}/{strategy}" if learner else strategy,
        "learner": learner,
        "caveat": caveat,
        "seed": seed,
        "classes": list(classes),
        "pool_per_class": list(pool),
        "holdout_per_class": [10] * len(classes),
        "budget": step,
        "initial": step,
        "rounds": rounds,
    }


def grid(
    *,
    strategies: Sequence[str] = STRATEGIES,
    settings: Sequence[tuple[str, str]] = SETTINGS,
    seeds: int = 10,
    rounds: int = 5,
    classes: Sequence[str] = tuple("0123456789"),
) -> list[dict[str, Any]]:
    """Cells of every strategy and seed; some strategies are better than others, more so under imbalance."""
    return [
        _run(strategy, source, imbalance, seed, rounds, classes)
        for source, imbalance in settings
        for strategy in strategies
        for seed in range(seeds)
    ]


def _run(strategy: str, source: str, imbalance: str, seed: int, rounds: int, classes: Sequence[str]) -> dict[str, Any]:
    matched = np.random.default_rng([seed, len(imbalance)])  # what the strategies of a seed share
    own = np.random.default_rng([seed, zlib.crc32(f"{strategy}{imbalance}".encode())])
    skewed = imbalance.startswith("dominant")
    pool_C = np.full(len(classes), 14 if skewed else 140)
    pool_C[0] = 140
    skill = {"random": 0.0, "vabal": 1.0}.get(strategy, (zlib.crc32(strategy.encode()) % 100) / 90 - 0.35)
    balance = np.clip(0.35 + 0.6 * skill, 0, 1)
    weight_C = (1 - balance) * pool_C / pool_C.sum() + balance / len(classes)
    hardness_C = np.linspace(0.9, 1.5, len(classes))
    labels_C, start = np.zeros(len(classes)), matched.normal(0, 0.015)
    found = []
    for place in range(rounds):
        share_C = pool_C / pool_C.sum() if place == 0 else weight_C
        generator = matched if place == 0 else own
        fresh_C = generator.multinomial(20, share_C)
        labels_C = labels_C + fresh_C
        noise_C = generator.normal(0, 0.015, len(classes))
        recall_C = np.clip(1 - 0.75 * np.exp(-labels_C / (9 * hardness_C)) + start + noise_C, 0, 1)
        accuracy = float(recall_C.mean() + 0.01 * skill * place)
        found.append(
            {
                "round": place + 1,
                "labeled": 20 * (place + 1),
                "accuracy": accuracy,
                "balanced_accuracy": float(recall_C.mean()),
                "macro_f1": float(recall_C.mean() - 0.02),
                "recall_per_class": recall_C.tolist(),
                "picked_per_class": fresh_C.tolist(),
                "seconds": {"train": 3 + float(own.random())}
                | ({"select": 0.01 + 2 * float(own.random()) * (skill > 0)} if place + 1 < rounds else {}),
                "notes": [],
            }
        )
    return {
        "version": 1,
        "source": source,
        "imbalance": imbalance,
        "strategy": strategy,
        "seed": seed,
        "classes": list(classes),
        "pool_per_class": pool_C.tolist(),
        "holdout_per_class": [36] * len(classes),
        "budget": 20,
        "initial": 20,
        "rounds": found,
        "top_picks": [_pick(own, classes, weight_C, place) for place in range(10)],
    }


def _pick(generator: np.random.Generator, classes: Sequence[str], weight_C: Any, place: int) -> dict[str, str]:
    label, predicted = int(generator.choice(len(classes), p=weight_C)), int(generator.integers(len(classes)))
    pixels = generator.integers(0, 255, size=(8, 8), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="png")
    return {
        "sample_id": f"sample-{place}",
        "label": classes[label],
        "predicted_class": classes[predicted],
        "png": base64.b64encode(written.getvalue()).decode(),
    }
