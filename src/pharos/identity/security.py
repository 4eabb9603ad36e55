"""Security events: what an administrator may want to know of sign-ins, tokens and keys (F-34)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import SecurityEvent, User
from pharos.infra.ids import TenantId
from pharos.infra.redact import anonymise_ip

Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
MAX_AGENT = 200
EVENT_TYPES = (
    "account_locked",
    "account_unlocked",
    "api_key_created",
    "api_key_revoked",
    "backup_downloaded",
    "backup_link_made",
    "budget_nearly_spent",
    "budget_spent",
    "data_restored",
    "email_change_failed",
    "email_changed",
    "encryption_key_lost",
    "encryption_key_rotated",
    "invitation_failed",
    "login_failed",
    "magic_link_failed",
    "magic_link_requested",
    "magic_link_verified",
    "new_device_login",
    "password_changed",
    "password_reset_failed",
    "password_reset_requested",
    "secret_disabled",
    "secret_enabled",
    "secret_removed",
    "secret_saved",
    "signing_key_rotated",
    "spend_anomalous",
    "superadmin_changed",
    "suspicious_refresh",
    "token_family_revoked",
    "token_reuse_detected",
)
"""All there are: a filter by any other would find nothing and look like peace."""


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
    """Add one event; `event_type` is one of `EVENT_TYPES`. Never secrets or content.

    `ip` is anonymised here (C-15); `agent` is the `User-Agent` header, cut to 200 characters.
    """
    if event_type not in EVENT_TYPES:
        raise ValueError(f"{event_type} is missing from EVENT_TYPES")
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


@dataclass(frozen=True)
class SecurityLine:
    """One event as it is shown; `ip` is anonymised, `user_id` None where nobody was known.

    `person`: the present address of whom it concerns, "" where nobody was known.
    """

    id: UUID
    at: datetime
    event_type: str
    severity: str
    user_id: UUID | None
    person: str
    subject: str
    ip: str
    agent: str
    detail: dict[str, object]


@dataclass(frozen=True)
class SecurityCount:
    """How often a type of event happened, and when last."""

    event_type: str
    events: int
    last_at: datetime


async def list_security_events(
    session: AsyncSession,
    *,
    since: datetime | None = None,
    event_type: str | None = None,
    severity: Severity | None = None,
    person: str | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[SecurityLine]:
    """Events of the tenant, newest first; `severity` is the least one shown, `before` the last id of a page.

    `person` is the e-mail address of whom they concern.
    """
    events = select(SecurityEvent, User.email).outerjoin(User, User.id == SecurityEvent.user_id)
    events = events.order_by(SecurityEvent.id.desc()).limit(limit)
    if since is not None:
        events = events.where(SecurityEvent.created_at >= since)
    if event_type is not None:
        events = events.where(SecurityEvent.event_type == event_type)
    if severity is not None:
        events = events.where(SecurityEvent.severity.in_(SEVERITIES[SEVERITIES.index(severity) :]))
    if person is not None:
        events = events.where(User.email == person.strip().lower())
    if before is not None:
        events = events.where(SecurityEvent.id < before)
    found = await session.execute(events)
    return [
        SecurityLine(
            row.id,
            row.created_at,
            row.event_type,
            row.severity,
            row.user_id,
            email or "",
            row.subject,
            row.ip,
            row.agent,
            row.detail,
        )
        for row, email in found
    ]


async def count_security_events(session: AsyncSession, *, since: datetime) -> list[SecurityCount]:
    """Events of the tenant by type since then, the most frequent first (AU-03)."""
    events = func.count().label("events")
    counted = await session.execute(
        select(SecurityEvent.event_type, events, func.max(SecurityEvent.created_at))
        .where(SecurityEvent.created_at >= since)
        .group_by(SecurityEvent.event_type)
        .order_by(events.desc(), SecurityEvent.event_type)
    )
    return [SecurityCount(event_type, int(count), last_at) for event_type, count, last_at in counted]
