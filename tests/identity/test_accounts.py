"""A person's own account over HTTP: sessions and devices, and the password."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import func, select, update
from tests.conftest import open_client
from tests.make import PASSWORD, MadeTenant, make_person

from pharos.identity.current import COOKIE
from pharos.identity.lockout import count_failure
from pharos.identity.models import Membership, RefreshToken, SecurityEvent, SignInSession, User
from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_session_token
from pharos.identity.sessions import sweep_sessions
from pharos.identity.sign_in import Origin, open_session
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotSignedIn
from pharos.runtime import Runtime

NEW = "another password of mine"
LAPTOP, PHONE = Origin(ip="198.51.100.23", agent="Laptop"), Origin(ip="2001:db8:1:2::3", agent="Phone")


async def test_a_person_sees_their_devices_without_full_addresses(
    as_member: httpx.AsyncClient, runtime: Runtime, member: Principal, tenant: MadeTenant
) -> None:
    await open_session(runtime, tenant.admin)
    await open_session(runtime, member, origin=LAPTOP)
    await open_session(runtime, member, origin=PHONE, door="magic_link")
    found = (await as_member.get("/auth/sessions")).json()["sessions"]
    assert {(row["agent"], row["ip"], row["door"], row["isCurrent"]) for row in found} == {
        ("Laptop", "198.51.100.0", "password", False),
        ("Phone", "2001:db8:1::", "magic_link", False),
        ("", "", "password", True),
    }


async def test_a_device_that_is_new_is_told_once(runtime: Runtime, member: Principal) -> None:
    for origin in (LAPTOP, LAPTOP, PHONE, PHONE, LAPTOP):
        await open_session(runtime, member, origin=origin)
    async with runtime.db.transaction(member.tenant_id) as session:
        events = select(SecurityEvent.agent).where(SecurityEvent.event_type == "new_device_login")
        assert (await session.execute(events)).scalars().all() == ["Phone"]


async def test_a_person_ends_one_device_or_all_others(
    as_member: httpx.AsyncClient, as_admin: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    one, two = await open_session(runtime, member), await open_session(runtime, member)
    session_id = (await find_by_session_token(runtime, one.session_token)).session_id
    assert (await as_admin.delete(f"/auth/sessions/{session_id}")).status_code == 404
    assert (await as_member.delete(f"/auth/sessions/{session_id}")).status_code == 204
    assert (await as_member.delete(f"/auth/sessions/{session_id}")).status_code == 404
    with pytest.raises(NotSignedIn):
        await find_by_session_token(runtime, one.session_token)
    assert (await as_member.delete("/auth/sessions")).status_code == 204
    with pytest.raises(NotSignedIn):
        await find_by_session_token(runtime, two.session_token)
    assert len((await as_member.get("/auth/sessions")).json()["sessions"]) == 1
    assert (await as_admin.get("/auth/session")).status_code == 200


class TestPassword:
    async def test_changing_it_ends_all_other_sessions_in_every_tenant(
        self, as_member: httpx.AsyncClient, runtime: Runtime, member: Principal, stranger: Principal
    ) -> None:
        async with runtime.db.transaction(stranger.tenant_id) as session:
            session.add(Membership(tenant_id=stranger.tenant_id, user_id=member.user_id))
        there = Principal(tenant_id=stranger.tenant_id, user_id=member.user_id, name=member.name)
        others = [await open_session(runtime, member), await open_session(runtime, there)]
        body = {"oldPassword": PASSWORD, "newPassword": NEW}
        assert (await as_member.post("/auth/password", json=body)).status_code == 204
        assert (await as_member.get("/auth/session")).status_code == 200
        for other in others:
            with pytest.raises(NotSignedIn):
                await find_by_session_token(runtime, other.session_token)
        async with open_client(runtime) as client:
            answers = [
                (await client.post("/auth/login", json={"email": member.name, "password": password})).status_code
                for password in (PASSWORD, NEW)
            ]
        assert answers == [401, 200]
        async with runtime.db.transaction(member.tenant_id) as session:
            events = select(SecurityEvent.event_type).where(SecurityEvent.user_id == member.user_id)
            assert "password_changed" in (await session.execute(events)).scalars().all()

    async def test_what_is_wrong_changes_nothing(
        self, as_member: httpx.AsyncClient, runtime: Runtime, member: Principal
    ) -> None:
        other = await open_session(runtime, member)
        for old, new, expected in (
            ("wrong password", NEW, (403, "wrong_password")),
            (PASSWORD, "short", (422, "weak_password")),
            (PASSWORD, PASSWORD, (422, "same_password")),
        ):
            answer = await as_member.post("/auth/password", json={"oldPassword": old, "newPassword": new})
            assert (answer.status_code, answer.json()["error"]) == expected
        assert await find_by_session_token(runtime, other.session_token)
        async with system_transaction(runtime.db) as session:
            counted = select(User.failed_sign_ins).where(User.id == member.user_id)
            assert (await session.execute(counted)).scalar_one() == 1

    async def test_wrong_ones_are_told_and_the_lock_is_said_whatever_the_password(
        self, as_member: httpx.AsyncClient, runtime: Runtime, member: Principal
    ) -> None:
        assert member.user_id is not None
        async with system_transaction(runtime.db) as session:
            for _ in range(4):
                await count_failure(session, member.user_id)
        answers = []
        for old in ("wrong password", "wrong password", PASSWORD):
            answer = await as_member.post("/auth/password", json={"oldPassword": old, "newPassword": NEW})
            answers.append((answer.status_code, answer.json()["error"]))
        assert answers == [(403, "wrong_password"), (429, "account_locked"), (429, "account_locked")]
        assert 290 < int(answer.headers["retry-after"]) <= 300
        async with runtime.db.transaction(member.tenant_id) as session:
            events = select(SecurityEvent.event_type).where(SecurityEvent.user_id == member.user_id)
            assert sorted((await session.execute(events)).scalars()) == ["account_locked", "login_failed"]

    @pytest.mark.contract("ID-09", part="a password that was handed out must be changed at the first sign-in")
    async def test_one_that_was_handed_out_opens_its_change_and_nothing_else(
        self, runtime: Runtime, tenant: MadeTenant
    ) -> None:
        person = await make_person(runtime.db, tenant.id, platform_role="admin")
        async with system_transaction(runtime.db) as session:
            await session.execute(update(User).where(User.id == person.user_id).values(must_change_password=True))
        async with open_client(runtime, person) as client:
            for method, path in (("GET", "/projects"), ("GET", "/auth/session"), ("POST", "/api-keys")):
                answer = await client.request(method, path, json={"name": "x"} if method == "POST" else None)
                assert (answer.status_code, answer.json()["error"]) == (403, "password_change_required"), path
            body = {"oldPassword": PASSWORD, "newPassword": NEW}
            assert (await client.post("/auth/password", json=body)).status_code == 204
            assert (await client.get("/projects")).status_code == 200

    async def test_a_page_needs_its_token_to_change_it(
        self, client: httpx.AsyncClient, runtime: Runtime, member: Principal
    ) -> None:
        client.cookies.set(COOKIE, (await open_session(runtime, member)).session_token)
        answer = await client.post("/auth/password", json={"oldPassword": PASSWORD, "newPassword": NEW})
        assert (answer.status_code, answer.json()["error"]) == (403, "bad_csrf_token")


async def test_signing_out_works_before_the_password_is_changed(
    as_member: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    async with system_transaction(runtime.db) as session:
        await session.execute(update(User).where(User.id == member.user_id).values(must_change_password=True))
    assert (await as_member.post("/auth/logout")).status_code == 204
    async with runtime.db.transaction(member.tenant_id) as session:
        ended = select(SignInSession.revoked_at).where(SignInSession.user_id == member.user_id)
        assert (await session.execute(ended)).scalar_one() is not None


async def test_what_ended_long_ago_is_removed_and_nothing_else(runtime: Runtime, member: Principal) -> None:
    ended = {"old": 31, "recent": 29, "open": 0}
    for agent, days in ended.items():
        await open_session(runtime, member, holder="program", origin=Origin(agent=agent))
        if days:
            async with runtime.db.transaction(member.tenant_id) as session:
                over = update(SignInSession).where(SignInSession.agent == agent)
                await session.execute(over.values(revoked_at=func.now() - timedelta(days=days)))
    async with runtime.db.transaction(member.tenant_id) as session:
        assert await sweep_sessions(session) == 1
        assert (await session.execute(select(func.count()).select_from(RefreshToken))).scalar_one() == 2
        left = (await session.execute(select(SignInSession.agent))).scalars().all()
    assert sorted(left) == ["open", "recent"]
