"""The benchmark's year of nights: a workspace that the audit finds in order, and what is read from its figures."""

from pathlib import Path

from benchmarks import year
from vabal.adapters.versioning import Versioning
from vabal.audit.places import Outside
from vabal.audit.verification import verify


def test_a_made_year_is_a_record_in_order(tmp_path: Path) -> None:
    made = year.Year(tmp_path, candidates=300, classes=4).begin_year()
    made.night()
    made.night()
    versions = Versioning(tmp_path)
    report = verify(made.data, versions.tag_messages(), outside=Outside(versions))
    assert (report.findings, report.notes, report.rounds) == ((), (), 3)
    assert made.pools.labeled["round"].eq(2).sum() == year.BUDGET - 4
    assert set(year.weight(tmp_path, 2, 300)["a_candidate"]) >= {"candidates.parquet", "shortlist.parquet"}


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
