"""Mail through a real SMTP server on loopback, and into files where none is set."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import select, text
from tests.conftest import RunJobs, make_runtime
from tests.make import MadeTenant
from tests.smtp_server import Post, smtp_server, text_of

from pharos.identity import tasks
from pharos.infra.db import Database
from pharos.infra.db_system import system_transaction
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Conflict
from pharos.infra.mail import MOST_ATTEMPTS, find_waiting, get_mail, list_mails, note_delayed, queue_mail, retry_mail
from pharos.infra.models import Mail, Secret
from pharos.infra.settings import Settings
from pharos.infra.smtp import MailDelayed, MailFailed, outbox_file, read_outbox, sender_of, server_of
from pharos.runtime import Runtime

SENDER = "Pharos of Örebro <noreply@pharos.example>"


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture
def port(post: Post) -> Iterator[int]:
    with smtp_server(post) as port:
        yield port


def with_server(settings: Settings, db: Database, port: int, *, user: str = "", sender: str | None = SENDER) -> Runtime:
    changes = {"smtp_url": f"smtp://{user}127.0.0.1:{port}", "mail_from": sender}
    return make_runtime(Settings(_env_file=None, **{**settings.model_dump(), **changes}), db)


@pytest.fixture
async def mailing(settings: Settings, db: Database, port: int, run_jobs: RunJobs) -> Runtime:
    """A runtime that sends to the server; nothing of earlier tests is queued."""
    assert run_jobs
    return with_server(settings, db, port)


async def write(runtime: Runtime, tenant: MadeTenant, recipient: str = "ada@example.org", **mail: str) -> UUID:
    words = {"subject": "Your link", "text": "Open https://x.example/a?token=abc\n"} | mail
    async with runtime.db.transaction(tenant.id) as session:
        return await queue_mail(session, runtime.vault, tenant_id=tenant.id, recipient=recipient, **words)


async def read(runtime: Runtime, tenant: MadeTenant, mail_id: UUID) -> Mail:
    async with runtime.db.transaction(tenant.id) as session:
        return await get_mail(session, tenant_id=tenant.id, mail_id=mail_id)


async def make_due(runtime: Runtime) -> None:
    """The wait between two tries is over."""
    async with system_transaction(runtime.db) as session:
        await session.execute(text("update procrastinate_jobs set scheduled_at = null where status = 'todo'"))


async def waiting_jobs(runtime: Runtime) -> list[float]:
    """Seconds until each job of the queue may start, rounded."""
    due = "select coalesce(extract(epoch from scheduled_at - now()), 0) from procrastinate_jobs where status = 'todo'"
    async with system_transaction(runtime.db) as session:
        return [round(float(row)) for row in (await session.execute(text(due))).scalars()]


async def test_a_mail_arrives_whole_and_its_text_is_kept_nowhere(
    mailing: Runtime, tenant: MadeTenant, post: Post, run_jobs: RunJobs
) -> None:
    link = "https://pharos.example/auth/magic-link?token=" + "x" * 150
    mail_id = await write(mailing, tenant, subject="Grüße an Ada", text=f"Öffne diesen Link:\n\n{link}\n")
    await run_jobs(mailing)
    (message,) = post.received
    assert (message["To"], message["Subject"]) == ("ada@example.org", "Grüße an Ada")
    assert message["From"] == SENDER
    assert text_of(message).splitlines() == ["Öffne diesen Link:", "", link]
    assert message["Message-ID"] == f"<{mail_id}@pharos.example>"
    mail = await read(mailing, tenant, mail_id)
    assert (mail.state, mail.attempts, mail.reason, mail.body_secret_id) == ("sent", 1, None, None)
    assert mail.sent_at is not None
    async with mailing.db.transaction(tenant.id) as session:
        assert (await session.execute(select(Secret.name).where(Secret.kind == "mail"))).all() == []


async def test_a_mail_exists_only_if_its_cause_does(mailing: Runtime, tenant: MadeTenant) -> None:
    async def fail() -> None:
        async with mailing.db.transaction(tenant.id) as session:
            words = {"recipient": "ada@example.org", "subject": "Hello", "text": "Hello"}
            await queue_mail(session, mailing.vault, tenant_id=tenant.id, **words)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    async with mailing.db.transaction(tenant.id) as session:
        assert await list_mails(session, tenant_id=tenant.id) == []
    assert await waiting_jobs(mailing) == []


async def test_what_waits_is_not_readable_in_the_database(mailing: Runtime, tenant: MadeTenant) -> None:
    await write(mailing, tenant, text="a one-time link")
    async with system_transaction(mailing.db) as session:
        assert "one-time" not in str((await session.execute(text("select args::text from procrastinate_jobs"))).all())
    async with mailing.db.transaction(tenant.id) as session:
        rows = (await session.execute(text("select m::text || s::text from mails m, secrets s"))).scalars().all()
    assert rows
    assert "one-time" not in "".join(rows)


@pytest.mark.contract("ID-16", part="an outage of mail delays and loses nothing")
@pytest.mark.parametrize("stage", ["to_sender", "to_recipient", "to_data"])
async def test_a_refusal_for_now_is_tried_again(
    mailing: Runtime, tenant: MadeTenant, post: Post, run_jobs: RunJobs, stage: str
) -> None:
    getattr(post, stage).append("451 4.7.1 Greylisted, come back later")
    mail_id = await write(mailing, tenant)
    await run_jobs(mailing)
    mail = await read(mailing, tenant, mail_id)
    assert (mail.state, mail.attempts) == ("queued", 1)
    assert "Greylisted" in str(mail.reason)
    assert await waiting_jobs(mailing) == [1]
    await make_due(mailing)
    await run_jobs(mailing)
    assert (await read(mailing, tenant, mail_id)).state == "sent"
    assert len(post.received) == 1


@pytest.mark.parametrize("stage", ["to_sender", "to_recipient", "to_data"])
async def test_a_refusal_for_good_is_kept_with_its_reason_and_can_be_tried_by_hand(
    mailing: Runtime, tenant: MadeTenant, post: Post, run_jobs: RunJobs, stage: str
) -> None:
    getattr(post, stage).append("550 5.1.1 No such mailbox here")
    mail_id = await write(mailing, tenant)
    await run_jobs(mailing)
    mail = await read(mailing, tenant, mail_id)
    assert (mail.state, mail.attempts, mail.sent_at) == ("failed", 1, None)
    assert "550" in str(mail.reason)
    assert "No such mailbox" in str(mail.reason)
    assert await waiting_jobs(mailing) == []
    async with mailing.db.transaction(tenant.id) as session:
        await retry_mail(session, tenant_id=tenant.id, mail_id=mail_id)
    await run_jobs(mailing)
    assert (await read(mailing, tenant, mail_id)).state == "sent"
    async with mailing.db.transaction(tenant.id) as session:
        with pytest.raises(Conflict):
            await retry_mail(session, tenant_id=tenant.id, mail_id=mail_id)


@pytest.mark.contract("ID-16", part="an outage of mail delays and loses nothing")
async def test_a_server_that_is_down_is_waited_for(
    settings: Settings, db: Database, tenant: MadeTenant, post: Post, run_jobs: RunJobs
) -> None:
    port = free_port()
    mailing = with_server(settings, db, port)
    mail_id = await write(mailing, tenant)
    for attempts in (1, 2, 3):
        await run_jobs(mailing)
        mail = await read(mailing, tenant, mail_id)
        assert (mail.state, mail.attempts) == ("queued", attempts)
        assert await waiting_jobs(mailing) == [4 ** (attempts - 1)]
        await make_due(mailing)
    with smtp_server(post, port=port):
        await run_jobs(mailing)
    assert (await read(mailing, tenant, mail_id)).state == "sent"


async def test_a_mail_is_not_tried_for_ever(mailing: Runtime, tenant: MadeTenant) -> None:
    mail_id = await write(mailing, tenant)
    (await read(mailing, tenant, mail_id)).attempts = 0
    async with mailing.db.transaction(tenant.id) as session:
        (await get_mail(session, tenant_id=tenant.id, mail_id=mail_id)).attempts = MOST_ATTEMPTS - 2
    for state in ("queued", "failed"):
        async with mailing.db.transaction(tenant.id) as session:
            assert await note_delayed(session, tenant_id=tenant.id, mail_id=mail_id, reason="down") == state


async def test_a_retry_does_not_stand_behind_the_waiting_try(
    mailing: Runtime, tenant: MadeTenant, post: Post, run_jobs: RunJobs
) -> None:
    post.to_data.append("451 later")
    mail_id = await write(mailing, tenant)
    await run_jobs(mailing)
    async with mailing.db.transaction(tenant.id) as session:
        await retry_mail(session, tenant_id=tenant.id, mail_id=mail_id)
    await run_jobs(mailing)
    assert (await read(mailing, tenant, mail_id)).state == "sent"
    assert await waiting_jobs(mailing) == []


async def test_a_worker_killed_after_the_server_took_the_mail_sends_the_same_mail_again(
    mailing: Runtime, tenant: MadeTenant, post: Post
) -> None:
    mail_id = await write(mailing, tenant)
    async with mailing.db.transaction(tenant.id) as session:
        waiting = await find_waiting(session, mailing.vault, tenant_id=tenant.id, mail_id=mail_id)
    assert waiting is not None
    await mailing.mail.deliver(waiting)  # and then the worker dies
    await tasks.deliver_mail(mailing, tenant.id, mail_id=mail_id)
    await tasks.deliver_mail(mailing, tenant.id, mail_id=mail_id)
    first, second = post.received
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]


async def test_a_mail_that_kills_its_workers_is_failed_with_words(mailing: Runtime, tenant: MadeTenant) -> None:
    mail_id = await write(mailing, tenant)
    await tasks.mark_mail_given_up(mailing, tenant_id=str(tenant.id), mail_id=str(mail_id))
    mail = await read(mailing, tenant, mail_id)
    assert mail.state == "failed"
    assert "pharos mail retry" in str(mail.reason)


@pytest.mark.parametrize("recipient", ["ada@example.org\r\nBcc: eve@example.org", "ada@example.org, eve@example.org"])
async def test_no_header_can_be_smuggled_into_a_mail(
    mailing: Runtime, tenant: MadeTenant, post: Post, run_jobs: RunJobs, recipient: str
) -> None:
    smuggled = await write(mailing, tenant, recipient)
    await write(mailing, tenant, subject="Hello\r\nBcc: eve@example.org\r\n\r\nBody")
    await run_jobs(mailing)
    assert (await read(mailing, tenant, smuggled)).state == "failed"
    (message,) = post.received
    assert message["Bcc"] is None
    assert message["Subject"] == "Hello Bcc: eve@example.org Body"


async def test_without_a_server_mail_lies_as_files_only_their_owner_reads(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    link = "http://localhost:8000/auth/magic-link?token=" + "y" * 150
    mail_id = await write(runtime, tenant, text=f"{link}\nGrüße\n")
    await run_jobs()
    file = outbox_file(runtime.settings, mail_id)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert read_outbox(runtime.settings, mail_id).splitlines() == [link, "Grüße"]
    assert link in file.read_text()  # whole, so that it can be copied
    assert (await read(runtime, tenant, mail_id)).state == "sent"


@pytest.mark.contract("ID-16", part="settings that cannot work, and a sender or login the server refuses")
async def test_mail_that_cannot_leave_is_said_before_anything_is_made(
    settings: Settings, db: Database, post: Post, port: int
) -> None:
    for sender in (None, "nobody", "Pharos <noreply@>", "a@b.example\r\nBcc: c@d.example", "<>"):
        with pytest.raises(MailFailed, match="PHAROS_MAIL_FROM"):
            await with_server(settings, db, port, sender=sender).mail.check()
    mailing = with_server(settings, db, port)
    post.to_sender.append("553 5.7.1 Sender address rejected")
    for _ in range(2):  # the second time from memory
        with pytest.raises(MailFailed, match=r"noreply@pharos\.example"):
            await mailing.mail.check()
    assert post.received == []
    await with_server(settings, db, port).mail.check()
    silent = with_server(settings, db, free_port()).mail
    await silent.check()  # down is not wrong
    with pytest.raises(MailDelayed, match="does not answer"):
        await silent.probe()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate that this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    hour, names = timedelta(hours=1), x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - hour, now + hour)
    made = builder.add_extension(names, critical=False).sign(key, SHA256())
    file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key_file)
    return context


async def test_a_login_travels_encrypted_and_a_wrong_one_is_said(
    runtime: Runtime, tenant: MadeTenant, post: Post, certificate: ssl.SSLContext, run_jobs: RunJobs
) -> None:
    options: dict[str, Any] = {"authenticator": post.authenticate, "auth_required": True, "require_starttls": True}
    with smtp_server(post, tls_context=certificate, **options) as port:
        url = f"smtp://keeper:right%20%2F%20password@localhost:{port}"
        known, changes = runtime.settings.model_dump(), {"smtp_url": url, "mail_from": SENDER}
        mailing = make_runtime(Settings(_env_file=None, **{**known, **changes}), runtime.db)
        await write(mailing, tenant)
        await run_jobs(mailing)
        assert post.logins == [("keeper", "right / password")]
        assert len(post.received) == 1
        changes["smtp_url"] = url.replace("right", "wrong")
        wrong = make_runtime(Settings(_env_file=None, **{**known, **changes}), runtime.db)
        with pytest.raises(MailFailed, match="login"):
            await wrong.mail.check()
        mail_id = await write(wrong, tenant)
        await run_jobs(wrong)
        assert (await read(wrong, tenant, mail_id)).state == "queued"  # the operator will mend it


async def test_no_password_is_told_to_a_server_that_cannot_encrypt(
    settings: Settings, db: Database, post: Post, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.infra.smtp.THIS_MACHINE", set())
    changes = {"smtp_url": f"smtp://me:pw@localhost:{port}", "mail_from": SENDER}
    far = make_runtime(Settings(_env_file=None, **{**settings.model_dump(), **changes}), db)
    with pytest.raises(MailDelayed, match="STARTTLS"):
        await far.mail.probe()
    assert post.logins == []


def test_an_address_of_a_server_says_how_to_reach_it(settings: Settings) -> None:
    def server(url: str) -> tuple[object, ...]:
        found = server_of(settings.model_copy(update={"smtp_url": Settings(_env_file=None, smtp_url=url).smtp_url}))
        assert found is not None
        return found.host, found.port, found.username, found.password, found.tls, found.start_tls

    assert server("smtp://mail.example") == ("mail.example", 587, None, None, False, None)
    assert server("smtp://me%40x:a%2Fb@mail.example:2525") == ("mail.example", 2525, "me@x", "a/b", False, True)
    assert server("smtps://me:pw@mail.example") == ("mail.example", 465, "me", "pw", True, False)
    for wrong in ("mail.example", "http://mail.example", "smtp://", "smtp://mail.example:port"):
        with pytest.raises(MailFailed, match="PHAROS_SMTP_URL"):
            server(wrong)


@pytest.mark.contract("PB-09")
def test_the_sender_has_a_name_and_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_FROM", "The Keepers <keepers@example.org>")
    sender = sender_of(Settings(_env_file=None))
    assert sender is not None
    assert (sender.display_name, sender.addr_spec) == ("The Keepers", "keepers@example.org")


def test_the_password_of_the_server_can_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "smtp_url"
    file.write_text("smtps://me:pw@mail.example\n")
    monkeypatch.setenv("PHAROS_SMTP_URL_FILE", str(file))
    server = server_of(Settings(_env_file=None))
    assert server is not None
    assert server.password == "pw"
    assert "pw@" not in repr(Settings(_env_file=None))
