"""The audit log: what was done and by whom, in the transaction that did it."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import AuditEntry
from pharos.identity.principal import Principal


async def record_audit(
    session: AsyncSession, principal: Principal, *, action: str, subject: str, **detail: object
) -> None:
    """Add one entry; `action` is a past-tense `noun.verb`, `subject` a `kind:id`. Never content or secrets."""
    session.add(
        AuditEntry(tenant_id=principal.tenant_id, actor=principal.name, action=action, subject=subject, detail=detail)
    )
    await session.flush()
