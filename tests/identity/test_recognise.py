"""What it costs to know who asks, and how soon a change is known everywhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update
from tests.make import make_person
from tests.round_trips import record_round_trips

from pharos.identity.api_keys import create_key
from pharos.identity.models import ApiKey, Membership, SignInSession, User
from pharos.identity.principal import Principal, operator
from pharos.identity.recognise import find_by_api_key, find_by_claims, find_by_session_token
from pharos.identity.sign_in import open_session, sign_out
from pharos.identity.sign_in_news import hear_of_sign_ins, sign_in_upkeep, write_uses
from pharos.identity.tokens import AccessClaims, read_access_token
from pharos.infra.db import create_database
from pharos.infra.errors import NotSignedIn
from pharos.infra.recent import Recent
from pharos.runtime import Runtime


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    return record_round_trips(monkeypatch)


@pytest.fixture
async def listening(runtime: Runtime) -> AsyncIterator[Runtime]:
    """A process that hears of changes, as a web process does."""
    hear_of_sign_ins(runtime)
    heard = asyncio.create_task(runtime.notices.listen(str(runtime.settings.database_url)))
    await until(lambda: runtime.sign_ins.is_listening)
    yield runtime
    heard.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await heard


async def until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - a memory tells nobody when it forgets
            await asyncio.sleep(0.005)


async def claims_of(runtime: Runtime, person: Principal) -> AccessClaims:
    return read_access_token(runtime.settings, (await open_session(runtime, person)).access_token)


async def test_a_token_seen_a_moment_ago_costs_no_round_trip(
    listening: Runtime, member: Principal, exchanges: list[bytes]
) -> None:
    claims = await claims_of(listening, member)
    await find_by_claims(listening, claims)
    exchanges.clear()
    found = [await find_by_claims(listening, claims) for _ in range(10)]
    assert exchanges == []
    assert {signed_in.principal for signed_in in found} == {member}


async def test_any_door_costs_one_round_trip_at_most(
    runtime: Runtime, member: Principal, exchanges: list[bytes]
) -> None:
    issued = await open_session(runtime, member)
    claims = read_access_token(runtime.settings, issued.access_token)
    async with runtime.db.transaction(member.tenant_id) as session:
        _, key = await create_key(session, member, name="a program", user_id=member.user_id)
    assert b"COMMIT" in exchanges  # so what counts here does count
    await find_by_claims(runtime, claims)  # opens the connection
    for door in (
        find_by_claims(runtime, claims),
        find_by_session_token(runtime, issued.session_token),
        find_by_api_key(runtime, key),
    ):
        exchanges.clear()
        await door
        assert len(exchanges) == 1, exchanges


async def test_a_statement_names_its_tenant_for_itself_alone(runtime: Runtime, member: Principal) -> None:
    await find_by_claims(runtime, await claims_of(runtime, member))
    async with runtime.db.single.connect() as connection:
        rows = (await connection.execute(select(func.count()).select_from(SignInSession))).scalar_one()
    assert rows == 0


async def test_a_connection_that_died_is_replaced_unnoticed(runtime: Runtime, member: Principal) -> None:
    claims = await claims_of(runtime, member)
    await runtime.db.single.dispose()  # so that the one that dies is the only one
    await find_by_claims(runtime, claims)
    async with runtime.db.single.connect() as connection:
        pid = (await connection.execute(text("select pg_backend_pid()"))).scalar_one()
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(text("select pg_terminate_backend(:pid)"), {"pid": pid})
    assert (await find_by_claims(runtime, claims)).principal == member


@pytest.mark.parametrize(
    "change",
    [
        update(SignInSession).values(revoked_at=func.now()),
        delete(SignInSession),
        update(Membership).values(disabled_at=func.now()),
        delete(Membership),
    ],
    ids=["revoked", "deleted", "disabled here", "left"],
)
async def test_what_ends_a_sign_in_is_heard_by_a_process_that_remembers_it(
    listening: Runtime, member: Principal, change: Any
) -> None:
    claims = await claims_of(listening, member)
    await find_by_claims(listening, claims)
    other_process = create_database(str(listening.settings.database_url), pool_size=1)
    async with other_process.transaction(member.tenant_id) as session:
        await session.execute(change.where(change.table.c.user_id == member.user_id))
    await other_process.dispose()
    await until(lambda: listening.sign_ins.find(claims.session_id) is None)
    with pytest.raises(NotSignedIn):
        await find_by_claims(listening, claims)


async def test_another_role_or_a_disabled_account_is_heard(listening: Runtime, member: Principal) -> None:
    claims = await claims_of(listening, member)
    await find_by_claims(listening, claims)
    async with listening.db.transaction(member.tenant_id) as session:
        changed = update(Membership).where(Membership.user_id == member.user_id)
        await session.execute(changed.values(platform_role="engineer"))
    await until(lambda: listening.sign_ins.find(claims.session_id) is None)
    assert (await find_by_claims(listening, claims)).principal.platform_role == "engineer"
    async with listening.db.transaction(member.tenant_id) as session:
        await session.execute(update(User).where(User.id == member.user_id).values(disabled_at=func.now()))
    await until(lambda: listening.sign_ins.find(claims.session_id) is None)
    with pytest.raises(NotSignedIn):
        await find_by_claims(listening, claims)


async def test_the_process_that_signs_out_forgets_at_once(listening: Runtime, member: Principal) -> None:
    claims = await claims_of(listening, member)
    await sign_out(listening, await find_by_claims(listening, claims))
    with pytest.raises(NotSignedIn):
        await find_by_claims(listening, claims)


async def test_a_process_that_cannot_hear_remembers_nothing(
    runtime: Runtime, member: Principal, exchanges: list[bytes]
) -> None:
    claims = await claims_of(runtime, member)
    async with sign_in_upkeep(runtime):
        await until(lambda: runtime.sign_ins.is_listening)
        await find_by_claims(runtime, claims)
        assert runtime.sign_ins.find(claims.session_id) is not None
    assert runtime.sign_ins.find(claims.session_id) is None
    await find_by_claims(runtime, claims)
    exchanges.clear()
    await find_by_claims(runtime, claims)
    assert len(exchanges) == 1


async def test_a_remembered_session_opens_nothing_to_a_token_that_names_another_person(
    listening: Runtime, tenant: Any, member: Principal
) -> None:
    claims = await claims_of(listening, member)
    await find_by_claims(listening, claims)
    other = await make_person(listening.db, tenant.id)
    assert other.user_id is not None
    with pytest.raises(NotSignedIn):
        await find_by_claims(listening, AccessClaims(claims.tenant_id, other.user_id, claims.session_id))


async def test_uses_are_written_beside_the_requests(
    runtime: Runtime, member: Principal, exchanges: list[bytes]
) -> None:
    async with runtime.db.transaction(member.tenant_id) as session:
        key, text_of_key = await create_key(session, operator(member.tenant_id), name="a program")
        await session.execute(update(SignInSession).values(last_seen_at=func.now() - timedelta(hours=1)))
    claims = await claims_of(runtime, member)
    for _ in range(5):
        await find_by_api_key(runtime, text_of_key)
        await find_by_claims(runtime, claims)
    assert not any(command.startswith(b"update api_keys") for command in exchanges)
    exchanges.clear()
    await write_uses(runtime)
    assert len([command for command in exchanges if b"last_" in command]) == 2  # sessions and keys, all at once
    async with runtime.db.transaction(member.tenant_id) as session:
        used = (await session.execute(select(ApiKey.last_used_at).where(ApiKey.id == key.id))).scalar_one()
        seen = (await session.execute(select(SignInSession.last_seen_at))).scalars().all()
    assert used is not None
    assert seen
    assert runtime.uses == {}


def test_a_memory_is_short_and_bounded() -> None:
    now = 0.0
    recent: Recent[int, str] = Recent(seconds=30, most=2, clock=lambda: now)
    recent.keep(0, "deaf", group="a", changes=recent.changes)
    assert recent.find(0) is None
    recent.listen()
    for key in (1, 2, 3):
        recent.keep(key, f"value {key}", group="a", changes=recent.changes)
    assert [recent.find(key) for key in (1, 2, 3)] == [None, "value 2", "value 3"]
    now = 29.9
    assert recent.find(3) == "value 3"
    now = 30.0
    assert recent.find(3) is None


def test_what_was_asked_before_a_change_is_not_remembered_after_it() -> None:
    recent: Recent[int, str] = Recent(seconds=30, most=2)
    recent.listen()
    asked_at = recent.changes
    recent.forget(7)
    recent.keep(1, "old", group="a", changes=asked_at)
    assert recent.find(1) is None


def test_one_value_or_one_group_is_forgotten_and_no_other() -> None:
    recent: Recent[int, str] = Recent(seconds=30, most=9)
    recent.listen()
    for key, group in ((1, "a"), (2, "a"), (3, "a"), (4, "b")):
        recent.keep(key, "value", group=group, changes=recent.changes)
    recent.forget(1)
    assert [recent.find(key) for key in (1, 2, 3, 4)] == [None, "value", "value", "value"]
    recent.forget_group("a")
    assert [recent.find(key) for key in (1, 2, 3, 4)] == [None, None, None, "value"]
