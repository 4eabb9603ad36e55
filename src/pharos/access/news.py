"""What happened since, for whoever may know it: the rows behind `/ws`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import and_, func, literal, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.projects import visible_projects
from pharos.identity.principal import Principal
from pharos.infra.models import AppEvent

CHANNEL = "app_events"
KEPT_SECONDS = 3600
"""How long a client may be away and still catch up; after that it loads its page anew."""
READ_AT_ONCE = 200

# The newest stays whatever its age: the next number is one more.
FORGET = text(
    """
    delete from app_events
    where at < now() - make_interval(secs => :seconds) and seq < (select max(seq) from app_events)
    """
)


@dataclass(frozen=True)
class News:
    """One event; `seq` counts from 1 in its tenant, and what others alone may know leaves a gap."""

    seq: int
    name: str
    at: datetime
    project_id: UUID | None
    data: dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """`at`: the number to read on from. `is_torn`: what came before it is lost, or never was in this database."""

    news: tuple[News, ...]
    at: int
    is_torn: bool = False


async def read_news(session: AsyncSession, principal: Principal, *, after: int | None) -> Reading:
    """At most 200 events after number `after`, filtered by what the principal may see now; None: only where we are."""
    bounds = select(func.coalesce(func.min(AppEvent.seq), 0), func.coalesce(func.max(AppEvent.seq), 0))
    oldest, newest = (await session.execute(bounds)).one()
    if after is None or after == newest:
        return Reading((), newest)
    if after > newest or after < oldest - 1:
        return Reading((), newest, is_torn=True)
    to_all = AppEvent.user_id.is_(None)
    may_know = or_(
        and_(AppEvent.user_id == principal.user_id, literal(principal.user_id is not None)),
        and_(to_all, AppEvent.project_id.in_(visible_projects(principal))),
        and_(to_all, AppEvent.project_id.is_(None), literal(principal.sees_everything)),
    )
    found = (
        select(AppEvent)
        .where(AppEvent.seq > after, AppEvent.seq <= newest, may_know)
        .order_by(AppEvent.seq)
        .limit(READ_AT_ONCE)
    )
    news = tuple(
        News(row.seq, row.name, row.at, row.project_id, row.data) for row in (await session.execute(found)).scalars()
    )
    return Reading(news, news[-1].seq if len(news) == READ_AT_ONCE else newest)


async def forget_news(session: AsyncSession, *, kept_seconds: float = KEPT_SECONDS) -> None:
    """Remove the tenant's events that are too old to catch up from."""
    await session.execute(FORGET, {"seconds": kept_seconds})


class Bells:
    """Wakes the sockets of a tenant when the database hints at news of it."""

    def __init__(self) -> None:
        self._waiting: defaultdict[UUID, asyncio.Event] = defaultdict(asyncio.Event)

    def hear(self, payload: str) -> None:
        """There is news of the tenant with this id."""
        with contextlib.suppress(ValueError):
            if (rung := self._waiting.pop(UUID(payload), None)) is not None:
                rung.set()

    def bell(self, tenant_id: UUID) -> asyncio.Event:
        """What rings at the next hint. Take it before looking: what is announced during the look counts as well."""
        return self._waiting[tenant_id]
