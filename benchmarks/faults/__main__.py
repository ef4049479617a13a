"""`python -m benchmarks.faults [--sample] [--seed N] [--only GROUP ...]`: figures by promise; fails if one broke."""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.faults import buckets, kills, servers, surroundings
from benchmarks.faults.nights import Nights, save_camera, save_images
from benchmarks.faults.outcomes import PROMISES, Outcome

GROUPS = ("kills", "surroundings", "servers")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200, help="kills beside those at named places")
    parser.add_argument("--out", type=Path, help="a file for every outcome (JSON)")
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=[])
    parser.add_argument("--sample", action="store_true", help="a few of each that need no server: a minute")
    chosen = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_", "GIT_"))]:
        del os.environ[name]
    os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started and mounted
    started, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for outcome in _all(Path(folder), chosen):
            outcomes.append(outcome)
            for promise, why in outcome.broken.items():
                print(f"BROKEN {promise}: {outcome.kind}: {outcome.where}\n    {why}", flush=True)
            print(f"{time.monotonic() - started:6.0f} s  {outcome.kind}: {outcome.tried}", flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps([asdict(item) for item in outcomes], indent=1) + "\n")
    print(table(outcomes))
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def _all(folder: Path, chosen: argparse.Namespace) -> Iterator[Outcome]:
    """All groups, or those asked for, in an order that goes by cost."""
    if chosen.sample:
        nights = _prepared(folder, "margin")
        yield from kills.sweep(nights, kills.plan(chosen.seed, "margin", 4, sample=True))
        yield from surroundings.a_few(nights, chosen.seed)
        return
    wanted = set(chosen.only or GROUPS)
    if local := wanted - {"servers"}:
        nights = _prepared(folder, "margin")
        if "kills" in local:
            yield from kills.sweep(nights, kills.plan(chosen.seed, "margin", chosen.kills))
            estimating = _prepared(folder, "vabal")
            yield from kills.sweep(estimating, kills.plan(chosen.seed, "vabal", chosen.kills // 10))
            yield from _with_images_in_s3(folder, chosen)
        if "surroundings" in local:
            yield from surroundings.everything(nights, folder / "elsewhere", chosen.seed)
    if "servers" in wanted:
        yield from servers.everything(folder, chosen.seed)


def _with_images_in_s3(folder: Path, chosen: argparse.Namespace) -> Iterator[Outcome]:
    """Kills of those who read images."""
    save_images(folder / "some.npz")
    save_camera(folder / "camera")
    with buckets.photos(folder / "some.npz", folder / "camera") as photos:
        nights = Nights(folder / "photos" / "place" / "now", "margin", photos)
        nights.prepare(folder / "photos" / "before")
        for outcome in kills.sweep(nights, kills.plan_of_readers(chosen.seed, chosen.kills // 10)):
            yield replace(outcome, kind=f"{outcome.kind}, images in S3")


def _prepared(folder: Path, strategy: str) -> Nights:
    nights = Nights(folder / strategy / "place" / "now", strategy)
    nights.prepare(folder / strategy / "before")
    return nights


def table(outcomes: list[Outcome]) -> str:
    """Rows: what was done; columns: how often, and how many of the histories kept each promise."""
    lines = [f"| Fault | Tried | Histories | {' | '.join(PROMISES)} |", f"|---|{'---:|' * (2 + len(PROMISES))}"]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        kept = [sum(promise not in outcome.broken for outcome in of_kind) for promise in PROMISES]
        tried = sum(outcome.tried for outcome in of_kind)
        lines.append(f"| {kind} | {tried} | {len(of_kind)} | {' | '.join(map(str, kept))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
