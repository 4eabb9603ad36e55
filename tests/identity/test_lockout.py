"""Five wrong passwords lock an account for five minutes; the form door; the limit of tries."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import Interval, cast, func, select, update
from tests.conftest import open_client
from tests.make import PASSWORD, MadeTenant, make_person, password_hash

from pharos.identity.lockout import count_failure, count_success, unlock
from pharos.identity.models import SecurityEvent, User
from pharos.identity.principal import Principal
from pharos.identity.sign_in import Origin, prove_by_password
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotSignedIn
from pharos.infra.limits import GENERAL, LOGIN
from pharos.runtime import Runtime


async def sign_in(runtime: Runtime, person: Principal, password: str = PASSWORD) -> bool:
    try:
        await prove_by_password(runtime, login=person.name, password=password, origin=Origin(ip="203.0.113.9"))
    except NotSignedIn:
        return False
    return True


async def fail(runtime: Runtime, person: Principal, times: int) -> None:
    """As many wrong passwords, without the time it takes to hash them."""
    assert person.user_id is not None
    for _ in range(times):
        async with system_transaction(runtime.db) as session:
            await count_failure(session, person.user_id)


async def events_of(runtime: Runtime, person: Principal) -> list[str]:
    async with runtime.db.transaction(person.tenant_id) as session:
        mine = select(SecurityEvent.event_type).where(SecurityEvent.user_id == person.user_id)
        return sorted((await session.execute(mine)).scalars())


@pytest.mark.contract("ID-04", part="a locked account answers as a wrong password does")
async def test_the_fifth_wrong_password_locks_and_is_told(runtime: Runtime, member: Principal) -> None:
    await fail(runtime, member, 4)
    assert not await sign_in(runtime, member, "wrong password")
    assert await events_of(runtime, member) == ["account_locked", "login_failed"]
    assert not await sign_in(runtime, member)


async def test_four_do_not_and_a_right_one_starts_the_count_anew(runtime: Runtime, member: Principal) -> None:
    for _ in range(2):
        await fail(runtime, member, 4)
        assert await sign_in(runtime, member)


async def test_a_lock_ends_by_itself_and_tries_do_not_prolong_it(runtime: Runtime, member: Principal) -> None:
    await fail(runtime, member, 5)
    async with system_transaction(runtime.db) as session:
        locked_until = select(cast(User.locked_until - func.now(), Interval)).where(User.id == member.user_id)
        before = (await session.execute(locked_until)).scalar_one()
    assert timedelta(minutes=4.9) < before <= timedelta(minutes=5)
    await fail(runtime, member, 10)
    async with system_transaction(runtime.db) as session:
        assert (await session.execute(locked_until)).scalar_one() < before
        over = update(User).where(User.id == member.user_id)
        await session.execute(over.values(locked_until=func.now() - timedelta(seconds=1)))
    assert await sign_in(runtime, member)


async def test_whoever_is_unlocked_is_in_at_once(runtime: Runtime, member: Principal) -> None:
    assert member.user_id is not None
    await fail(runtime, member, 5)
    async with system_transaction(runtime.db) as session:
        assert await unlock(session, member.user_id)
        assert not await unlock(session, member.user_id)
    assert await sign_in(runtime, member)


async def test_of_many_guesses_at_once_a_right_one_that_comes_late_is_refused(
    runtime: Runtime, member: Principal
) -> None:
    assert member.user_id is not None
    await asyncio.gather(*(fail(runtime, member, 1) for _ in range(20)))
    async with system_transaction(runtime.db) as session:
        assert not await count_success(session, member.user_id, compared=password_hash())


@pytest.mark.contract("ID-05")
async def test_the_form_door_takes_an_address_or_a_user_name(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    username = f"u-{member.name[2:14]}"
    async with system_transaction(runtime.db) as session:
        await session.execute(update(User).where(User.id == member.user_id).values(username=username))
    for name in (member.name, username.upper()):
        answer = await client.post("/auth/token", data={"username": name, "password": PASSWORD})
        assert answer.status_code == 200
        assert sorted(answer.json()) == ["access_token", "token_type"]
        assert answer.json()["token_type"] == "bearer"
        bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert (await client.get("/auth/session", headers=bearer)).json()["email"] == member.name


@pytest.mark.contract("ID-05")
async def test_wrong_credentials_in_the_form_give_401_and_say_bearer(
    client: httpx.AsyncClient, member: Principal
) -> None:
    for name in (member.name, "nobody"):
        answer = await client.post("/auth/token", data={"username": name, "password": "wrong password"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"] == "wrong_credentials"
    assert (await client.post("/auth/token", data={"username": member.name})).status_code == 422


@pytest.mark.contract("ID-04", part="tries are limited by address")
async def test_sign_ins_are_limited_by_address(runtime: Runtime, member: Principal) -> None:
    async def try_from(client: httpx.AsyncClient, email: str) -> httpx.Response:
        return await client.post("/auth/login", json={"email": email, "password": "x"})

    async with open_client(runtime) as one, open_client(runtime) as another:
        transport = one._transport
        assert isinstance(transport, httpx.ASGITransport)
        for _ in range(LOGIN.hits):
            await runtime.limits.hit(LOGIN, f"ip:{transport.client[0]}")
        limited = await try_from(one, member.name)
        assert (limited.status_code, limited.json()["error"]) == (429, "rate_limited")
        assert 0 < int(limited.headers["retry-after"]) <= 60
        assert (await try_from(another, "somebody@example.org")).status_code == 401


async def test_an_office_behind_one_address_signs_in_at_once(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    people = [await make_person(runtime.db, tenant.id) for _ in range(LOGIN.hits + 2)]

    async def status(email: str, password: str) -> int:
        return (await client.post("/auth/login", json={"email": email, "password": password})).status_code

    assert [await status(person.name, PASSWORD) for person in people] == [200] * len(people)
    wrong = [await status(f"{person.name}.example", "x") for person in people[: LOGIN.hits]]
    assert wrong == [401] * LOGIN.hits, "right ones in between do not count"
    assert await status(people[0].name, PASSWORD) == 429


async def test_nobody_signs_in_more_often_than_they_may_ask(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    for _ in range(GENERAL.hits):
        await runtime.limits.hit(GENERAL, f"user:{member.user_id}")
    answer = await client.post("/auth/login", json={"email": member.name, "password": PASSWORD})
    assert (answer.status_code, answer.json()["error"]) == (429, "rate_limited")


async def test_wrong_tries_from_elsewhere_leave_the_owner_their_own(runtime: Runtime, member: Principal) -> None:
    await fail(runtime, member, 4)
    async with open_client(runtime) as stranger, open_client(runtime) as owner:
        for _ in range(3):  # right or wrong: what others try is not counted against the owner's tries
            await stranger.post("/auth/login", json={"email": "nobody@example.org", "password": "x"})
        for _ in range(LOGIN.hits):
            answer = await owner.post("/auth/login", json={"email": member.name, "password": PASSWORD})
            assert answer.status_code == 200
        assert (
            await stranger.post("/auth/login", json={"email": member.name, "password": PASSWORD})
        ).status_code == 200


async def test_a_change_of_password_is_limited_by_person_and_by_nobody_else_s_sign_ins(
    runtime: Runtime, member: Principal, as_member: httpx.AsyncClient
) -> None:
    async with open_client(runtime) as stranger:
        for _ in range(LOGIN.hits + 1):
            await stranger.post("/auth/login", json={"email": member.name, "password": "x"})
    async with system_transaction(runtime.db) as session:
        assert member.user_id is not None
        assert await unlock(session, member.user_id)
    change = {"oldPassword": "not the old one", "newPassword": "four unrelated calm words"}
    answers = [(await as_member.post("/auth/password", json=change)).status_code for _ in range(LOGIN.hits + 1)]
    assert answers == [403] * LOGIN.hits + [429]
