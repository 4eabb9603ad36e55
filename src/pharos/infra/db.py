"""The database: one pool, and transactions that belong to one tenant.

This is the only file that commits. The first statement of each transaction names the tenant; row-level security
does the rest, so a transaction without a tenant sees nothing.

The driver begins no transaction by itself: `begin` goes with that first statement in one round trip. A connection is
not asked whether it still lives; one that is found dead by its first statement, before which nothing can have happened,
is replaced once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import DateTime, MetaData, Row, TextClause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from pharos.infra.ids import TenantId


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
        """`single` is for statements that are a transaction of their own: their connections are never in one."""
        self.engine = engine
        self.single = single

    def transaction(self, tenant_id: TenantId) -> AbstractAsyncContextManager[AsyncSession]:
        """One transaction of one tenant: commits at the end, rolls back when the block raises."""
        return self.begun(begin_with("pharos.tenant_id", tenant_id))

    @asynccontextmanager
    async def begun(self, begin: str) -> AsyncIterator[AsyncSession]:
        """As `transaction`, begun by a statement of `begin_with`, or by "begin" for no tenant and nobody."""
        for may_be_stale in (True, False):
            async with AsyncSession(self.engine, expire_on_commit=False) as session:
                try:
                    await (await session.connection()).exec_driver_sql(begin)
                except DBAPIError as error:
                    if may_be_stale and error.connection_invalidated:
                        continue
                    raise
                yield session
                await session.commit()
                return

    async def fetch(self, statement: TextClause, values: dict[str, object]) -> Row[Any] | None:
        """As `fetch_all`, of a statement that brings one row or none."""
        rows = await self.fetch_all(statement, values)
        assert len(rows) <= 1, "more than one row"
        return rows[0] if rows else None

    async def fetch_all(self, statement: TextClause, values: dict[str, object]) -> Sequence[Row[Any]]:
        """The rows of one statement that names its tenant itself or needs none, in one round trip.

        For reads, and for changes that may be made twice, counts that may be one too high among them: on a connection
        that was found dead it is asked once more.
        """
        for may_be_stale in (True, False):
            try:
                async with self.single.connect() as connection:
                    return (await connection.execute(statement, values)).all()
            except DBAPIError as error:
                if not (may_be_stale and error.connection_invalidated):
                    raise
        raise AssertionError("the second try returns or raises")

    async def dispose(self) -> None:
        await self.engine.dispose()
        await self.single.dispose()


def begin_with(setting: str, value: UUID) -> str:
    """What begins a transaction with a setting of its own. Two statements at once take no parameters; a UUID needs
    none."""
    return f"begin; select set_config('{setting}', '{UUID(str(value))}', true)"


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
        sqlalchemy_url(url), pool_size=pool_size, max_overflow=pool_size, isolation_level="AUTOCOMMIT", **options
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
