"""What a night's selection costs once likelihoods are there: `python -m benchmarks.selecting [N ...]`.

The default strategy and settings over synthetic logits and likelihoods of N candidates and ten classes, chunk by chunk
as a night reads them: scores, the batch that is searched among the best, and the candidates' table that is recorded.
One thread; CPU seconds and microseconds a candidate. It tells whether scoring is worth a task a shard.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.growth import exponents
from benchmarks.threads import one_thread
from vabal import strategies
from vabal.probabilities import ClassTerms
from vabal.rounds import tables
from vabal.rounds.learner import CHUNK_ROWS, Learner
from vabal.settings.params import parse

SIZES = (10_000, 100_000, 1_000_000)
CLASSES, DIMS, LABELED, BUDGET = 10, 512, 500, 100


def run(sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Seconds by size, of the selection and of the table; prints them with the fitted exponent."""
    seconds = {size: measure(size) for size in sizes}
    print(f"{'candidates':>12}  {'select':>8}  {'table':>8}  {'us each':>8}")
    for size, (selected, written) in seconds.items():
        each = 1e6 * (selected + written) / size
        print(f"{size:12d}  {selected:8.2f}  {written:8.2f}  {each:8.2f}")
    result: dict[str, Any] = {"seconds": {str(size): list(took) for size, took in seconds.items()}}
    if len(sizes) > 1:
        result["exponents"] = exponents({size: float(sum(took)) for size, took in seconds.items()})
        print(f"grows with N ** {result['exponents']['last']:.2f} between the two largest")
    return result


def measure(size: int) -> tuple[float, float]:
    """Seconds of the selection, and of the table that is recorded."""
    draw = np.random.default_rng(0)
    logits_N_C = draw.normal(size=(size, CLASSES)).astype(np.float32) * 3
    likelihood_N_C = draw.normal(size=(size, CLASSES)).astype(np.float32)
    ids = np.array([f"{number:012x}" for number in range(size)], dtype=object)

    def shards() -> Iterator[strategies.Shard]:
        for start in range(0, size, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            yield strategies.Shard(
                ids[rows],
                logits_N_C=logits_N_C[rows],
                log_likelihood_N_C=likelihood_N_C[rows],
                vae_class_N=likelihood_N_C[rows].argmax(axis=1).astype(np.int32),
            ).compact()

    def features(sample_ids: NDArray[Any]) -> NDArray[np.float32]:
        return draw.normal(size=(len(sample_ids), DIMS)).astype(np.float32)

    learner = Learner(parse({"selection": {"budget": BUDGET}}), 1, strategies.get("vabal"))
    known = strategies.Labeled(features(ids[:LABELED]), draw.integers(0, CLASSES, LABELED))
    terms = ClassTerms(torch.full((CLASSES,), 0.1).log(), torch.full((CLASSES,), 0.9).log(), labeled_floor=-5.0)
    names = [str(name) for name in range(CLASSES)]
    with one_thread(), tempfile.TemporaryDirectory() as there:
        scored, table = Path(there) / "scored.parquet", Path(there) / "candidates.parquet"
        began = time.process_time()
        with tables.ScoredWriter(scored, strategies.schema(CLASSES)) as writer:
            found = learner.select(
                shards,
                candidates=size,
                labeled=known,
                class_terms=terms,
                feature_dims=(DIMS,),
                write=lambda part: writer.write(part.to_table(names)),
                features=features,
            )
        selected = time.process_time()
        ranks = {sample_id: rank for rank, sample_id in enumerate(found.sample_ids, start=1)}
        tables.write_candidates(scored, table, ranks, "vabal", compact=True)
        return selected - began, time.process_time() - selected


if __name__ == "__main__":
    run(tuple(int(float(word)) for word in sys.argv[1:]) or SIZES)
