"""No secret lies in the repository's files."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from detect_secrets.core.secrets_collection import SecretsCollection
from detect_secrets.settings import default_settings

from tests.rules.repository import ROOT, files


def secrets_in(paths: Iterable[Path]) -> list[str]:
    """What looks like a secret, as `file:line: kind`. A line that says `pragma: allowlist secret` is passed over."""
    found = SecretsCollection()
    with default_settings():
        for path in paths:
            found.scan_file(str(path))
    return sorted({f"{name}:{secret.line_number}: {secret.type}" for name, secret in found})


def test_no_file_of_the_repository_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert secrets_in(files()) == []


# Put together here, so that the scan above does not find them in this file.
PLANTED = {
    "config.py": "key = '" + "AKIA" + "QYLPMN5HFIQR7XYA" + "'\n",
    ".env": "AWS_SECRET_ACCESS_" + "KEY=" + "wJalrXUtnFEMI" + "/K7MDENG/bPxRfiCY" + "zEXAMPLEKEY\n",
    "compose.yaml": "environment:\n  POSTGRES_PASS" + "WORD: hunter2hunter2\n",
    "id_rsa": "-----BEGIN RSA PRIVATE " + "KEY-----\nabc\n",
    "settings.toml": "url = 'https://someone:" + "pa55word@example.org/'\n",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_secret_is_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(PLANTED[name])
    assert [finding for finding in secrets_in([path]) if finding.startswith(str(path))]


def test_a_secret_taken_from_the_environment_is_not_reported(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text("environment:\n  POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?set it}\n")
    assert secrets_in([path]) == []
