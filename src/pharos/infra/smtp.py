"""How a mail leaves: to an SMTP server, or into a file below the data directory where none is set."""

from __future__ import annotations

import asyncio
import email
import ssl
import time
from dataclasses import dataclass
from datetime import datetime
from email.errors import HeaderParseError, MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import UUID

from pharos.infra.errors import Invalid, NotFound, Unavailable
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings

if TYPE_CHECKING:  # imported with the first mail: every command would pay a twentieth of its start for it
    import aiosmtplib

TIMEOUT_SECONDS = 20.0
CHECK_SECONDS = 3.0
"""How long a page may wait for the word of the mail server; a silent server only delays mail."""
CHECKED_FOR_SECONDS = 60.0
FILE_SENDER = Address("Pharos", "pharos", "localhost")
# Lines up to what SMTP allows: a shorter limit would break one-time links in two.
POLICY = SMTP.clone(max_line_length=998)
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}

HOW = "Set PHAROS_SMTP_URL and PHAROS_MAIL_FROM, see the runbook page “Mail that does not arrive”."

NO_SERVER = (
    "No mail server is set, so mail does not leave this machine: `pharos mail list` names it, "
    "`pharos mail show ID` prints it with its link."
)


class MailFailed(Unavailable):
    """Mail cannot be sent until somebody changes the settings or the mail server."""

    code = "mail_failed"
    http_status = 502


class MailRefused(Invalid):
    """The server has refused this mail for good."""

    code = "mail_refused"


class MailDelayed(Unavailable):
    """The server does not take the mail now."""

    code = "mail_delayed"


@dataclass(frozen=True)
class OutgoingMail:
    """A mail as its cause wrote it."""

    id: UUID
    recipient: str
    subject: str
    text: str
    written_at: datetime


@dataclass(frozen=True)
class SmtpServer:
    """Where to send; `tls` from the first byte, otherwise STARTTLS as `start_tls` says (None: if it is offered)."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: bool
    start_tls: bool | None


class MailTransport:
    """The way out of this process; remembers for a minute what the server said of our sender."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._checked_at = float("-inf")
        self._verdict: str | None = None

    async def check(self) -> None:
        """Raise `MailFailed` when no mail could leave: settings that cannot work, or a sender the server refuses.

        A server that does not answer is no failure: mail waits for it.
        """
        server, sender = _settings_of(self._settings)
        if server is None:
            return
        if time.monotonic() - self._checked_at > CHECKED_FOR_SECONDS:
            self._verdict = await _verdict(server, sender)
            self._checked_at = time.monotonic()
        if self._verdict is not None:
            raise MailFailed(self._verdict)

    async def probe(self) -> str:
        """How mail leaves, in words for the operator. Raises `MailFailed`, or `MailDelayed` for a silent server."""
        server, sender = _settings_of(self._settings)
        if server is None:
            return f"No mail server is set: mail lies as files in {self._settings.data_dir / 'outbox'}."
        await _greet(server, sender, timeout_seconds=TIMEOUT_SECONDS)
        return f"{server.host}:{server.port} takes mail of {sender}."

    async def deliver(self, mail: OutgoingMail) -> None:
        """Hand a mail over. Raises `MailRefused` for good, `MailDelayed` for now, `MailFailed` for wrong settings."""
        server, sender = _settings_of(self._settings)
        message = _message(sender, mail)
        if server is None:
            content = message.as_bytes().decode("utf-8")
            await asyncio.to_thread(write_secret, outbox_file(self._settings, mail.id), content)
            return
        import aiosmtplib

        try:
            async with _client(server, timeout_seconds=TIMEOUT_SECONDS) as client:
                await client.send_message(message, sender=sender.addr_spec, recipients=[mail.recipient])
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _refusal(error.recipients[0]) from error
        except aiosmtplib.SMTPResponseException as error:
            raise _refusal(error) from error
        except aiosmtplib.SMTPNotSupported as error:
            raise MailRefused(f"The mail server cannot do this: {error.message}") from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise _silence(server, error) from error


def outbox_file(settings: Settings, mail_id: UUID) -> Path:
    """Where a mail lies when no server is set; mode 0600, for it may hold a one-time link."""
    return settings.data_dir / "outbox" / f"{mail_id}.eml"


def lies_in_outbox(settings: Settings, mail_id: UUID) -> bool:
    """Whether a mail went into the file outbox instead of to a server, and is still there."""
    return outbox_file(settings, mail_id).exists()


def read_outbox(settings: Settings, mail_id: UUID) -> str:
    """The text of a mail in the file outbox. Raises `NotFound`."""
    if not lies_in_outbox(settings, mail_id):
        raise NotFound("This mail is sent, and its text is kept nowhere.", code="mail_text_gone")
    message = email.message_from_bytes(outbox_file(settings, mail_id).read_bytes(), policy=POLICY)
    return str(message.get_content())


