"""`python -m benchmarks [NAME ...] [--out FILE]`: measures, prints a table, writes the results, fails if a bound does.

Results of benchmarks that were not asked for stay in the file as they are.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from benchmarks import (
    badge,
    bald,
    bookkeeping,
    coreset,
    draws,
    estimate,
    features,
    growth,
    imports,
    junk,
    large,
    memory,
    night,
    typiclust,
    vae_step,
    waiting,
)

RESULTS = Path(__file__).with_name("results.json")
PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "prefect", "mlflow", "dvc")


@dataclass(frozen=True)
class Check:
    """A measured number and the bound that it must keep."""

    what: str
    measured: float
    sign: Literal["<=", ">="]
    bound: float

    @property
    def ok(self) -> bool:
        return self.measured <= self.bound if self.sign == "<=" else self.measured >= self.bound


@dataclass(frozen=True)
class Benchmark:
    """What measures, and which of its numbers have bounds."""

    run: Callable[[], dict[str, Any]]
    checks: Callable[[dict[str, Any]], list[Check]]
    lines: Callable[[dict[str, Any]], list[str]] | None = None  # what else is printed


def _estimate(result: dict[str, Any]) -> list[Check]:
    checks = []
    for classes, least in estimate.LEAST.items():
        at = result[f"C={classes}"]
        what = f"estimate, C = {classes}: "
        checks.append(Check(f"{what}speed / the published code's", at["ratio"], ">=", least))
        pooled = estimate.LEAST_POOLED[classes]
        checks.append(Check(f"{what}the same on pooled features", at["ratio_pooled"], ">=", pooled))
        share = at["share_of_matmul_rate"]
        checks.append(Check(f"{what}rate / a plain product's", share, ">=", estimate.LEAST_SHARE))
        if "ratio_bfloat16" in at:
            ratio = at["ratio_bfloat16"]
            checks.append(Check(f"{what}speed in bfloat16 / the published", ratio, ">=", estimate.LEAST_BFLOAT16))
    for where, at in result.get("auto", {}).items():
        checks.append(Check(f"estimate, {where}: `auto` / the quicker", at["ratio"], "<=", estimate.MOST_AUTO))
    return checks


def _draws(result: dict[str, Any]) -> list[Check]:
    error = "draws: error of 10 anchored ones / of 100 independent ones"
    return [
        Check("draws: independent ones that an anchored one is worth", result["least_worth"], ">=", draws.LEAST),
        Check(error, result["largest_error"], "<=", 1.0),
    ]


def _vae_step(result: dict[str, Any]) -> list[Check]:
    return [Check("vae_step: a training step / its bare products", result["ratio"], "<=", vae_step.MOST)]


def _growth(result: dict[str, Any]) -> list[Check]:
    return [Check("growth: the largest exponent in N", result["largest_exponent"], "<=", growth.MOST)]


def _coreset(result: dict[str, Any]) -> list[Check]:
    what = "coreset: memory / the features"
    return [
        Check("coreset: speed / plain loop of full distances", result["ratio"], ">=", coreset.TARGET_RATIO),
        Check(what, result["memory_ratio"], "<=", coreset.TARGET_MEMORY),
        Check("coreset: picks are the plain loop's", float(result["same_picks"]), ">=", 1.0),
    ]


def _badge(result: dict[str, Any]) -> list[Check]:
    return [
        Check("badge: speed / published code's way, one thread or two", result["ratio"], ">=", badge.TARGET_RATIO),
        Check("badge: speed / plain loop of all distances", result["ratio_plain"], ">=", badge.TARGET_PLAIN),
    ]


def _typiclust(result: dict[str, Any]) -> list[Check]:
    what = "typiclust: mean squared distance to a centre / the published's"
    return [
        Check("typiclust: speed / published code's way", result["ratio"], ">=", typiclust.TARGET_RATIO),
        Check(what, result["inertia"], "<=", typiclust.TARGET_INERTIA),
    ]


def _large(result: dict[str, Any]) -> list[Check]:
    return [
        Check("large: peak memory at 1 000 000 x 512, GB", result["largest_gb"], "<=", large.MOST_GB),
        Check("large: the largest exponent in N", result["largest_exponent"], "<=", large.MOST_EXPONENT),
    ]


def _bald(result: dict[str, Any]) -> list[Check]:
    return [
        Check("bald: runs of the layers before the first dropout", result["stem_calls_a_piece"], "<=", 1.0),
        Check("bald: memory / the published code's way", result["memory_ratio"], "<=", bald.MOST_MEMORY),
    ]


def _features(result: dict[str, Any]) -> list[Check]:
    return [Check("features from shards: speed / bare forward loop", result["ratio"], ">=", features.TARGET)]


def _memory(result: dict[str, Any]) -> list[Check]:
    what = "features + VAE + estimate: growth of peak memory, 100 000 to 1 000 000"
    return [Check(what, result["growth"], "<=", memory.MOST_GROWTH)]


def _imports(result: dict[str, Any]) -> list[Check]:
    return [
        Check(f"CPU / `import pandas`: {what}", result["ratios"][what], "<=", most)
        for what, most in imports.MOST.items()
    ]


def _bookkeeping(result: dict[str, Any]) -> list[Check]:
    seconds, cpu = result["small"]["bookkeeping_seconds"], result["small"]["bookkeeping_cpu_seconds"]
    ratio = result["ratio_seconds"]
    return [
        Check("bookkeeping of a round, 10 000 images, seconds", seconds, "<=", bookkeeping.MOST_SECONDS),
        Check("bookkeeping of a round, 10 000 images, CPU seconds", cpu, "<=", bookkeeping.MOST_CPU_SECONDS),
        Check("bookkeeping of a round: 1 000 000 images / 10 000", ratio, "<=", bookkeeping.MOST_RATIO),
    ]


def _night(result: dict[str, Any]) -> list[Check]:
    return [Check("night of a probe: CPU seconds", result["cpu_seconds"], "<=", night.MOST_SECONDS)]


def _junk(result: dict[str, Any]) -> list[Check]:
    return [
        Check("junk asked about: the default / without its guard", result["junk_ratio"], "<=", junk.MOST_JUNK),
        Check("junk: balanced accuracy less that without the guard", result["gain"], ">=", junk.LEAST_GAIN),
    ]


def _waiting(result: dict[str, Any]) -> list[Check]:
    return [
        *(
            Check(f"waiting, {way}: beside two / alone", result["ratios"][way], "<=", waiting.MOST[way])
            for way in waiting.MOST
        ),
        Check("waiting, beside two: spinning / sleeping", result["gain"], ">=", waiting.LEAST_GAIN),
    ]


BENCHMARKS = {
    "estimate": Benchmark(estimate.run, _estimate),
    "draws": Benchmark(draws.run, _draws),
    "night": Benchmark(night.run, _night),
    "junk": Benchmark(junk.run, _junk),
    "vae_step": Benchmark(vae_step.run, _vae_step),
    "waiting": Benchmark(waiting.run, _waiting),
    "coreset": Benchmark(coreset.run, _coreset),
    "badge": Benchmark(badge.run, _badge),
    "bald": Benchmark(bald.run_with_memory, _bald),
    "typiclust": Benchmark(typiclust.run, _typiclust),
    "large": Benchmark(large.run, _large),
    "growth": Benchmark(growth.run, _growth, growth.lines),
    "features": Benchmark(features.run, _features),
    "imports": Benchmark(imports.run, _imports),
    "memory": Benchmark(memory.run, _memory),
    "bookkeeping": Benchmark(bookkeeping.run, _bookkeeping),
}


def main(
    arguments: Sequence[str] | None = None, benchmarks: dict[str, Benchmark] | None = None, results: Path = RESULTS
) -> int:
    """Runs the benchmarks named, or all; the exit code is 1 if a bound fails."""
    known = BENCHMARKS if benchmarks is None else benchmarks
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="speed and memory against their bounds")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; none: all")
    parser.add_argument("--out", type=Path, default=results, help="the file of results (JSON)")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; known are {', '.join(known)}")
    failed = False
    for name in chosen.names or known:
        print(f"{name} ...", flush=True)
        entry, checks = measure(known[name])
        _write(chosen.out, name, entry)
        shown = known[name].lines
        for line in [] if shown is None else shown(entry["result"]):
            print(f"  {line}".rstrip(), flush=True)
        for check in checks:
            print(_line(check), flush=True)
        print(f"  {entry['seconds']:.0f} s", flush=True)
        failed = failed or not all(check.ok for check in checks)
    return 1 if failed else 0


def measure(benchmark: Benchmark) -> tuple[dict[str, Any], list[Check]]:
    """Runs it; what stands in the file of results, and the checks."""
    facts, started = machine(), time.monotonic()
    result = benchmark.run()
    checks = benchmark.checks(result)
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "seconds": round(time.monotonic() - started, 1),
        "checks": [asdict(check) | {"ok": check.ok} for check in checks],
        "result": _rounded(result),
    }
    return entry, checks


def machine() -> dict[str, Any]:
    """What the numbers depend on. `load` is how many processes wanted a core in the minute before."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "memory_gb": round(pages / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _write(path: Path, name: str, entry: dict[str, Any]) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | {name: entry}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _line(check: Check) -> str:
    return (
        f"  {'ok    ' if check.ok else 'FAILED'} {check.what:<66} {check.measured:>7.3g} {check.sign} {check.bound:g}"
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
