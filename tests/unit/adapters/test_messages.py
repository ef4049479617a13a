"""Messages against real receivers: an HTTP server, an SMTP server, a command."""

import shlex
import sys
from pathlib import Path

import pytest

from tests.support import receivers
from vabal.adapters import messages
from vabal.adapters.messages import Message
from vabal.errors import UserError
from vabal.settings.models import NotifySettings

SETTINGS = NotifySettings(by=["email"], email_to=["ada@example.org", "bob@example.org"], email_from="night@example.org")
HOSTILE = Message(
    "run:failed", "failed", "parts", "vabal parts: failed\nBcc: eve@example.org", "crack é\n.\nx", "http://x/1"
)


def test_a_webhook_gets_json_with_a_text_and_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with receivers.webhook() as received:
        monkeypatch.setenv(messages.WEBHOOK, f"http://127.0.0.1:{received.port}/hook/secret")
        messages.send("webhook", HOSTILE, SETTINGS, tmp_path)
        assert received.keys == ["run:failed"]
        [body] = received.bodies
        assert body["text"].endswith("crack é\n.\nx\nhttp://x/1")
        assert (body["event"], body["workspace"], body["link"]) == ("failed", "parts", "http://x/1")
        received.answers = 503
        with pytest.raises(UserError, match=r"^webhook: http://127\.0\.0\.1 answers 503$"):
            messages.send("webhook", HOSTILE, SETTINGS, tmp_path)
    with pytest.raises(UserError, match=r"^webhook: http://127\.0\.0\.1 was not reached \([^\n]*refused\)$"):
        messages.send("webhook", HOSTILE, SETTINGS, tmp_path)


def test_an_email_goes_to_everybody_and_no_text_adds_a_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with receivers.smtp() as received:
        monkeypatch.setenv(messages.SMTP, f"smtp://127.0.0.1:{received.port}")
        for _ in range(2):
            messages.send("email", HOSTILE, SETTINGS, tmp_path)
        assert received.keys == ["ada@example.org", "bob@example.org"] * 2
        first, second = received.bodies
        assert first["Message-ID"] == second["Message-ID"]
        assert first["Bcc"] is None
        assert first["Subject"] == r"vabal parts: failed\nBcc: eve@example.org"
        assert first.get_content().split() == ["crack", "é", ".", "x", "http://x/1"]
        received.answers = 554
        with pytest.raises(UserError, match=r"^email: smtp://127\.0\.0\.1 did not take it \([^\n]*554[^\n]*\)$"):
            messages.send("email", HOSTILE, SETTINGS, tmp_path)


def test_a_password_is_not_sent_without_tls_to_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with receivers.smtp() as received:
        monkeypatch.setattr(messages, "_LOOPBACK", ())
        monkeypatch.setenv(messages.SMTP, "ada:hush".join(["smtp://", f"@127.0.0.1:{received.port}"]))
        with pytest.raises(UserError, match=r"^email: smtp://127\.0\.0\.1 offers no TLS") as told:
            messages.send("email", HOSTILE, SETTINGS, tmp_path)
        assert "hush" not in str(told.value)
        assert received.bodies == []


def test_a_command_gets_the_text_and_its_failure_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import os, sys; open('came', 'w').write(os.environ['VABAL_EVENT'] + ' ' + sys.stdin.read())"
    monkeypatch.setenv(messages.COMMAND, shlex.join([sys.executable, "-c", program]))
    messages.send("command", HOSTILE, SETTINGS, tmp_path)
    assert (tmp_path / "came").read_text().startswith("failed vabal parts: failed")
    monkeypatch.setenv(messages.COMMAND, "sh -c 'echo no paper >&2; exit 3'")
    with pytest.raises(UserError, match=r"^command: sh ended with 3: no paper$"):
        messages.send("command", HOSTILE, SETTINGS, tmp_path)
    monkeypatch.setenv(messages.COMMAND, "/no/such/program")
    with pytest.raises(UserError, match=r"^command: [^\n]*No such file"):
        messages.send("command", HOSTILE, SETTINGS, tmp_path)


@pytest.mark.parametrize("channel", ["webhook", "email", "command"])
def test_an_address_that_is_not_set_is_told_with_where_it_belongs(
    channel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (messages.WEBHOOK, messages.SMTP, messages.COMMAND):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=rf"^{channel}: VABAL_NOTIFY_\w+ is not set: .*\.vabal/env"):
        messages.send(channel, HOSTILE, SETTINGS, tmp_path)
