"""TypiClust's selection against published code's way: `python -m benchmarks.typiclust`.

Both run in one process, in turn, on the same float32 features of length one. `published` takes the steps of the code by
the authors (avihu111/TypiClust, `typiclust.py`): scikit-learn's k-means, or its mini-batch k-means for more than 50
clusters, then for each pick the neighbours within its cluster (theirs by faiss on a GPU, here by scikit-learn). Inertia
is the mean squared distance to the nearest centre: it tells whether speed costs anything.
"""

import json
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.coreset import activations
from vabal.strategies import typiclust

SAMPLES, DIMS, PICKS = 50_000, 512, 50
CLUSTERS = (50, 100, 500)

TARGET_RATIO, TARGET_INERTIA = 5.0, 1.01

Features = NDArray[np.float32]


class Found(NamedTuple):
    """What a way picks, and the centres that it had."""

    rows: list[int]
    centres_K_D: Features


def run(samples: int = SAMPLES, dims: int = DIMS, clusters: tuple[int, ...] = CLUSTERS) -> dict[str, Any]:
    """Seconds of CPU and of the clock; `ratio` is the least of all numbers of clusters and threads, of CPU seconds."""
    features_N_D = typiclust._normalised(activations(np.random.default_rng(0), samples, dims))
    results = {
        f"{count} clusters, {threads} thread{'s' * (threads > 1)}": _compare(features_N_D, count, threads)
        for count in clusters
        for threads in (1, 2)
    }
    return {
        "samples": samples,
        "dims": dims,
        **results,
        "ratio": min(result["ratio"] for result in results.values()),
        "inertia": max(result["inertia"] for result in results.values()),
    }


def _compare(features_N_D: Features, clusters: int, threads: int) -> dict[str, Any]:
    clock, cpu, found = {}, {}, {}
    with threadpool_limits(threads):
        for name, way in {"ours": ours, "published": published}.items():
            start, used = time.perf_counter(), time.process_time()
            found[name] = way(features_N_D, clusters)
            clock[name], cpu[name] = time.perf_counter() - start, time.process_time() - used
    assert all(len(set(way.rows)) == PICKS for way in found.values())
    return {
        "seconds": clock,
        "cpu_seconds": cpu,
        "ratio": cpu["published"] / cpu["ours"],
        "ratio_of_the_clock": clock["published"] / clock["ours"],
        "inertia": _inertia(features_N_D, found["ours"]) / _inertia(features_N_D, found["published"]),
    }


def ours(features_N_D: Features, clusters: int) -> Found:
    nothing_L_D, nothing_L = features_N_D[:0], np.zeros(0, dtype=np.int64)
    centres_K_D = typiclust.cluster_centres(features_N_D, nothing_L_D, clusters, 0)
    cluster_N = typiclust.nearest(features_N_D, centres_K_D)
    rows: list[int] = typiclust.typical(features_N_D, cluster_N, nothing_L_D, nothing_L, PICKS).tolist()
    return Found(rows, centres_K_D)


def published(features_N_D: Features, clusters: int) -> Found:
    from sklearn.cluster import KMeans, MiniBatchKMeans  # noqa: PLC0415 -- takes a second
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    chosen: dict[str, Any] = {"n_clusters": clusters, "n_init": 1, "random_state": 0}
    model = KMeans(**chosen) if clusters <= 50 else MiniBatchKMeans(**chosen, batch_size=5000)
    cluster_N = model.fit_predict(features_N_D)
    largest_K = np.argsort(-np.bincount(cluster_N, minlength=clusters), kind="stable")
    rows = []
    for cluster in largest_K[:PICKS]:
        members = np.flatnonzero(cluster_N == cluster)
        neighbours = min(20, len(members) // 2)
        search = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(features_N_D[members])
        distance_M = search.kneighbors(features_N_D[members])[0][:, 1:].mean(axis=1)
        rows.append(int(members[distance_M.argmin()]))
    return Found(rows, np.asarray(model.cluster_centers_, dtype=np.float32))


def _inertia(features_N_D: Features, found: Found) -> float:
    cluster_N = typiclust.nearest(features_N_D, found.centres_K_D)
    return float(((features_N_D - found.centres_K_D[cluster_N]) ** 2).sum(axis=1, dtype=np.float64).mean())


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