def sender_of(settings: Settings) -> Address | None:
    """The visible sender, `Name <address>` or a bare address; None when it is unset. Raises `MailFailed`."""
    if not settings.mail_from:
        return None
    name, address = parseaddr(settings.mail_from)
    try:
        sender = Address(name, addr_spec=address)
    except (ValueError, MessageError, HeaderParseError, IndexError) as error:
        raise MailFailed(f"PHAROS_MAIL_FROM is no sender: “{settings.mail_from}”. {HOW}") from error
    if not sender.username or not sender.domain or not settings.mail_from.isprintable():
        raise MailFailed(f"PHAROS_MAIL_FROM is no sender: “{settings.mail_from}”. {HOW}")
    return sender


def server_of(settings: Settings) -> SmtpServer | None:
    """The server of PHAROS_SMTP_URL, or None for the file outbox. Raises `MailFailed` for what is no address.

    `smtps://` speaks TLS from the first byte (port 465); `smtp://` uses STARTTLS (port 587), which is required when a
    password would travel to another machine.
    """
    if settings.smtp_url is None:
        return None
    wrong = MailFailed(f"PHAROS_SMTP_URL must look like smtp://user:password@host:587 or smtps://host. {HOW}")
    try:
        url = urlsplit(settings.smtp_url.get_secret_value())
        port = url.port
    except ValueError as error:
        raise wrong from error
    if url.scheme not in {"smtp", "smtps"} or not url.hostname:
        raise wrong
    tls, is_here = url.scheme == "smtps", url.hostname in THIS_MACHINE
    return SmtpServer(
        host=url.hostname,
        port=port or (465 if tls else 587),
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        tls=tls,
        start_tls=False if tls else True if url.username and not is_here else None,
    )


def _settings_of(settings: Settings) -> tuple[SmtpServer | None, Address]:
    server, sender = server_of(settings), sender_of(settings)
    if server is not None and sender is None:
        raise MailFailed(f"PHAROS_MAIL_FROM is missing: a mail server is set, but no sender. {HOW}")
    return server, sender or FILE_SENDER


def _message(sender: Address, mail: OutgoingMail) -> EmailMessage:
    message = EmailMessage(policy=POLICY)
    try:
        message["From"] = sender
        message["To"] = Address(addr_spec=mail.recipient)
        message["Subject"] = mail.subject
    except (ValueError, MessageError, HeaderParseError, IndexError) as error:
        raise MailRefused("The recipient or the subject cannot stand in a mail.") from error
    message["Date"] = format_datetime(mail.written_at)
    # The same for every try: a mail that was sent twice, because we died before noting it, is shown once.
    message["Message-ID"] = f"<{mail.id}@{sender.domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message


def _client(server: SmtpServer, *, timeout_seconds: float) -> aiosmtplib.SMTP:
    import aiosmtplib

    return aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        username=server.username,
        password=server.password,
        use_tls=server.tls,
        start_tls=server.start_tls,
        tls_context=ssl.create_default_context(),
        timeout=timeout_seconds,
    )


async def _verdict(server: SmtpServer, sender: Address) -> str | None:
    """Why no mail of this sender could leave; None when it could, or when the server does not say."""
    try:
        await _greet(server, sender, timeout_seconds=CHECK_SECONDS)
    except MailFailed as error:
        return error.message
    except MailDelayed:
        return None
    return None


async def _greet(server: SmtpServer, sender: Address, *, timeout_seconds: float) -> None:
    """Ask the server whether it takes mail of this sender. Raises `MailFailed`, or `MailDelayed` when it is silent."""
    import aiosmtplib

    try:
        async with asyncio.timeout(timeout_seconds), _client(server, timeout_seconds=timeout_seconds) as client:
            await client.mail(sender.addr_spec)
            await client.rset()
    except aiosmtplib.SMTPAuthenticationError as error:
        raise MailFailed(f"The mail server refused the login of PHAROS_SMTP_URL ({error.code}). {HOW}") from error
    except aiosmtplib.SMTPResponseException as error:
        if error.code >= 500:
            words = f"The mail server refused the sender {sender.addr_spec} ({error.code}). {HOW}"
            raise MailFailed(words) from error
        raise _refusal(error) from error
    except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
        raise _silence(server, error) from error


def _silence(server: SmtpServer, error: Exception) -> MailDelayed:
    words = str(error) or "no answer in time"
    return MailDelayed(f"The mail server {server.host}:{server.port} does not answer: {words}")


def _refusal(error: aiosmtplib.SMTPResponseException) -> MailRefused | MailDelayed:
    import aiosmtplib

    words = f"The mail server answered {error.code}: {' '.join(str(error.message).split())[:300]}"
    # A wrong login is ours to mend, not the mail's fault: it waits.
    if error.code < 500 or isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return MailDelayed(words)
    return MailRefused(words)
