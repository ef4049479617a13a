"""The benchmark's year of nights: a workspace that the audit finds in order, and what is read from its figures."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from benchmarks import year
from vabal.adapters.versioning import Versioning
from vabal.audit.places import Outside
from vabal.audit.verification import verify
from vabal.cli import app


def test_a_made_year_is_a_record_in_order(tmp_path: Path) -> None:
    made = year.Year(tmp_path, candidates=300, classes=4).begin_year()
    made.night()
    made.night()
    versions = Versioning(tmp_path)
    report = verify(made.data, versions.tag_messages(), outside=Outside(versions))
    assert (report.findings, report.notes, report.rounds) == ((), (), 3)
    assert made.pools.labeled["round"].eq(2).sum() == year.BUDGET - 4
    said = command(tmp_path, "--verify", "--since", "2", "--json")
    assert (said["ok"], said["since"], len(said["notes"]), said["images"]) == (True, 2, 1, 0)
    for words, line in WRONG.items():
        done = CliRunner().invoke(app.app, ["-C", str(tmp_path), "audit", *words])
        assert (done.exit_code, str(done.exception)) == (1, line)
    assert set(year.weight(tmp_path, 2, 300)["a_candidate"]) >= {"candidates.parquet", "shortlist.parquet"}


WRONG = {
    ("--since", "2"): "--since and --workers are for --verify: `vabal audit --verify --since ROUND`",
    ("--verify", "--since", "3"): "--since 3: there is no such round (`vabal audit` lists them)",
}


def command(root: Path, *words: str) -> Any:
    done = CliRunner().invoke(app.app, ["-C", str(root), "audit", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_what_grows_with_rounds_times_candidates_is_continued_to_a_year() -> None:
    points = [
        {"rounds": rounds, "candidates": candidates, "verify": {"cpu": 2 + 1e-6 * rounds * candidates}}
        for rounds in (1, 5, 20)
        for candidates in (1000, 10_000, 100_000)
    ]
    fitted = year.fit(points)["verify"]
    assert abs(fitted["extrapolated_to"]["cpu"] - 367) < 1e-3
    assert fitted["worst_error"] < 1e-6
    assert year.fit(points[:2]) == {}
