"""Colleagues by mail: who may invite, what the link gives, and what it never gives."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest
from sqlalchemy import delete, select, update
from tests.conftest import open_client
from tests.mailbox import mails_to, token_to
from tests.make import PASSWORD, MadeTenant, make_person, make_tenant

from pharos.identity.models import Department, Group, GroupMember, Membership, User
from pharos.identity.principal import Principal
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import LimitReached
from pharos.infra.ids import new_id
from pharos.infra.limits import INVITATION_USER
from pharos.runtime import Runtime

NOBODYS = "00000000-0000-7000-8000-000000000000"


def fresh_address() -> str:
    return f"guest-{secrets.token_hex(6)}@example.org"


@pytest.fixture
async def guest(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(runtime) as nobody:
        yield nobody


async def invite(client: httpx.AsyncClient, email: str, **more: object) -> httpx.Response:
    return await client.post("/invitations", json={"email": email, **more})


async def accept(client: httpx.AsyncClient, token: str, **more: object) -> httpx.Response:
    return await client.post("/invitations/accept", json={"token": token, **more})


NEW = {"name": "Ada Lovelace", "password": "four calm words here"}


async def test_an_invitation_makes_an_account_with_what_it_promised(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    department, group = new_id(), new_id()
    async with runtime.db.transaction(tenant.id) as session:
        session.add(Department(tenant_id=tenant.id, id=department, name="Harbour"))
        session.add(Group(tenant_id=tenant.id, id=group, name="Pilots"))
    email = fresh_address()
    promised = {"platformRole": "engineer", "departmentId": str(department), "groupIds": [str(group)]}
    assert (await invite(as_admin, email.upper(), **promised)).status_code == 201
    joined = await accept(guest, await token_to(runtime, tenant.id, email), **NEW)
    assert (joined.status_code, joined.json()["isNew"]) == (201, True)
    me = await guest.get("/auth/session", headers={"Authorization": f"Bearer {joined.json()['accessToken']}"})
    assert {name: me.json()[name] for name in ("email", "name", "platformRole", "tenantId")} == {
        "email": email, "name": "Ada Lovelace", "platformRole": "engineer", "tenantId": str(tenant.id),
    }  # fmt: skip
    login = {"email": email, "password": NEW["password"]}
    assert (await guest.post("/auth/login", json=login)).status_code == 200
    async with runtime.db.transaction(tenant.id) as session:
        user_id = UUID(me.json()["userId"])
        place = (await session.execute(select(Membership).where(Membership.user_id == user_id))).scalar_one()
        assert place.department_id == department
        assert (await session.execute(select(GroupMember.user_id))).scalars().all() == [user_id]


async def test_a_page_is_signed_in_by_accepting(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    email = fresh_address()
    await invite(as_admin, email)
    body = {"token": await token_to(runtime, tenant.id, email), **NEW}
    joined = await guest.post("/invitations/accept", json=body, headers={"X-CSRF-Token": "none"})
    assert "refreshToken" not in joined.json()
    assert (await guest.get("/api/auth/session")).json()["user"]["email"] == email


async def test_an_account_that_is_there_is_added_and_stays_as_it_is(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, stranger: Principal
) -> None:
    await invite(as_admin, stranger.name)
    token = await token_to(runtime, tenant.id, stranger.name)
    joined = await accept(guest, token, name="Mallory", password="a password of the thief")
    assert joined.json() == {"isNew": False}  # a link of seven days signs nobody in to what is there already
    assert "set-cookie" not in joined.headers
    statuses = []
    for password in ("a password of the thief", PASSWORD):
        login = {"email": stranger.name, "password": password, "tenant": tenant.slug}
        statuses.append((await guest.post("/auth/login", json=login)).status_code)
    assert statuses == [401, 200]
    async with system_transaction(runtime.db) as session:
        assert (await session.execute(select(User.name).where(User.email == stranger.name))).scalar_one() == "A Person"


async def test_only_administrators_invite_and_nobody_gives_superadmin(
    as_admin: httpx.AsyncClient, as_member: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    email = fresh_address()
    assert (await invite(as_member, email)).status_code == 403
    engineer = await make_person(runtime.db, tenant.id, platform_role="engineer")
    async with open_client(runtime, engineer) as as_engineer:
        assert (await invite(as_engineer, email)).status_code == 403
    refused = await invite(as_admin, email, platformRole="superadmin")
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden_role")
    assert (await invite(as_admin, email, platformRole="king")).status_code == 422
    assert await mails_to(runtime, tenant.id, email) == []


async def test_what_cannot_be_promised_is_refused_and_nothing_is_mailed(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, member: Principal, stranger: Principal
) -> None:
    foreign = new_id()
    async with runtime.db.transaction(stranger.tenant_id) as session:
        session.add(Group(tenant_id=stranger.tenant_id, id=foreign, name="Theirs"))
    email = fresh_address()
    refusals = [
        (await invite(as_admin, email, departmentId=NOBODYS), 404, "no_such_department"),
        (await invite(as_admin, email, groupIds=[NOBODYS]), 404, "no_such_group"),
        (await invite(as_admin, email, groupIds=[str(foreign)]), 404, "no_such_group"),
        (await invite(as_admin, "nobody"), 422, "bad_email"),
        (await invite(as_admin, member.name), 409, "already_member"),
    ]
    for reply, status, code in refusals:
        assert (reply.status_code, reply.json()["error"]) == (status, code)
    assert await mails_to(runtime, tenant.id, email) == []


async def test_inviting_who_is_shut_out_says_how_to_let_them_in_again(
    as_admin: httpx.AsyncClient, member: Principal
) -> None:
    await as_admin.post(f"/users/{member.user_id}/disable")
    refused = await invite(as_admin, member.name)
    assert (refused.status_code, refused.json()["error"]) == (409, "already_member")
    assert "Let in again" in refused.json()["message"]
    await as_admin.post(f"/users/{member.user_id}/enable")
    assert "Let in again" not in (await invite(as_admin, member.name)).json()["message"]


async def test_a_weak_password_leaves_the_link_good_and_a_used_one_is_not(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    email = fresh_address()
    await invite(as_admin, email)
    token = await token_to(runtime, tenant.id, email)
    for wrong, code in (({"password": "short"}, "weak_password"), ({"name": "   "}, "bad_name"), ({}, None)):
        reply = await accept(guest, token, **(NEW | wrong))
        assert (reply.status_code, reply.json().get("error")) == ((422, code) if code else (201, None))
    assert (await accept(guest, token, **NEW)).json()["error"] == "bad_link"


async def test_of_many_who_accept_at_once_one_joins(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    email = fresh_address()
    await invite(as_admin, email)
    token = await token_to(runtime, tenant.id, email)

    async def come() -> int:
        async with open_client(runtime) as client:
            return (await accept(client, token, **NEW)).status_code

    assert sorted(await asyncio.gather(*(come() for _ in range(4)))) == [201, 401, 401, 401]


async def test_two_tenants_may_invite_a_newcomer_and_both_get_them(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, guest: httpx.AsyncClient
) -> None:
    other = await make_tenant(runtime.db)
    email = fresh_address()
    await invite(as_admin, email)
    async with open_client(runtime, other.admin) as there:
        await invite(there, email)
    tokens = [await token_to(runtime, tenant_id, email) for tenant_id in (tenant.id, other.id)]
    assert [(await accept(guest, token, **NEW)).json()["isNew"] for token in tokens] == [True, False]


async def test_inviting_again_voids_the_older_link_and_withdrawing_the_last(
    as_admin: httpx.AsyncClient, as_stranger: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime,
    tenant: MadeTenant,
) -> None:  # fmt: skip
    email = fresh_address()
    tokens = []
    for role in ("none", "admin"):
        await invite(as_admin, email, platformRole=role, name="Ada")
        tokens.append(await token_to(runtime, tenant.id, email))
    (waiting,) = (await as_admin.get("/invitations")).json()["invitations"]
    assert (waiting["email"], waiting["platformRole"], waiting["name"]) == (email, "admin", "Ada")
    assert waiting["invitedBy"] == tenant.admin.name
    assert (await accept(guest, tokens[0], **NEW)).status_code == 401
    path = f"/invitations/{waiting['id']}"
    assert (await as_stranger.delete(path)).status_code == 404
    assert (await as_admin.delete(path)).status_code == 204
    assert (await as_admin.delete(path)).status_code == 404
    assert (await accept(guest, tokens[1], **NEW)).status_code == 401
    assert (await as_admin.get("/invitations")).json() == {"invitations": []}


async def test_what_was_promised_and_is_gone_does_not_stop_anybody(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    department, group = new_id(), new_id()
    async with runtime.db.transaction(tenant.id) as session:
        session.add(Department(tenant_id=tenant.id, id=department, name="Harbour"))
        session.add(Group(tenant_id=tenant.id, id=group, name="Pilots"))
    email = fresh_address()
    await invite(as_admin, email, departmentId=str(department), groupIds=[str(group)])
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(delete(Group))
        await session.execute(delete(Department))
    assert (await accept(guest, await token_to(runtime, tenant.id, email), **NEW)).status_code == 201


async def test_who_was_shut_out_here_does_not_return_by_an_old_invitation(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, stranger: Principal
) -> None:
    await invite(as_admin, stranger.name)
    token = await token_to(runtime, tenant.id, stranger.name)
    async with runtime.db.transaction(tenant.id) as session:
        session.add(Membership(tenant_id=tenant.id, user_id=stranger.user_id, disabled_at=datetime.now(UTC)))
    assert (await accept(guest, token)).status_code == 401


async def test_invitations_are_limited_for_each_address_and_for_each_administrator(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    email = fresh_address()
    assert [(await invite(as_admin, address)).status_code for address in (email,) * 3 + (email.upper(),)] == [
        201, 201, 201, 429,
    ]  # fmt: skip
    assert (await invite(as_admin, fresh_address())).status_code == 201
    for _ in range(INVITATION_USER.hits):
        with suppress(LimitReached):
            await runtime.limits.hit(INVITATION_USER, f"user:{tenant.admin.user_id}")
    refused = await invite(as_admin, other := fresh_address())
    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
    assert await mails_to(runtime, tenant.id, other) == []


@pytest.mark.parametrize("change", ["disabled", "demoted", "demoted elsewhere"])
async def test_an_invitation_ends_with_the_power_of_who_gave_it(
    as_admin: httpx.AsyncClient, guest: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, change: str
) -> None:
    chief = await make_person(runtime.db, tenant.id, platform_role="admin")
    emails = fresh_address(), fresh_address()
    async with open_client(runtime, chief) as as_chief:
        assert (await invite(as_chief, emails[0], platformRole="admin")).status_code == 201
    assert (await invite(as_admin, emails[1])).status_code == 201
    if change == "disabled":
        await as_admin.post(f"/users/{chief.user_id}/disable")
    elif change == "demoted":
        await as_admin.patch(f"/users/{chief.user_id}", json={"platformRole": "engineer"})
    else:  # by whatever does not void what waits
        async with runtime.db.transaction(tenant.id) as session:
            place = update(Membership).where(Membership.user_id == chief.user_id)
            await session.execute(place.values(platform_role="none"))
    tokens = [await token_to(runtime, tenant.id, email) for email in emails]
    assert [(await accept(guest, token, **NEW)).status_code for token in tokens] == [401, 201]
    waiting = (await as_admin.get("/invitations")).json()["invitations"]
    assert [one["email"] for one in waiting] == ([emails[0]] if change == "demoted elsewhere" else [])


async def test_the_mail_says_who_invites_and_to_what(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    email = fresh_address()
    await invite(as_admin, email)
    (mail,) = await mails_to(runtime, tenant.id, email)
    assert mail.subject == "You are invited to A tenant in Pharos"
    assert tenant.admin.name in mail.text
