"""`python -m benchmarks.team TOOLS `: infra/compose.yaml as processes of this machine, and nights through it.

TOOLS is the folder that `make test-team` fills. Postgres, SeaweedFS, MLflow, Prefect's server, two workers and the
notifier start as the compose file says; then two workspaces have nights at the same time, a worker dies with and
without its night, and servers die under a night. Fails at the first thing that is not as it has to be.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.team import tools
from benchmarks.team.nights import BrokenError, Nights, check_pool
from benchmarks.team.services import SERVERS, Team
from tests.support.receivers import Received, webhook
from vabal.adapters import limits
from vabal.adapters.orchestration import Server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.team", description=__doc__)
    parser.add_argument("tools", type=Path)
    parser.add_argument("--only", nargs="*", default=[], metavar="SCENE", help="both, machine, worker, postgres, ...")
    chosen = parser.parse_args()
    found = tools.find(chosen.tools.absolute())
    if found is None:
        print("skipped: no Postgres on this machine (Debian's package `postgresql` has one)")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with what is below, not without
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_", "GIT_", "PG"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="team-") as name, webhook() as told:
        folder = Path(name)
        folder.chmod(0o711)  # Postgres has a user of its own
        team = Team(folder, found, f"http://127.0.0.1:{told.port}")
        try:
            return play(team, told, chosen.only)
        except BrokenError as error:
            print(f"not as it has to be: {error}")
            return 1
        finally:
            team.end()


def play(team: Team, told: Received, only: Sequence[str] = ()) -> int:
    seconds = team.up()
    team.start("worker-2")
    took = ", ".join(f"{name} {each:.0f} s" for name, each in seconds.items())
    print(f"up, as infra/compose.yaml says: {took}; and a second worker", flush=True)
    environment = team.environment("worker")
    server = Server(environment["PREFECT_API_URL"], environment["PREFECT_API_AUTH_STRING"])
    os.environ[limits.SILENCE] = "120"  # what asks here waits longer than the night does
    check_pool(server)
    nights = Nights(team, server, told)
    scenes: dict[str, Callable[[], str]] = {
        "both": nights.at_once,
        "machine": nights.machine_dies,
        "worker": nights.worker_dies,
        **{service: partial(nights.server_dies, service) for service in SERVERS},
        "record": nights.records_hold,
    }
    for scene in [nights.make, *(scenes[name] for name in scenes if not only or name in only)]:
        begun = time.monotonic()
        print(f"{scene()} [{time.monotonic() - begun:.0f} s]", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
