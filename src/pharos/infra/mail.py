"""Mail on its way: stored in the transaction of its cause, its text sealed, sent by a job that tries for two days."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import Select, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import Conflict, NotFound
from pharos.infra.ids import TenantId, new_id
from pharos.infra.jobs import drop_waiting, enqueue
from pharos.infra.models import Mail
from pharos.infra.smtp import OutgoingMail
from pharos.infra.vault import Vault

SEND_TASK = "mail:send"
SECRET_KIND = "mail"  # noqa: S105 - a kind of secret, not one
LONGEST_WAIT_SECONDS = 900.0
MOST_ATTEMPTS = 200
"""Two days of quarters of an hour: a server that is away over a weekend is waited for."""

State = Literal["queued", "sent", "failed"]


async def queue_mail(
    session: AsyncSession, vault: Vault, *, tenant_id: TenantId, recipient: str, subject: str, text: str
) -> UUID:
    """Store a mail and the job that sends it; both exist exactly if the session's transaction commits.

    The text is sealed while it waits and removed once it is sent: it may hold a one-time link.
    """
    mail = Mail(tenant_id=tenant_id, id=new_id(), recipient=recipient, subject=" ".join(subject.split()))
    mail.body_secret_id = await vault.seal(session, tenant_id=tenant_id, kind=SECRET_KIND, name=str(mail.id), text=text)
    session.add(mail)
    await session.flush()
    await _send_later(session, tenant_id, mail.id)
    return mail.id


async def find_waiting(
    session: AsyncSession, vault: Vault, *, tenant_id: TenantId, mail_id: UUID
) -> OutgoingMail | None:
    """The mail with its text, or None when it is no longer to be sent."""
    mail = await session.get(Mail, (tenant_id, mail_id))
    if mail is None or mail.state != "queued" or mail.body_secret_id is None:
        return None
    text = await vault.open(session, tenant_id=tenant_id, secret_id=mail.body_secret_id)
    return OutgoingMail(
        id=mail.id, recipient=mail.recipient, subject=mail.subject, text=text, written_at=mail.created_at
    )


async def find_text(session: AsyncSession, vault: Vault, *, tenant_id: TenantId, mail_id: UUID) -> str | None:
    """The text of a mail that waits or has failed; None once it is sent. Raises `NotFound`."""
    mail = await get_mail(session, tenant_id=tenant_id, mail_id=mail_id)
    if mail.body_secret_id is None:
        return None
    return await vault.open(session, tenant_id=tenant_id, secret_id=mail.body_secret_id)


async def note_sent(session: AsyncSession, vault: Vault, *, tenant_id: TenantId, mail_id: UUID) -> None:
    """The mail is out of our hands: its text goes, the row stays as the proof."""
    mail = await get_mail(session, tenant_id=tenant_id, mail_id=mail_id)
    secret_id, mail.body_secret_id = mail.body_secret_id, None
    mail.state, mail.reason, mail.attempts, mail.sent_at = "sent", None, mail.attempts + 1, datetime.now(UTC)
    await session.flush()
    if secret_id is not None:
        await vault.remove(session, tenant_id=tenant_id, secret_id=secret_id)


async def note_delayed(session: AsyncSession, *, tenant_id: TenantId, mail_id: UUID, reason: str) -> State:
    """The server does not take the mail now: try again after 1, 4, 16 … 900 seconds, and give it up after two days."""
    mail = await get_mail(session, tenant_id=tenant_id, mail_id=mail_id)
    wait_seconds = min(4.0 ** min(mail.attempts, 8), LONGEST_WAIT_SECONDS)
    mail.attempts += 1
    mail.reason = reason
    if mail.attempts >= MOST_ATTEMPTS:
        mail.state = "failed"
        return "failed"
    await _send_later(session, tenant_id, mail_id, after_seconds=wait_seconds)
    return "queued"


async def note_failed(session: AsyncSession, *, tenant_id: TenantId, mail_id: UUID, reason: str) -> None:
    """The mail will not be tried again by itself; `retry_mail` can. Its text stays sealed until then."""
    failed = update(Mail).where(Mail.tenant_id == tenant_id, Mail.id == mail_id, Mail.state == "queued")
    await session.execute(failed.values(state="failed", reason=reason, attempts=Mail.attempts + 1))


async def note_texts_lost(session: AsyncSession, secret_ids: Select[UUID], *, reason: str) -> None:
    """Mails whose text is one of these secrets can never be sent; whoever waits for one has to ask again."""
    waiting = update(Mail).where(Mail.body_secret_id.in_(secret_ids), Mail.state == "queued")
    await session.execute(waiting.values(state="failed", reason=reason))


async def retry_mail(session: AsyncSession, *, tenant_id: TenantId, mail_id: UUID) -> None:
    """Send a failed or waiting mail now. Raises `NotFound`, or `Conflict` for one whose text is gone."""
    mail = await get_mail(session, tenant_id=tenant_id, mail_id=mail_id)
    if mail.state == "sent":
        raise Conflict("This mail is sent, and its text is gone. Let its cause make a new one.", code="mail_sent")
    if mail.body_secret_id is None:
        raise Conflict("The text of this mail is lost. Let its cause make a new one.", code="mail_text_lost")
    again = update(Mail).where(Mail.tenant_id == tenant_id, Mail.id == mail_id)
    await session.execute(again.values(state="queued", attempts=0, reason=None))
    # The job that waits for its turn holds the mail's lock, so a new one would stand behind it.
    await drop_waiting(session, lock=_lock(mail_id))
    await _send_later(session, tenant_id, mail_id)


async def recover_mails(session: AsyncSession, *, tenant_id: TenantId) -> int:
    """Queue every waiting mail of the tenant that no live job knows of; returns how many."""
    lost = select(Mail.id).where(
        Mail.tenant_id == tenant_id,
        Mail.state == "queued",
        text(
            "not exists (select from procrastinate_jobs job where job.lock = 'mail:' || mails.id "
            "and job.status in ('todo', 'doing'))"
        ),
    )
    found = (await session.execute(lost.with_for_update(skip_locked=True))).scalars().all()
    for mail_id in found:
        await _send_later(session, tenant_id, mail_id)
    return len(found)


async def list_mails(
    session: AsyncSession, *, tenant_id: TenantId, state: State | None = None, limit: int = 100
) -> list[Mail]:
    """Mails of a tenant, newest first."""
    found = select(Mail).where(Mail.tenant_id == tenant_id).order_by(Mail.id.desc()).limit(limit)
    if state is not None:
        found = found.where(Mail.state == state)
    return list((await session.execute(found)).scalars())


async def get_mail(session: AsyncSession, *, tenant_id: TenantId, mail_id: UUID) -> Mail:
    """One mail. Raises `NotFound`."""
    mail = await session.get(Mail, (tenant_id, mail_id))
    if mail is None:
        raise NotFound("There is no such mail. `pharos mail list` shows them all.", code="no_such_mail")
    return mail


async def _send_later(session: AsyncSession, tenant_id: TenantId, mail_id: UUID, *, after_seconds: float = 0.0) -> None:
    # The lock keeps two jobs of one mail apart, so that a retry by hand cannot send it twice.
    ids = {"tenant_id": str(tenant_id), "mail_id": str(mail_id)}
    await enqueue(session, SEND_TASK, lock=_lock(mail_id), after_seconds=after_seconds, **ids)


def _lock(mail_id: UUID) -> str:
    return f"mail:{mail_id}"
