"""Messages to people: a webhook, an e-mail, a command of their own. Where they go stands in the environment alone.

A webhook's address is a secret and an SMTP server's may hold a password; a command is code, which no `params.yaml` that
was cloned from somebody may bring along.
"""

import json
import os
import shlex
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from vabal.adapters import limits, processes
from vabal.errors import UserError, shown
from vabal.files import sha256
from vabal.settings.models import NotifySettings

WEBHOOK, SMTP, COMMAND = "VABAL_NOTIFY_WEBHOOK", "VABAL_NOTIFY_SMTP", "VABAL_NOTIFY_COMMAND"
LONGEST_S: Final = 30.0
_WORDS_OF_A_COMMAND: Final = 300
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Message:
    """`key` is the same whenever this event is told again: who receives it can leave out a second one."""

    key: str
    event: str
    workspace: str
    subject: str
    text: str
    link: str | None = None


def send(channel: str, message: Message, settings: NotifySettings, folder: Path) -> None:
    """Send it by `channel`, once. Raises UserError, in a line without secrets, if it was not taken."""
    try:
        if channel == "webhook":
            _post(message)
        elif channel == "email":
            _mail(message, settings)
        else:
            _run(message, folder)
    except UserError as error:
        raise UserError(f"{channel}: {error}") from None


def _given(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise UserError(f"{name} is not set: write {name}=... into .vabal/env (docs/operations.md)")
    return value


def _patience() -> float:
    return min(LONGEST_S, limits.silence())


# --- webhook ---------------------------------------------------------------------------------------------------------


def _post(message: Message) -> None:
    """JSON with `text`, which Slack, Mattermost and their like show, and the parts for others."""
    url = _given(WEBHOOK)
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{WEBHOOK} is no http:// or https:// address")
    body = {**asdict(message), "text": f"{message.subject}\n{_whole(message)}"}
    request = urllib.request.Request(  # noqa: S310 -- the address is the user's own
        url,
        method="POST",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "vabal", "Idempotency-Key": message.key},
    )
    try:
        with urllib.request.urlopen(request, timeout=_patience()) as answer:  # noqa: S310
            answer.read(1)
    except urllib.error.HTTPError as error:
        with error:
            raise UserError(f"{_host(url)} answers {error.code}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{_host(url)} was not reached ({_reason(error)})") from None


def _whole(message: Message) -> str:
    return f"{message.text}\n{message.link}" if message.link else message.text


def _host(url: str) -> str:
    """What of an address may be shown."""
    return f"{urlsplit(url).scheme}://{urlsplit(url).hostname}"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", error)).split())[:200] or type(error).__name__


# --- e-mail ----------------------------------------------------------------------------------------------------------


def _mail(message: Message, settings: NotifySettings) -> None:
    url = _given(SMTP)
    try:
        place = urlsplit(url)
        port, secure = place.port, place.scheme == "smtps"
    except ValueError:
        raise UserError(f"{SMTP} is no address") from None
    if place.scheme not in ("smtp", "smtps") or not place.hostname:
        raise UserError(f"{SMTP} is no smtp://[USER:PASSWORD@]HOST:PORT, or smtps:// for TLS from the start")
    context = ssl.create_default_context()
    try:
        with (
            smtplib.SMTP_SSL(place.hostname, port or 465, timeout=_patience(), context=context)
            if secure
            else smtplib.SMTP(place.hostname, port or 587, timeout=_patience())
        ) as server:
            if not secure:
                server.ehlo()
                if server.has_extn("starttls"):
                    server.starttls(context=context)
                elif place.password and place.hostname not in _LOOPBACK:
                    raise UserError(f"{_host(url)} offers no TLS, and gets no password without: use smtps://")
            if place.username:
                server.login(unquote(place.username), unquote(place.password or ""))
            server.send_message(_letter(message, settings))
    except (OSError, smtplib.SMTPException) as error:
        raise UserError(f"{_host(url)} did not take it ({_reason(error)})") from None


def _letter(message: Message, settings: NotifySettings) -> EmailMessage:
    letter = EmailMessage()
    letter["Subject"] = shown(message.subject)
    letter["From"] = settings.email_from
    letter["To"] = ", ".join(settings.email_to)
    letter["Date"] = formatdate()
    letter["Message-ID"] = f"<{sha256(message.key.encode())[:32]}@vabal.invalid>"
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(f"{_whole(message)}\n")
    return letter


# --- a command of one's own ------------------------------------------------------------------------------------------


def _run(message: Message, folder: Path) -> None:
    """The text on its standard input, the rest in its environment."""
    try:
        words = shlex.split(_given(COMMAND))
    except ValueError as error:
        raise UserError(f"{COMMAND} cannot be read: {error}") from None
    told: Mapping[str, str] = {f"VABAL_{name.upper()}": value or "" for name, value in asdict(message).items()}
    told = {name: value.replace("\0", "") for name, value in told.items()}
    given = f"{message.subject}\n{_whole(message)}\n".encode("utf-8", errors="backslashreplace")
    try:
        done = processes.run(words, folder=folder, environment={**os.environ, **told}, limit=_patience(), given=given)
    except (OSError, TimeoutError) as error:
        raise UserError(_reason(error)) from None
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", errors="replace").split())[-_WORDS_OF_A_COMMAND:]
        raise UserError(f"{words[0]} ended with {done.returncode}{': ' if said else ''}{said}")
