"""What was mailed to somebody in a test, read before it is sent."""

from __future__ import annotations

import re

from sqlalchemy import select

from pharos.infra.ids import TenantId
from pharos.infra.mail import find_waiting
from pharos.infra.models import Mail
from pharos.infra.smtp import OutgoingMail
from pharos.runtime import Runtime


async def mails_to(runtime: Runtime, tenant_id: TenantId, address: str) -> list[OutgoingMail]:
    """Mails of a tenant to one address that wait, oldest first."""
    async with runtime.db.transaction(tenant_id) as session:
        ids = (await session.execute(select(Mail.id).where(Mail.recipient == address).order_by(Mail.id))).scalars()
        found = [await find_waiting(session, runtime.vault, tenant_id=tenant_id, mail_id=one) for one in list(ids)]
    return [mail for mail in found if mail is not None]


async def link_to(runtime: Runtime, tenant_id: TenantId, address: str) -> str:
    """The link in the newest mail to somebody, without the address of the server."""
    text = (await mails_to(runtime, tenant_id, address))[-1].text
    found = re.search(rf"^{re.escape(runtime.settings.base_url)}(/\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


async def token_to(runtime: Runtime, tenant_id: TenantId, address: str) -> str:
    """The one-time token in the newest mail to somebody."""
    return (await link_to(runtime, tenant_id, address)).partition("token=")[2]
