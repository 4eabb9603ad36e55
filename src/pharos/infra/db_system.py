"""Transactions of no tenant, for what must be read before a tenant is known.

They see the tables without a fence (tenants, users, bootstrap state, the queue) and, when a person is named, that
person's own memberships. Import contracts keep the list of callers short.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.db import Database
from pharos.infra.ids import UserId

SET_USER = text("select set_config('pharos.user_id', :user_id, true)")


@asynccontextmanager
async def system_transaction(db: Database, *, user_id: UserId | None = None) -> AsyncIterator[AsyncSession]:
    """One transaction outside every tenant; `user_id` opens that person's memberships for reading."""
    async with AsyncSession(db.engine, expire_on_commit=False) as session, session.begin():
        if user_id is not None:
            await session.execute(SET_USER, {"user_id": str(user_id)})
        yield session
