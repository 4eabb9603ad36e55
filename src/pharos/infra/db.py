"""The database: one pool, and transactions that belong to one tenant.

This is the only file that commits. The first statement of each transaction names the tenant; row-level security
does the rest, so a transaction without a tenant sees nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, MetaData, Row, TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from pharos.infra.ids import TenantId

SET_TENANT = text("select set_config('pharos.tenant_id', :tenant_id, true)")


class Table(DeclarativeBase):
    """The one metadata of all slices' tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True)}

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    def __init__(self, engine: AsyncEngine, single: AsyncEngine) -> None:
        """`single` is for statements that are a transaction of their own: autocommit, no ping before each."""
        self.engine = engine
        self.single = single

    @asynccontextmanager
    async def transaction(self, tenant_id: TenantId) -> AsyncIterator[AsyncSession]:
        """One transaction of one tenant: commits at the end, rolls back when the block raises."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
            await session.execute(SET_TENANT, {"tenant_id": str(tenant_id)})
            yield session

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose statements each commit by themselves, for tables of no tenant: one round trip each."""
        async with self.engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    async def fetch(self, statement: TextClause, values: dict[str, object]) -> Row[Any] | None:
        """The only row of one statement that names its tenant itself, in one round trip.

        For reads, and for counts that may be one too high: on a connection that was found dead it is asked once more.
        """
        for may_be_stale in (True, False):
            try:
                async with self.single.connect() as connection:
                    return (await connection.execute(statement, values)).one_or_none()
            except DBAPIError as error:
                if not (may_be_stale and error.connection_invalidated):
                    raise
        raise AssertionError("the second try returns or raises")

    async def dispose(self) -> None:
        await self.engine.dispose()
        await self.single.dispose()


def sqlalchemy_url(url: str) -> str:
    """The same address with the driver named: `postgresql+psycopg://…`."""
    scheme, _, rest = url.partition("://")
    if scheme.split("+")[0] not in {"postgresql", "postgres"}:
        msg = "The database address must begin with postgresql://"
        raise ValueError(msg)
    return f"postgresql+psycopg://{rest}"


def create_database(url: str, *, pool_size: int = 10) -> Database:
    """A pool of at most twice `pool_size` connections; nothing is opened before the first transaction.

    Server-side prepared statements are off: behind a transaction pooler they run with another session's
    parameters, the tenant's among them.
    """
    options: dict[str, Any] = {
        "pool_timeout": 10,
        "hide_parameters": True,  # an error's text goes to the log; the parameters are people's words
        "connect_args": {"prepare_threshold": None, "connect_timeout": 10},
    }
    engine = create_async_engine(
        sqlalchemy_url(url), pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=True, **options
    )
    single = create_async_engine(
        sqlalchemy_url(url),
        pool_size=2,
        max_overflow=pool_size,
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        **options,
    )
    return Database(engine, single)
