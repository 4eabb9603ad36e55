"""Transactions of no tenant, for what must be read before a tenant is known.

They see the tables without a fence (tenants, users, bootstrap state, the queue) and, when a person is named, that
person's own memberships. Import contracts keep the list of callers short.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.db import Database, begin_with
from pharos.infra.ids import UserId


def system_transaction(db: Database, *, user_id: UserId | None = None) -> AbstractAsyncContextManager[AsyncSession]:
    """One transaction outside every tenant; `user_id` opens that person's memberships for reading."""
    return db.begun("begin" if user_id is None else begin_with("pharos.user_id", user_id))
