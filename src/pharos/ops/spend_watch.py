"""Spend that is unlike the days before, or near its budget, told to a tenant's administrators as a security event."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import SecurityEvent
from pharos.identity.security import Severity, record_security_event
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.providers.models import LlmCall, TenantModelSettings
from pharos.providers.spend import read_spend

log = get_logger(__name__)

KEPT = timedelta(days=400)
"""Calls are kept for a year and a month: this one can be compared with the same of last year."""


async def watch_spend(session: AsyncSession, tenant_id: TenantId) -> None:
    """Tell of a day that costs far more than the week before it, once a day, and of a budget that is nearly spent or
    spent, once a month each; forget calls that are older than `KEPT`."""
    spend = await read_spend(session)
    budget = (await session.execute(select(TenantModelSettings))).scalar_one_or_none()
    if spend.is_anomalous:
        await _tell_once(
            session,
            tenant_id,
            "spend_anomalous",
            since="day",
            severity="high",
            today_micro=spend.today_micro,
            dearest_day_micro=spend.dearest_day_micro,
        )
    if budget is not None:
        for event_type, bound, severity in (
            ("budget_nearly_spent", budget.budget_warn_micro, "medium"),
            ("budget_spent", budget.budget_stop_micro, "high"),
        ):
            if bound is not None and spend.month_micro >= bound:
                told = {"spent_micro": spend.month_micro, "budget_micro": bound}
                await _tell_once(session, tenant_id, event_type, since="month", severity=severity, **told)  # type: ignore[arg-type]
    await session.execute(delete(LlmCall).where(LlmCall.at < func.now() - KEPT))


async def _tell_once(
    session: AsyncSession, tenant_id: TenantId, event_type: str, *, since: str, severity: Severity, **facts: Any
) -> None:
    begun = func.date_trunc(since, func.now(), "UTC")
    told = select(SecurityEvent.id).where(SecurityEvent.event_type == event_type, SecurityEvent.created_at >= begun)
    if (await session.execute(told.limit(1))).first() is None:
        log.warning("spend.told", event_type=event_type, tenant_id=str(tenant_id), **facts)
        await record_security_event(
            session, tenant_id, event_type=event_type, severity=severity, subject=f"tenant:{tenant_id}", **facts
        )
