"""Identity's jobs: mail on its way out."""

from __future__ import annotations

from uuid import UUID

from procrastinate import JobContext

from pharos.infra.errors import PharosError
from pharos.infra.ids import TenantId
from pharos.infra.job_queue import durable_task
from pharos.infra.jobs import MAX_ATTEMPTS
from pharos.infra.logs import get_logger
from pharos.infra.mail import SEND_TASK, find_waiting, note_delayed, note_failed, note_sent
from pharos.infra.smtp import MailDelayed, MailFailed, MailRefused
from pharos.runtime import Runtime

log = get_logger(__name__)

GAVE_UP = "Sending it stopped the worker again and again. `pharos mail retry ID` tries once more."


@durable_task(SEND_TASK)
async def send_mail(context: JobContext, *, tenant_id: str, mail_id: str) -> None:
    """Send one mail; on the last attempt an error nobody foresaw becomes the mail's reason."""
    runtime: Runtime = context.additional_context["runtime"]
    tenant, mail = TenantId(UUID(tenant_id)), UUID(mail_id)
    try:
        await deliver_mail(runtime, tenant, mail_id=mail)
    except Exception as error:
        if context.job.attempts + 1 >= MAX_ATTEMPTS:
            reason = error.message if isinstance(error, PharosError) else f"{GAVE_UP} ({type(error).__name__})"
            await mark_mail_given_up(runtime, tenant_id=tenant_id, mail_id=mail_id, reason=reason)
        raise


async def deliver_mail(runtime: Runtime, tenant_id: TenantId, *, mail_id: UUID) -> None:
    """Hand a waiting mail over and note how it went; does nothing for one that is sent or failed.

    Killed between the handing over and the note, it sends the mail again, with the same Message-ID.
    """
    async with runtime.db.transaction(tenant_id) as session:
        mail = await find_waiting(session, runtime.vault, tenant_id=tenant_id, mail_id=mail_id)
    if mail is None:
        return
    try:
        await runtime.mail.deliver(mail)
    except (MailDelayed, MailFailed) as error:
        async with runtime.db.transaction(tenant_id) as session:
            await note_delayed(session, tenant_id=tenant_id, mail_id=mail_id, reason=error.message)
        log.warning("mail.delayed", mail_id=str(mail_id), error=error.code)
        return
    except MailRefused as error:
        async with runtime.db.transaction(tenant_id) as session:
            await note_failed(session, tenant_id=tenant_id, mail_id=mail_id, reason=error.message)
        log.warning("mail.refused", mail_id=str(mail_id))
        return
    async with runtime.db.transaction(tenant_id) as session:
        await note_sent(session, runtime.vault, tenant_id=tenant_id, mail_id=mail_id)
    log.info("mail.sent", mail_id=str(mail_id))


async def mark_mail_given_up(runtime: Runtime, *, tenant_id: str, mail_id: str, reason: str = GAVE_UP) -> None:
    """Fail the mail of a job that will not be tried again."""
    async with runtime.db.transaction(TenantId(UUID(tenant_id))) as session:
        await note_failed(session, tenant_id=TenantId(UUID(tenant_id)), mail_id=UUID(mail_id), reason=reason)
