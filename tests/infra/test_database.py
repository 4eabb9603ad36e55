"""A transaction begins and names its tenant in one round trip, and a database that was away is back unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.make import MadeTenant, make_project
from tests.round_trips import record_round_trips

from pharos.infra.db import Database, create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.ids import TenantId
from pharos.infra.settings import Settings

PID = text("select pg_backend_pid()")
NAMED = text("select current_setting('pharos.tenant_id', true)")
KILL = text("select pg_terminate_backend(:pid, 5000)")
RENAME = text("update projects set name = name || '!' returning name")
NAMES = text("select name from projects where not is_handbook")


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    """A pool without connections of other tests, so that it is known which one is taken."""
    assert settings.database_url is not None
    database = create_database(settings.database_url, pool_size=5)
    yield database
    await database.dispose()


async def open_connections(db: Database, tenant_id: TenantId, number: int) -> set[int]:
    """Let the pool hold so many connections; the processes that serve them."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(db.transaction(tenant_id)) for _ in range(number)]
        return {(await session.execute(PID)).scalar_one() for session in sessions}


async def kill(db: Database, pids: set[int]) -> None:
    for pid in pids:
        assert await db.fetch(KILL, {"pid": pid})


async def names(db: Database, tenant: MadeTenant) -> list[str]:
    async with db.transaction(tenant.id) as session:
        return list((await session.execute(NAMES)).scalars())


async def test_beginning_and_naming_the_tenant_is_one_round_trip(
    db: Database, tenant: MadeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_connections(db, tenant.id, 1)
    sent = record_round_trips(monkeypatch)
    async with db.transaction(tenant.id) as session:
        assert (await session.execute(NAMED)).scalar_one() == str(tenant.id)
    assert len(sent) == 3, sent


async def test_the_name_of_a_tenant_ends_with_its_transaction(db: Database, tenant: MadeTenant) -> None:
    (pid,) = await open_connections(db, tenant.id, 1)
    async with system_transaction(db) as session:
        assert (await session.execute(PID)).scalar_one() == pid, "the same connection"
        assert not (await session.execute(NAMED)).scalar_one()
        assert (await session.execute(NAMES)).all() == []


async def test_a_tenant_is_named_by_nothing_but_an_id(db: Database) -> None:
    with pytest.raises(ValueError, match="UUID"):
        db.transaction("', true); drop table projects; --")  # type: ignore[arg-type]  # what no caller should give


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_what_a_block_did_before_it_raised_is_undone(
    db: Database, tenant: MadeTenant, error: type[BaseException]
) -> None:
    await make_project(db, tenant.admin, name="lamp")

    async def work() -> None:
        async with db.transaction(tenant.id) as session:
            assert (await session.execute(RENAME)).scalars().all() == ["lamp!"]
            raise error

    with pytest.raises(error):
        await work()
    assert await names(db, tenant) == ["lamp"]


async def test_connections_that_died_between_two_transactions_are_replaced_unnoticed(
    db: Database, tenant: MadeTenant
) -> None:
    await make_project(db, tenant.admin, name="lamp")
    pids = await open_connections(db, tenant.id, 3)
    await kill(db, pids)
    async with db.transaction(tenant.id) as session:
        await session.execute(RENAME)
    assert await names(db, tenant) == ["lamp!"]
    assert pids.isdisjoint(await open_connections(db, tenant.id, 3))


@pytest.mark.parametrize("goes_on", [True, False], ids=["at a statement", "at the commit"])
async def test_a_transaction_whose_connection_dies_fails_once_and_keeps_nothing(
    db: Database, tenant: MadeTenant, *, goes_on: bool
) -> None:
    await make_project(db, tenant.admin, name="lamp")
    begun = 0

    async def work() -> None:
        nonlocal begun
        async with db.transaction(tenant.id) as session:
            begun += 1
            await session.execute(RENAME)
            await kill(db, {(await session.execute(PID)).scalar_one()})
            if goes_on:
                await session.execute(PID)

    with pytest.raises(DBAPIError) as died:
        await work()
    assert died.value.connection_invalidated
    assert begun == 1
    assert await names(db, tenant) == ["lamp"]
