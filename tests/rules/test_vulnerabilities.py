"""No locked package has a published vulnerability, as far as the advisories can be reached from here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rules.repository import ROOT

# Advisories that do not touch us, each with the reason.
TOLERATED = {
    "CVE-2025-69872": "diskcache reads pickle: DVC's lies in the workspace, for its owner only (SECURITY.md)",
}


def audited(requirements: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each requirement; skips the test where it gets no answer."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off", "--timeout", "5"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, subprocess.TimeoutExpired):
        pytest.skip("the advisories cannot be reached from here")
    return packages


def findings(packages: list[dict[str, Any]]) -> list[str]:
    """Each vulnerability that nobody has given a reason for, as `package version: ID`."""
    return [
        f"{package['name']} {package['version']}: {found['id']}"
        for package in packages
        for found in package.get("vulns", [])
        if not {found["id"], *found["aliases"]} & set(TOLERATED)
    ]


def test_no_locked_package_has_a_published_vulnerability(tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    known.write_text("jinja2==2.4.1\n")
    if not findings(audited(known)):  # it has several: no answer then
        pytest.skip("the advisories cannot be reached from here")
    assert findings(audited(ROOT / "requirements.lock")) == []


def test_a_vulnerability_is_a_finding_unless_there_is_a_reason() -> None:
    def package(identifier: str, *aliases: str) -> dict[str, Any]:
        return {"name": "a", "version": "1", "vulns": [{"id": identifier, "aliases": list(aliases)}]}

    skipped = {"name": "b", "skip_reason": "not found"}
    assert findings([package("PYSEC-1"), package("GHSA-1", "CVE-2025-69872"), skipped]) == ["a 1: PYSEC-1"]
