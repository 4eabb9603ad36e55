"""Doors that open by mail: magic link, forgotten password, change of address."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select, update
from tests.conftest import make_runtime, open_client
from tests.mailbox import link_to, mails_to, token_to
from tests.make import PASSWORD, MadeTenant, make_person, make_tenant

from pharos.identity.api_keys import create_key
from pharos.identity.commands import save_admin
from pharos.identity.models import Membership, OneTimeToken, SecurityEvent, SignInSession, User
from pharos.identity.principal import Principal
from pharos.identity.setup import NewPerson
from pharos.infra.db_system import system_transaction
from pharos.infra.models import Mail, RateLimit
from pharos.infra.settings import Settings
from pharos.runtime import Runtime

REQUEST, VERIFY = "/api/auth/magic-link/request", "/api/auth/magic-link/verify"
PAGE = {"X-CSRF-Token": "none"}
BROWSER = {"Accept": "text/html,application/xhtml+xml"}


def plain(reply: httpx.Response) -> tuple[int, dict[str, Any]]:
    """An answer without what differs for every request."""
    body = reply.json()
    body.pop("requestId", None)
    return reply.status_code, body


async def ask_for_link(client: httpx.AsyncClient, email: str, **more: str) -> httpx.Response:
    return await client.post(REQUEST, json={"email": email, **more})


async def magic_token(runtime: Runtime, person: Principal, **more: str) -> str:
    async with open_client(runtime) as elsewhere:
        assert (await ask_for_link(elsewhere, person.name, **more)).status_code == 202
    return await token_to(runtime, person.tenant_id, person.name)


async def events(runtime: Runtime, tenant: MadeTenant) -> list[str]:
    async with runtime.db.transaction(tenant.id) as session:
        return list((await session.execute(select(SecurityEvent.event_type).order_by(SecurityEvent.id))).scalars())


async def pass_time(runtime: Runtime, tenant: MadeTenant, by: timedelta) -> None:
    """All that was issued in a tenant is older by so much."""
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(update(OneTimeToken).values(expires_at=OneTimeToken.expires_at - by))


async def test_a_mailed_link_outlives_a_rotated_secret(runtime: Runtime, member: Principal) -> None:
    token = await magic_token(runtime, member)
    rotated = Settings(_env_file=None, **(runtime.settings.model_dump() | {"secret_key": secrets.token_hex(32)}))
    async with open_client(make_runtime(rotated, runtime.db)) as client:
        assert (await client.post(VERIFY, json={"token": token})).status_code == 200


@pytest.mark.contract("ID-11")
async def test_a_mailed_link_signs_a_browser_in_once(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    assert (await client.get("/api/auth/session")).json() == {"user": None}
    token = await magic_token(runtime, member, next="/projects/x")
    reply = await client.post(VERIFY, json={"token": token}, headers=PAGE)
    assert reply.status_code == 200
    assert reply.json()["next"] == "/projects/x"
    assert "refreshToken" not in reply.json()
    assert "HttpOnly" in reply.headers["set-cookie"]
    assert (await client.get("/api/auth/session")).json()["user"]["email"] == member.name
    async with runtime.db.transaction(member.tenant_id) as session:
        assert (await session.execute(select(SignInSession.door))).scalars().all() == ["magic_link"]
    client.cookies.clear()
    assert (await client.post(VERIFY, json={"token": token}, headers=PAGE)).status_code == 401
    assert (await client.get("/api/auth/session")).json() == {"user": None}


@pytest.mark.contract("ID-11")
async def test_a_program_gets_tokens_for_a_link(client: httpx.AsyncClient, runtime: Runtime, member: Principal) -> None:
    tokens = (await client.post(VERIFY, json={"token": await magic_token(runtime, member)})).json()
    bearer = {"Authorization": f"Bearer {tokens['accessToken']}"}
    assert (await client.get("/api/auth/session", headers=bearer)).json()["user"]["email"] == member.name
    assert (await client.post("/auth/refresh", json={"refreshToken": tokens["refreshToken"]})).status_code == 200


@pytest.mark.contract("ID-11")
async def test_a_scanner_of_mail_cannot_use_a_link_up(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    token = await magic_token(runtime, member)
    link = await link_to(runtime, member.tenant_id, member.name)
    for path in (link, f"{VERIFY}?token={token}"):
        for method in ("GET", "HEAD", "OPTIONS"):
            for headers in ({}, BROWSER):
                reply = await client.request(method, path, headers=headers, follow_redirects=True)
                assert reply.status_code in {200, 405}, (method, path)
                assert "set-cookie" not in reply.headers
    seen = (await client.get(VERIFY, params={"token": token})).json()
    assert seen == {"email": member.name, "next": "/"}
    assert (await client.post(VERIFY, json={"token": token})).status_code == 200


@pytest.mark.contract("ID-11")
async def test_of_many_who_come_with_a_link_at_once_one_gets_in(runtime: Runtime, member: Principal) -> None:
    token = await magic_token(runtime, member)

    async def come() -> int:
        async with open_client(runtime) as client:
            return (await client.post(VERIFY, json={"token": token})).status_code

    assert sorted(await asyncio.gather(*(come() for _ in range(8)))) == [200] + [401] * 7


@pytest.mark.contract("ID-11")
async def test_a_link_is_kept_as_a_hash_and_ends_after_a_quarter_of_an_hour(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, member: Principal
) -> None:
    token = await magic_token(runtime, member)
    async with runtime.db.transaction(tenant.id) as session:
        row = (await session.execute(select(OneTimeToken))).scalar_one()
    assert token.rpartition("_")[2] not in str(vars(row))
    assert timedelta(minutes=14) < row.expires_at - row.created_at < timedelta(minutes=16)
    await pass_time(runtime, tenant, timedelta(minutes=14))
    assert (await client.get(VERIFY, params={"token": token})).status_code == 200
    await pass_time(runtime, tenant, timedelta(minutes=1))
    assert (await client.post(VERIFY, json={"token": token})).status_code == 401


async def test_whatever_is_wrong_with_a_link_it_gets_one_answer(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, member: Principal, stranger: Principal
) -> None:
    used, old, gone, foreign = (
        await make_person(runtime.db, tenant.id), await make_person(runtime.db, tenant.id),
        await make_person(runtime.db, tenant.id), stranger,
    )  # fmt: skip
    tokens = {person.name: await magic_token(runtime, person) for person in (used, old, gone, foreign)}
    await client.post(VERIFY, json={"token": tokens[used.name]})
    async with system_transaction(runtime.db) as session:
        await session.execute(update(User).where(User.id == gone.user_id).values(disabled_at=func.now()))
    async with runtime.db.transaction(tenant.id) as session:
        mine = update(OneTimeToken).where(OneTimeToken.user_id == old.user_id)
        await session.execute(mine.values(expires_at=func.now()))
    elsewhere = tokens[foreign.name].replace(stranger.tenant_id.hex, tenant.id.hex)
    nowhere = tokens[foreign.name].replace(stranger.tenant_id.hex, "0" * 32)
    tried = [tokens[used.name], tokens[old.name], tokens[gone.name], elsewhere, nowhere, "x", tokens[old.name] + "x"]
    answers = []
    for token in tried:
        async with open_client(runtime) as another:
            answers.append(plain(await another.post(VERIFY, json={"token": token})))
    assert {status for status, _ in answers} == {401}
    assert {body["error"] for _, body in answers} == {"bad_link"}
    assert all(answer == answers[0] for answer in answers)
    assert "magic_link_failed" in await events(runtime, tenant)


async def test_a_link_of_one_purpose_opens_no_other_door(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    token = await magic_token(runtime, member)
    body = {"token": token, "password": "another long password", "name": "Eve"}
    for path in ("/auth/password/reset", "/invitations/accept", "/auth/email/confirm"):
        assert (await client.post(path, json=body)).status_code == 401, path
    assert (await client.post(VERIFY, json={"token": token})).status_code == 200


async def test_using_a_link_voids_its_sisters_and_asking_again_does_not(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    first = await magic_token(runtime, member)
    async with system_transaction(runtime.db) as session:
        await session.execute(delete(RateLimit))
    second = await magic_token(runtime, member)
    assert first != second
    assert (await client.post(VERIFY, json={"token": first})).status_code == 200
    assert (await client.post(VERIFY, json={"token": second})).status_code == 401


@pytest.mark.contract("ID-11", part="the answer and its time do not tell who has an account")
async def test_nothing_tells_whether_an_address_has_an_account(
    runtime: Runtime, tenant: MadeTenant, member: Principal, real_answer_time: float
) -> None:
    known = [(await make_person(runtime.db, tenant.id)).name for _ in range(3)]
    disabled = await make_person(runtime.db, tenant.id)
    placeless = await make_person(runtime.db, tenant.id)
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(update(User).where(User.id == disabled.user_id).values(disabled_at=func.now()))
        await session.execute(delete(Membership).where(Membership.user_id == placeless.user_id))
    unknown = ["nobody@example.org", disabled.name, placeless.name]

    async def ask(path: str, email: str) -> tuple[tuple[int, dict[str, Any]], float]:
        async with open_client(runtime) as client:
            started = time.perf_counter()
            reply = await client.post(path, json={"email": email})
            return plain(reply), time.perf_counter() - started

    for path in (REQUEST, "/auth/password/forgot"):
        answers = await asyncio.gather(*(ask(path, email) for email in known + unknown))
        assert len({str(answer) for answer, _ in answers}) == 1
        assert min(took for _, took in answers) > real_answer_time  # without it an unknown one is several times as fast
    for email in unknown:
        assert await mails_to(runtime, tenant.id, email) == []


@pytest.mark.contract("ID-12")
async def test_links_are_mailed_once_a_minute_to_an_address_and_once_in_twenty_seconds_from_a_place(
    runtime: Runtime, member: Principal
) -> None:
    async with open_client(runtime) as here, open_client(runtime) as there:
        assert (await ask_for_link(here, member.name)).status_code == 202
        same_address = await ask_for_link(there, member.name.upper())
        assert same_address.status_code == 429
        assert 55 < int(same_address.headers["retry-after"]) <= 60
        same_place = await ask_for_link(here, "somebody.else@example.org")
        assert same_place.status_code == 429
        assert 15 < int(same_place.headers["retry-after"]) <= 20
    async with open_client(make_runtime(runtime.settings, runtime.db)) as restarted:
        assert (await ask_for_link(restarted, member.name)).status_code == 429
    assert len(await mails_to(runtime, member.tenant_id, member.name)) == 1


async def test_five_bad_links_from_a_place_are_enough_for_a_while(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    statuses = [(await client.post(VERIFY, json={"token": "x"})).status_code for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    good = await client.post(VERIFY, json={"token": await magic_token(runtime, member)})
    assert good.status_code == 200  # a good link is never in the way of others' mistakes


@pytest.mark.contract("ID-16")
async def test_mail_that_cannot_be_sent_is_said_and_leaves_nothing(
    settings: Settings, runtime: Runtime, member: Principal
) -> None:
    changes = {"smtp_url": "smtp://127.0.0.1:1", "mail_from": None}
    broken = make_runtime(Settings(_env_file=None, **{**settings.model_dump(), **changes}), runtime.db)
    async with open_client(broken) as client:
        for email in (member.name, "nobody@example.org"):
            for path in (REQUEST, "/auth/password/forgot"):
                reply = await client.post(path, json={"email": email})
                assert (reply.status_code, reply.json()["error"]) == (502, "mail_failed")
                assert "PHAROS_MAIL_FROM" in reply.json()["message"]
    async with runtime.db.transaction(member.tenant_id) as session:
        assert (await session.execute(select(func.count()).select_from(OneTimeToken))).scalar_one() == 0
        assert (await session.execute(select(func.count()).select_from(Mail))).scalar_one() == 0


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1"])
async def test_a_link_never_leads_elsewhere(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal, path: str
) -> None:
    token = await magic_token(runtime, member, next=path)
    assert (await client.post(VERIFY, json={"token": token})).json()["next"] == "/"


async def test_a_link_leads_into_the_tenant_that_was_named(client: httpx.AsyncClient, runtime: Runtime) -> None:
    first, second = await make_tenant(runtime.db), await make_tenant(runtime.db)
    async with runtime.db.transaction(second.id) as session:
        session.add(Membership(tenant_id=second.id, user_id=first.admin.user_id))
    assert (await ask_for_link(client, first.admin.name, tenant=second.slug)).status_code == 202
    token = await token_to(runtime, second.id, first.admin.name)
    tokens = (await client.post(VERIFY, json={"token": token})).json()
    bearer = {"Authorization": f"Bearer {tokens['accessToken']}"}
    assert (await client.get("/api/auth/session", headers=bearer)).json()["user"]["tenantId"] == str(second.id)


async def test_no_other_site_can_ask_for_or_use_a_link(client: httpx.AsyncClient) -> None:
    for path in (REQUEST, VERIFY, "/auth/password/forgot", "/auth/password/reset", "/invitations/accept"):
        body = {"email": "a@b.example", "token": "x", "password": "a long enough one"}
        reply = await client.post(path, json=body, headers={"Origin": "https://evil.example"})
        assert (reply.status_code, reply.json()["error"]) == (403, "cross_site"), path


async def reset_token(runtime: Runtime, person: Principal) -> str:
    async with open_client(runtime) as elsewhere:
        assert (await elsewhere.post("/auth/password/forgot", json={"email": person.name})).status_code == 202
    return await token_to(runtime, person.tenant_id, person.name)


async def login(client: httpx.AsyncClient, email: str, password: str) -> int:
    return (await client.post("/auth/login", json={"email": email, "password": password})).status_code


async def test_whoever_chose_a_new_password_is_told_which_keys_open_the_account_still(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    person = await make_person(runtime.db, tenant.id, platform_role="admin")
    async with runtime.db.transaction(tenant.id) as session:
        for name, user_id in (("a report", person.user_id), ("a robot", None)):
            await create_key(session, person, name=name, user_id=user_id)
    body = {"token": await reset_token(runtime, person), "password": "a new long password"}
    assert (await client.post("/auth/password/reset", json=body)).status_code == 204
    told = (await mails_to(runtime, tenant.id, person.name))[-1].text
    assert "API keys of yours open it still: a report. Revoke" in told


async def test_a_new_password_by_mail_ends_every_session_in_every_tenant(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, member: Principal, as_member: httpx.AsyncClient
) -> None:
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        session.add(Membership(tenant_id=other.id, user_id=member.user_id))
    there = await client.post("/auth/login", json={"email": member.name, "password": PASSWORD, "tenant": other.slug})
    elsewhere = {"Authorization": f"Bearer {there.json()['accessToken']}"}
    token = await reset_token(runtime, member)
    weak = await client.post("/auth/password/reset", json={"token": token, "password": "short"})
    assert (weak.status_code, weak.json()["error"]) == (422, "weak_password")
    body = {"token": token, "password": "a new long password"}
    assert (await client.post("/auth/password/reset", json=body)).status_code == 204
    assert (await as_member.get("/auth/session")).status_code == 401
    assert (await client.get("/auth/session", headers=elsewhere)).status_code == 401
    assert [await login(client, member.name, word) for word in (PASSWORD, "a new long password")] == [401, 200]
    assert (await client.post("/auth/password/reset", json=body)).status_code == 401
    told = [mail.subject for mail in await mails_to(runtime, tenant.id, member.name)]
    assert told == ["A new password for Pharos", "Your password was changed"]
    assert {"password_reset_requested", "password_changed"} <= set(await events(runtime, tenant))


async def test_a_new_password_opens_a_locked_account_and_voids_other_links(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    magic = await magic_token(runtime, member)
    async with system_transaction(runtime.db) as session:
        locked = update(User).where(User.id == member.user_id)
        await session.execute(locked.values(locked_until=func.now() + timedelta(minutes=5)))
    assert await login(client, member.name, PASSWORD) == 401
    body = {"token": await reset_token(runtime, member), "password": "a new long password"}
    assert (await client.post("/auth/password/reset", json=body)).status_code == 204
    assert await login(client, member.name, "a new long password") == 200
    assert (await client.post(VERIFY, json={"token": magic})).status_code == 401


async def test_of_two_new_passwords_with_one_link_one_counts(runtime: Runtime, member: Principal) -> None:
    token = await reset_token(runtime, member)

    async def come(password: str) -> int:
        async with open_client(runtime) as client:
            body = {"token": token, "password": password}
            return (await client.post("/auth/password/reset", json=body)).status_code

    assert sorted(await asyncio.gather(come("one long password"), come("two long passwords"))) == [204, 401]


async def test_forgotten_passwords_are_mailed_three_times_an_hour(runtime: Runtime, member: Principal) -> None:
    async def forget(email: str, client: httpx.AsyncClient) -> int:
        return (await client.post("/auth/password/forgot", json={"email": email})).status_code

    async with open_client(runtime) as here, open_client(runtime) as there:
        assert [await forget(f"nobody{i}@example.org", here) for i in range(4)] == [202, 202, 202, 429]
        assert await forget(member.name, there) == 202
    assert len(await mails_to(runtime, member.tenant_id, member.name)) == 1


async def change(client: httpx.AsyncClient, new_email: str, password: str = PASSWORD) -> httpx.Response:
    return await client.post("/auth/email", json={"newEmail": new_email, "password": password})


def fresh_address() -> str:
    return f"new-{time.monotonic_ns()}@example.org"


@pytest.mark.contract("ID-14")
async def test_an_address_changes_when_the_new_one_is_confirmed(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, member: Principal, as_member: httpx.AsyncClient
) -> None:
    new = fresh_address()
    async with open_client(runtime, member) as other_device:
        assert (await change(as_member, new.upper())).status_code == 202
        assert (await as_member.get("/auth/session")).json()["email"] == member.name
        assert await mails_to(runtime, tenant.id, member.name) == []
        token = await token_to(runtime, tenant.id, new)
        reply = await client.post("/auth/email/confirm", json={"token": token})
        assert (reply.status_code, reply.json()) == (200, {"email": new})
        assert (await as_member.get("/auth/session")).json()["email"] == new
        assert (await other_device.get("/auth/session")).status_code == 401
    assert [await login(client, email, PASSWORD) for email in (member.name, new)] == [401, 200]
    (told,) = await mails_to(runtime, tenant.id, member.name)
    assert new in told.text
    assert "email_changed" in await events(runtime, tenant)
    assert (await client.post("/auth/email/confirm", json={"token": token})).status_code == 401


@pytest.mark.contract("ID-14")
async def test_a_change_of_address_is_limited_by_person_place_and_address(
    runtime: Runtime, tenant: MadeTenant, member: Principal
) -> None:
    other = await make_person(runtime.db, tenant.id)
    taken = fresh_address()
    async with open_client(runtime, member) as client:
        assert (await change(client, taken)).status_code == 202
        again = await change(client, fresh_address())
        assert again.status_code == 429
        assert 55 < int(again.headers["retry-after"]) <= 60
        bearer = client.headers["Authorization"]
    async with open_client(runtime, member) as elsewhere:
        assert (await change(elsewhere, fresh_address())).status_code == 429  # the person
    async with open_client(runtime, other) as client:
        assert (await change(client, taken)).status_code == 429  # the address
        client.headers["Authorization"] = bearer
    third = await make_person(runtime.db, tenant.id)
    async with open_client(runtime, third) as client:
        assert (await change(client, fresh_address())).status_code == 202
        fourth = await make_person(runtime.db, tenant.id)
        async with open_client(runtime, fourth) as from_there:
            client.headers["Authorization"] = from_there.headers["Authorization"]
        assert (await change(client, fresh_address())).status_code == 429  # the place


async def test_a_change_of_address_needs_the_password_and_tells_of_nobody(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_member: httpx.AsyncClient, real_answer_time: float
) -> None:
    wrong = await change(as_member, fresh_address(), "a wrong password")
    assert (wrong.status_code, wrong.json()["error"]) == (403, "wrong_password")
    for bad in ("nobody", "a@b", "a b@c.example", "a@b.example\r\nBcc: c@d.example", member.name):
        assert (await change(as_member, bad)).status_code == 422, bad
    somebody = await make_person(runtime.db, tenant.id)
    started = time.perf_counter()
    reply = await change(as_member, somebody.name)
    assert plain(reply)[1]["status"] == "accepted"
    assert time.perf_counter() - started > real_answer_time  # as long as for an address that gets a mail
    assert await mails_to(runtime, tenant.id, somebody.name) == []


async def test_an_address_that_was_taken_meanwhile_stays_its_owners(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, as_member: httpx.AsyncClient, member: Principal
) -> None:
    new = fresh_address()
    await change(as_member, new)
    token = await token_to(runtime, tenant.id, new)
    other = await make_person(runtime.db, tenant.id)
    async with system_transaction(runtime.db) as session:
        await session.execute(update(User).where(User.id == other.user_id).values(email=new))
    assert (await client.post("/auth/email/confirm", json={"token": token})).status_code == 401
    assert await login(client, member.name, PASSWORD) == 200


async def test_mails_say_nothing_but_their_purpose(runtime: Runtime, member: Principal) -> None:
    await magic_token(runtime, member)
    (mail,) = await mails_to(runtime, member.tenant_id, member.name)
    assert re.findall(r"https?://\S+", mail.text) == [
        runtime.settings.base_url + await link_to(runtime, member.tenant_id, member.name)
    ]
    assert "15 minutes" in mail.text


@pytest.mark.contract("ID-14")
@pytest.mark.parametrize("way", ["reset", "change", "machine", "signed out"])
async def test_an_address_asked_for_before_the_account_was_secured_is_never_confirmed(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal, as_member: httpx.AsyncClient, way: str
) -> None:
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        session.add(Membership(tenant_id=other.id, user_id=member.user_id))
    new = fresh_address()
    there = Principal(tenant_id=other.id, user_id=member.user_id, name=member.name)
    async with open_client(runtime, there) as thief:
        assert (await change(thief, new)).status_code == 202
        if way == "signed out":
            assert (await thief.post("/auth/logout")).status_code == 204
    token = await token_to(runtime, other.id, new)
    if way == "reset":
        body = {"token": await reset_token(runtime, member), "password": "a new long password"}
        assert (await client.post("/auth/password/reset", json=body)).status_code == 204
    elif way == "change":
        body = {"oldPassword": PASSWORD, "newPassword": "a new long password"}
        assert (await as_member.post("/auth/password", json=body)).status_code == 204
    elif way == "machine":
        person = NewPerson(name="admin", email=member.name, password="a new long password")
        assert not await save_admin(runtime, person, tenant=other.slug)
    assert (await client.post("/auth/email/confirm", json={"token": token})).status_code == 401
    expected = PASSWORD if way == "signed out" else "a new long password"
    assert await login(client, member.name, expected) == 200


async def test_a_new_password_voids_links_of_every_tenant_and_no_later_ones(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        session.add(Membership(tenant_id=other.id, user_id=member.user_id))
    assert (await ask_for_link(client, member.name, tenant=other.slug)).status_code == 202
    before = await token_to(runtime, other.id, member.name)
    body = {"token": await reset_token(runtime, member), "password": "a new long password"}
    assert (await client.post("/auth/password/reset", json=body)).status_code == 204
    assert (await client.post(VERIFY, json={"token": before})).status_code == 401
    async with system_transaction(runtime.db) as session:
        await session.execute(delete(RateLimit))
    assert (await client.post(VERIFY, json={"token": await magic_token(runtime, member)})).status_code == 200
