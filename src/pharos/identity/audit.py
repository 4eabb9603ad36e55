"""The audit log: what was done and by whom, in the transaction that did it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
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


@dataclass(frozen=True)
class AuditLine:
    """One entry of the log as it is shown."""

    id: UUID
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, object]


async def list_audit(
    session: AsyncSession,
    *,
    since: datetime | None = None,
    actor: str | None = None,
    action: str | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[AuditLine]:
    """Entries of the tenant, newest first; `before` is the last id of the page before.

    An `action` that ends with a dot, such as "project.", stands for all that begin with it.
    """
    entries = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if since is not None:
        entries = entries.where(AuditEntry.at >= since)
    if actor is not None:
        entries = entries.where(AuditEntry.actor == actor)
    if action is not None:
        begins = AuditEntry.action.startswith(action, autoescape=True)
        entries = entries.where(begins if action.endswith(".") else AuditEntry.action == action)
    if before is not None:
        entries = entries.where(AuditEntry.id < before)
    found = (await session.execute(entries)).scalars()
    return [AuditLine(row.id, row.at, row.actor, row.action, row.subject, row.detail) for row in found]
