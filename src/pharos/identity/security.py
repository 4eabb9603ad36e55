"""Security events: what an administrator may want to know of sign-ins, tokens and keys (F-34)."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import SecurityEvent
from pharos.infra.ids import TenantId
from pharos.infra.logs import anonymise_ip

Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
MAX_AGENT = 200


async def record_security_event(
    session: AsyncSession,
    tenant_id: TenantId,
    *,
    event_type: str,
    severity: Severity,
    user_id: UUID | None = None,
    subject: str = "",
    ip: str = "",
    agent: str = "",
    **detail: object,
) -> None:
    """Add one event; `event_type` is words joined by `_`, such as "account_locked". Never secrets or content.

    `ip` is anonymised here (C-15); `agent` is the `User-Agent` header, cut to 200 characters.
    """
    session.add(
        SecurityEvent(
            tenant_id=tenant_id,
            event_type=event_type,
            severity=severity,
            user_id=user_id,
            subject=subject,
            ip=anonymise_ip(ip) if ip else "",
            agent=agent[:MAX_AGENT],
            detail=detail,
        )
    )
    await session.flush()
