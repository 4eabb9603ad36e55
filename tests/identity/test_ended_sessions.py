"""What ends a person's sessions ends them in every tenant, those too that are about to be opened."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from tests.conftest import open_client
from tests.make import PASSWORD, MadeTenant, make_tenant

from pharos.identity.change_password import change_password, set_password
from pharos.identity.commands import save_admin
from pharos.identity.models import Membership, User
from pharos.identity.passwords import hash_password
from pharos.identity.people import get_person_by_email
from pharos.identity.principal import Principal, operator
from pharos.identity.recognise import find_by_session_token
from pharos.identity.refresh import refresh
from pharos.identity.sessions import end_sessions, list_sessions
from pharos.identity.setup import NewPerson
from pharos.identity.sign_in import Origin, open_session, prove_by_password
from pharos.infra.errors import NotAllowed, NotSignedIn
from pharos.runtime import Runtime

NEW = "another password of mine"


async def join(runtime: Runtime, person: Principal, tenant: MadeTenant) -> Principal:
    """The same person in another tenant."""
    async with runtime.db.transaction(tenant.id) as session:
        session.add(Membership(tenant_id=tenant.id, user_id=person.user_id))
    return Principal(tenant_id=tenant.id, user_id=person.user_id, name=person.name)


async def is_open(runtime: Runtime, token: str) -> bool:
    try:
        await find_by_session_token(runtime, token)
    except NotSignedIn:
        return False
    return True


async def new_password(runtime: Runtime, person: Principal) -> None:
    assert person.user_id is not None
    async with runtime.db.transaction(person.tenant_id) as session:
        await set_password(session, operator(person.tenant_id), user_id=person.user_id, hashed=hash_password(NEW))


async def test_a_sign_in_that_began_before_a_new_password_opens_nothing(runtime: Runtime, member: Principal) -> None:
    proved = await prove_by_password(runtime, login=member.name, password=PASSWORD)
    await new_password(runtime, member)
    late, program = await open_session(runtime, proved), await open_session(runtime, proved, holder="program")
    assert not await is_open(runtime, late.session_token)
    with pytest.raises(NotSignedIn):
        await refresh(runtime, program.refresh_token)
    proved = await prove_by_password(runtime, login=member.name, password=NEW)
    assert await is_open(runtime, (await open_session(runtime, proved)).session_token)


async def test_a_new_password_ends_refreshing_in_every_tenant(runtime: Runtime, member: Principal) -> None:
    there = await join(runtime, member, await make_tenant(runtime.db))
    programs = [await open_session(runtime, person, holder="program") for person in (member, there)]
    await new_password(runtime, member)
    for program in programs:
        with pytest.raises(NotSignedIn):
            await refresh(runtime, program.refresh_token)


async def test_a_password_set_at_the_machine_ends_sessions_in_every_tenant(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    there = await join(runtime, tenant.admin, await make_tenant(runtime.db))
    tokens = [(await open_session(runtime, person)).session_token for person in (tenant.admin, there)]
    person = NewPerson(name="admin", email=tenant.admin.name, password=NEW)
    assert not await save_admin(runtime, person, tenant=tenant.slug)
    assert [await is_open(runtime, token) for token in tokens] == [False, False]


async def test_signing_the_others_out_reaches_every_tenant_and_keeps_this_one(
    runtime: Runtime, member: Principal
) -> None:
    there = await join(runtime, member, await make_tenant(runtime.db))
    tokens = [(await open_session(runtime, person)).session_token for person in (member, there)]
    async with open_client(runtime, member) as client:
        for _ in range(2):
            assert (await client.delete("/auth/sessions")).status_code == 204
            assert (await client.get("/auth/session")).status_code == 200
    assert [await is_open(runtime, token) for token in tokens] == [False, False]
    async with runtime.db.transaction(there.tenant_id) as session:
        assert member.user_id is not None
        assert await list_sessions(session, user_id=member.user_id) == []


async def test_of_two_who_each_sign_the_other_out_one_stays(runtime: Runtime, member: Principal) -> None:
    there = await join(runtime, member, await make_tenant(runtime.db))
    issued = [await open_session(runtime, person) for person in (member, there)]
    ids = [(await find_by_session_token(runtime, one.session_token)).session_id for one in issued]

    async def end_others(person: Principal, keep: Any) -> bool:
        assert person.user_id is not None
        try:
            async with runtime.db.transaction(person.tenant_id) as session:
                await end_sessions(session, person, user_id=person.user_id, keep=keep)
        except NotSignedIn:
            return False
        return True

    kept = await asyncio.gather(end_others(member, ids[0]), end_others(there, ids[1]))
    assert sorted(kept) == [False, True]
    assert [await is_open(runtime, one.session_token) for one in issued] == list(kept)


async def test_of_two_changes_of_a_password_at_once_one_counts(runtime: Runtime, member: Principal) -> None:
    signed_in = [
        await find_by_session_token(runtime, (await open_session(runtime, member)).session_token) for _ in range(2)
    ]

    async def change(number: int) -> bool:
        try:
            await change_password(
                runtime, signed_in[number], old=PASSWORD, new=f"a new password {number}", origin=Origin()
            )
        except NotAllowed:
            return False
        return True

    assert sorted(await asyncio.gather(change(0), change(1))) == [False, True]


async def test_an_operator_signs_a_person_out_of_every_tenant(
    runtime: Runtime, member: Principal, as_member: httpx.AsyncClient
) -> None:
    there = await join(runtime, member, await make_tenant(runtime.db))
    elsewhere = await open_session(runtime, there)
    async with runtime.db.transaction(member.tenant_id) as session:
        person = await get_person_by_email(session, member.name)
        assert await end_sessions(session, operator(member.tenant_id), user_id=person.id) == 1
    assert (await as_member.get("/auth/session")).status_code == 401
    assert not await is_open(runtime, elsewhere.session_token)
    async with runtime.db.transaction(member.tenant_id) as session:
        assert (await session.execute(select(User.sessions_valid_from).where(User.id == person.id))).scalar_one()
