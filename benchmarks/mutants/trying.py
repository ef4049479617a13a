"""Try the mutants of one room: `python -m benchmarks.mutants.trying ROOM JOBS EVERY [FILE ...]`.

This process only collects the tests. A child of it runs them once, to see which lines each test reaches; then every
mutant has a child of its own, which changes the function and runs the tests that reach the changed line, until one
fails: first those that found other mutants of the function, then the quickest. No file of the tree is written.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import coverage
import pytest

from benchmarks.mutants.making import Mutant, mutants
from benchmarks.mutants.rooms import CACHE, ROOMS, ROOT, STOPPED

KILLED, SURVIVED, UNTRIED = "killed", "survived", "untried"
_FAILED, _NOT_APPLIED = 1, 70
_MEMORY = 8 << 30  # bytes of data that a child may have


@dataclass
class Reached:
    """What the tests reach: the tests by file and line, a test's seconds, and what it killed, by function."""

    tests: dict[str, dict[int, set[str]]]
    seconds: dict[str, float]
    killed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def by(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's lines, the most promising first; all tests of a file whose fixture does."""
        lines = self.tests.get(str(mutant.file), {})
        names = set().union(*(lines.get(line, set()) for line in mutant.lines))
        shared = tuple(name.removeprefix("shared:") for name in names if name.startswith("shared:"))
        through = [name for name in self.seconds if shared and name.startswith(shared) and name not in names]
        found = [name for name in (*names, *through) if name in self.seconds]
        return sorted(
            found, key=lambda name: (-self.killed[mutant.function, name], name in through, self.seconds[name])
        )


class Trying:
    """The pytest plug-in that runs mutants in place of tests."""

    def __init__(self, files: Sequence[Path], every: int, kept: Path, jobs: int, tell: Callable[[str], None]) -> None:
        self._files, self._every, self._kept, self._jobs, self._tell = files, every, kept, jobs, tell
        self._known: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
        self._coverage: coverage.Coverage | None = None
        self._context = ""
        self.results: list[dict[str, Any]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        import hypothesis  # noqa: PLC0415 -- pytest has to be the first to import it

        busy = hypothesis.settings.get_profile("busy")
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", busy, database=None, derandomize=True, phases=phases)
        hypothesis.settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = {item.nodeid: item for item in session.items}
        made = [mutant for path in self._files for mutant in mutants(path, self._every)]
        for path in self._files:  # some modules are imported only when they are asked for
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        functions = _functions({str(mutant.file) for mutant in made})
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            reached = self._reached(session, Path(folder))
            self._tell(f"{len(self._items)} tests in {time.monotonic() - started:.0f} s; {len(made)} mutants\n")
            self._try(session, made, functions, reached, Path(folder))
        return True

    # -- which test reaches which line --------------------------------------------------------------------------

    def _reached(self, session: pytest.Session, folder: Path) -> Reached:
        told = folder / "reached.json"

        def run() -> int:
            self._coverage = coverage.Coverage(data_file=None, config_file=False, include=[f"{ROOT}/vabal/*"])
            self._coverage.start()
            caches = _caches()
            seconds = {}
            for item, following in zip(session.items, [*session.items[1:], None], strict=True):
                for cache in caches:
                    cache.cache_clear()
                started = time.process_time(), time.monotonic()
                if _first_failure(session, [item], following):
                    told.write_text(json.dumps({"failed": item.nodeid}))
                    return _FAILED
                seconds[item.nodeid] = max(time.process_time() - started[0], (time.monotonic() - started[1]) / 2)
            self._coverage.stop()
            data = self._coverage.get_data()
            tests = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
            told.write_text(json.dumps({"tests": tests, "seconds": seconds}))
            return 0

        child = _child(run, session, folder / "all", quiet=False)
        try:
            os.waitpid(child, 0)
        except KeyboardInterrupt:
            _end(child)
            raise
        found = json.loads(told.read_text())
        if "failed" in found:
            raise pytest.UsageError(f"{found['failed']} fails without any mutant")
        by_line = {
            file: {int(line): set(names) for line, names in lines.items()} for file, lines in found["tests"].items()
        }
        return Reached(by_line, found["seconds"])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._switch(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before = self._context
        if fixturedef.scope != "function":
            self._switch("shared:" + before.partition("::")[0])
        try:
            return (yield)
        finally:
            self._switch(before)

    def _switch(self, context: str) -> None:
        self._context = context
        if self._coverage:
            self._coverage.switch_context(context)

    # -- one mutant after the other -----------------------------------------------------------------------------

    def _try(self, session: Any, made: Sequence[Mutant], functions: Any, reached: Reached, folder: Path) -> None:
        running: dict[int, tuple[Mutant, Path, float]] = {}
        try:
            self._try_each(session, made, functions, reached, folder, running)
        except KeyboardInterrupt:
            for child in running:
                _end(child)
            raise

    def _try_each(
        self,
        session: Any,
        made: Sequence[Mutant],
        functions: Any,
        reached: Reached,
        folder: Path,
        running: dict[int, tuple[Mutant, Path, float]],
    ) -> None:
        for number, mutant in enumerate(made):
            if self._known.get(mutant.key) == KILLED:
                self._note(mutant, KILLED)
                continue
            names = reached.by(mutant)
            seconds = sum(reached.seconds[name] for name in names)
            items = [self._items[name] for name in names]

            told = folder / f"{number}.killed"

            def run(
                mutant: Mutant = mutant, items: list[Any] = items, seconds: float = seconds, told: Path = told
            ) -> int:
                resource.setrlimit(resource.RLIMIT_CPU, (int(10 + 4 * seconds),) * 2)
                resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
                if not _apply(mutant, functions.get((str(mutant.file), *mutant.place), [])):
                    return _NOT_APPLIED
                failed = _first_failure(session, items)
                told.write_text(failed)
                return _FAILED if failed else 0

            while len(running) >= self._jobs:
                self._wait(running, reached)
            running[_child(run, session, folder / str(number))] = mutant, told, time.monotonic() + 30 + 10 * seconds
        while running:
            self._wait(running, reached)

    def _wait(self, running: dict[int, tuple[Mutant, Path, float]], reached: Reached) -> None:
        """Until a child ends, or has to be ended."""
        while True:
            for child, (mutant, told, until) in running.items():
                late = time.monotonic() > until
                if late:
                    os.killpg(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0 if late else os.WNOHANG)
                if ended:
                    del running[child]
                    _end(child)  # what the tests left running
                    code = os.waitstatus_to_exitcode(status)
                    self._note(mutant, {0: SURVIVED, _NOT_APPLIED: UNTRIED}.get(code, KILLED))
                    if told.exists():
                        reached.killed[mutant.function, told.read_text()] += 1
                    shutil.rmtree(told.with_suffix(""), ignore_errors=True)
                    return
            time.sleep(0.005)

    def _note(self, mutant: Mutant, result: str) -> None:
        if result == KILLED and self._known.get(mutant.key) != KILLED:
            self._known[mutant.key] = KILLED
            self._kept.write_text(json.dumps(self._known))
        where = {"file": mutant.file.relative_to(ROOT).as_posix(), "line": mutant.lines.start}
        self.results.append({**where, "function": mutant.function, "change": mutant.change, "result": result})
        self._tell({KILLED: ".", SURVIVED: "S", UNTRIED: "?"}[result])


def _child(work: Callable[[], int], session: Any, folder: Path, *, quiet: bool = True) -> int:
    """A process of its own that does the work, with a folder for temporary files; nothing of it comes back."""
    child = os.fork()
    if child:
        return child
    code = _FAILED
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if quiet:
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
        folder.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        session.config._tmp_path_factory._basetemp = folder / "tests"
        (folder / "tests").mkdir(mode=0o700)
        code = work()
    except BaseException:  # noqa: BLE001 -- nothing leaves this process
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(child: int) -> None:
    """The child and what it started, where they still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _stop(*_: object) -> None:
    """What a signal asks for, once: pytest ends its session, and the results so far are written."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _first_failure(session: Any, items: Sequence[pytest.Item], then: pytest.Item | None = None) -> str:
    """The name of the first test that fails; nothing if all pass. `then` is the test that comes after these."""
    for item, following in zip(items, [*items[1:], then], strict=False):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return item.nodeid
    return ""


def _functions(files: set[str]) -> dict[tuple[str, str, int], list[FunctionType]]:
    """The function objects of these files that the imports made, by file, name and first line."""
    found = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in files:
            code = thing.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(thing)
    return found


def _apply(mutant: Mutant, functions: Sequence[FunctionType]) -> bool:
    for function in functions:
        if len(function.__code__.co_freevars) != len(mutant.code.co_freevars):
            return False
        function.__code__ = mutant.code
        if mutant.defaults:
            function.__defaults__, function.__kwdefaults__ = mutant.defaults
    return bool(functions)


def _caches() -> list[Any]:
    """What `functools.cache` keeps in our modules: the second test to call such a function does not reach its lines."""
    kind = type(functools.cache(len))
    return [thing for thing in gc.get_objects() if type(thing) is kind and thing.__module__.startswith("vabal")]


def main(name: str, jobs: str, every: str, *only: str) -> int:
    """Results go to the cache's folder; what was killed stays killed as long as the module's text is the same.

    Returns STOPPED where a signal ended it: the results are those of the mutants that it had come to.
    """
    kept, results = CACHE / f"{name}.known.json", CACHE / f"{name}.json"
    out = os.fdopen(os.dup(1), "w")

    def tell(text: str) -> None:
        out.write(text)
        out.flush()

    files = [path for path in ROOMS[name].files if not only or path.name in only]
    trying = Trying(files, int(every), kept, int(jobs), tell)
    log = os.open(CACHE / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    options = ["-p", "no:xdist", "-p", "no:randomly", "--capture=sys", "--rootdir", str(ROOT)]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    code = pytest.main([*options, *ROOMS[name].tests], plugins=[trying])
    stopped = code == pytest.ExitCode.INTERRUPTED
    if not trying.results and not stopped:
        tell(f"pytest ended with {code}: {CACHE.name}/{name}.log says why\n")
        return 1
    results.write_text(json.dumps(trying.results, indent=1))
    return STOPPED if stopped else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
