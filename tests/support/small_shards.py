"""Shards and contexts for tests of strategies: a few samples, made by hand or drawn."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from vabal.probabilities import ClassTerms
from vabal.settings.models import ProbabilitySettings, SelectionSettings
from vabal.strategies import Context, Labeled, Shard

TERMS = ClassTerms(torch.tensor([0.7, 0.2, 0.1]).double().log(), torch.tensor([0.9, 0.5, 0.4]).double().log())


@dataclass(frozen=True)
class Settings:
    """What a strategy may ask for of the settings."""

    probabilities: ProbabilitySettings = ProbabilitySettings(likelihood_reduction="sum")  # noqa: RUF009 -- frozen
    selection: SelectionSettings = SelectionSettings()  # noqa: RUF009


def context(*shards: Shard, seed: int = 3, **more: Any) -> Context:
    """The candidates in `shards`; `selection` and `probabilities` are changes of the settings."""
    chosen = Settings(
        ProbabilitySettings(**{"likelihood_reduction": "sum", **more.pop("probabilities", {})}),
        SelectionSettings(**more.pop("selection", {})),
    )
    return Context(shards=lambda: iter(shards), settings=chosen, seed=seed, **({"class_terms": TERMS} | more))


def names(prefix: str, count: int) -> Any:
    return np.array([f"{prefix}{row}" for row in range(count)], dtype=object)


def shard(samples: int = 50, seed: int = 0) -> Shard:
    """Drawn: three classes, four features, and what the estimate of Eq. 11 needs."""
    numbers = np.random.default_rng(seed)
    return Shard(
        sample_ids=names(f"s{seed}-", samples),
        logits_N_C=numbers.normal(size=(samples, 3)).astype(np.float32),
        features_N_D=numbers.normal(size=(samples, 4)).astype(np.float32),
        log_likelihood_N_C=numbers.normal(-5, 2, size=(samples, 3)).astype(np.float32),
        vae_class_N=numbers.integers(0, 3, samples),
    )


def rows_of(whole: Shard, rows: Any) -> Shard:
    columns: dict[str, Any] = {field.name: getattr(whole, field.name) for field in fields(Shard)}
    return replace(whole, **{name: values[rows] for name, values in columns.items() if values is not None})


def in_parts(whole: Shard, parts: int) -> list[Shard]:
    return [rows_of(whole, rows) for rows in np.array_split(np.arange(len(whole)), parts)]


def of_probabilities(candidates: Any, known: Any, labels: Any, *, seed: int = 0, parts: int = 1) -> Context:
    """Candidates c0, c1, ... and labelled samples, given by their probabilities."""
    logits_N_C = np.log(np.asarray(candidates, dtype=float)).astype(np.float32)
    known_L_C = np.log(np.asarray(known, dtype=float).reshape(-1, logits_N_C.shape[1])).astype(np.float32)
    whole = Shard(names("c", len(logits_N_C)), logits_N_C=logits_N_C)
    return context(*in_parts(whole, parts), seed=seed, labeled=labeled(labels, logits_N_C=known_L_C))


def two_classes(*first: float) -> list[list[float]]:
    """Probabilities of two classes, by those of the first."""
    return [[p, 1 - p] for p in first]


def labeled(labels: Iterable[int], **columns: Any) -> Labeled:
    """Labelled samples whose features say nothing."""
    labels_L = np.asarray(labels, dtype=int)
    return Labeled(np.zeros((len(labels_L), 1)), labels_L, **columns)
