"""Signing in and out, and what is not a sign-in."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from pwdlib import PasswordHash
from sqlalchemy import delete, func, select, update
from tests.conftest import QUICK_HASHING, open_client
from tests.make import PASSWORD, MadeTenant, make_person, make_tenant

from pharos.identity import passwords, same_time
from pharos.identity.current import COOKIE
from pharos.identity.models import AuditEntry, Membership, SecurityEvent, SignInSession, User
from pharos.identity.principal import Principal
from pharos.identity.sign_in import open_session
from pharos.identity.signing_keys import key_id, signing_key
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotFound
from pharos.infra.settings import Settings
from pharos.runtime import Runtime

PAGE = {"X-CSRF-Token": ""}  # what the pages' script sends


@pytest.mark.contract("ID-04")
async def test_a_login_gives_tokens_that_open_the_api(client: httpx.AsyncClient, member: Principal) -> None:
    answer = await client.post("/auth/login", json={"email": member.name.upper(), "password": PASSWORD})
    tokens = answer.json()
    assert answer.status_code == 200
    assert tokens["expiresIn"] == 1800
    assert "set-cookie" not in answer.headers
    bearer = {"Authorization": f"Bearer {tokens['accessToken']}"}
    assert (await client.get("/auth/session", headers=bearer)).json()["email"] == member.name
    assert answer.headers["cache-control"] == "no-store"


class WatchedHashing(PasswordHash):
    """Notes what each comparison costs: the parameters in the hash that is compared with."""

    def __init__(self) -> None:
        super().__init__(QUICK_HASHING.hashers)
        self.costs: list[str] = []

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:
        self.costs.append(str(hash).rsplit("$", 2)[0])
        return super().verify(password, hash)


@pytest.mark.contract("ID-04")
async def test_every_failed_login_looks_the_same_and_is_the_same_work(
    runtime: Runtime, tenant: MadeTenant, member: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing = WatchedHashing()
    monkeypatch.setattr(passwords, "HASHING", hashing)
    disabled, locked = [await make_person(runtime.db, tenant.id) for _ in range(2)]
    async with system_transaction(runtime.db) as session:
        await session.execute(update(User).where(User.id == disabled.user_id).values(disabled_at=func.now()))
        in_a_minute = func.now() + timedelta(minutes=1)
        await session.execute(update(User).where(User.id == locked.user_id).values(locked_until=in_a_minute))
    tries = [(member.name, "wrong password"), ("nobody@example.org", PASSWORD)]
    tries += [(person.name, PASSWORD) for person in (disabled, locked)]
    answers = []
    for email, password in tries:
        async with open_client(runtime) as client:
            answer = await client.post("/auth/login", json={"email": email, "password": password})
        body = answer.json()
        body.pop("requestId")
        answers.append((answer.status_code, body))
    assert answers == [answers[0]] * len(tries)
    assert answers[0][0] == 401
    assert hashing.costs == [hashing.costs[0]] * len(tries), "one comparison each, also where there is nobody"


@pytest.mark.contract("ID-04", part="the time of a failed login says nothing of an address")
async def test_every_failed_login_takes_its_time(
    client: httpx.AsyncClient, member: Principal, real_answer_time: float
) -> None:
    for email in (member.name, "nobody@example.org"):
        started = time.perf_counter()
        assert (await client.post("/auth/login", json={"email": email, "password": "wrong"})).status_code == 401
        assert time.perf_counter() - started > real_answer_time


async def test_guessing_at_names_nobody_has_is_told_without_the_names(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    default = await ensure_default_tenant(runtime)
    names = [f"{secrets.token_hex(6)}@example.org" for _ in range(2)]
    client.headers["User-Agent"] = names[0][:12]
    for name in (names[0], names[0].upper(), names[1]):
        assert (await client.post("/auth/login", json={"email": name, "password": PASSWORD})).status_code == 401
    async with runtime.db.transaction(default) as session:
        mine = select(SecurityEvent).where(SecurityEvent.agent == names[0][:12]).order_by(SecurityEvent.id)
        events = (await session.execute(mine)).scalars().all()
    assert {(event.event_type, event.user_id) for event in events} == {("login_failed", None)}
    one, same, other = [event.subject for event in events]
    assert one == same != other
    assert one.startswith("unknown:")
    assert not any(name in one + other for name in names)
    assert hashlib.sha256(names[0].encode()).hexdigest()[:16] not in one, "without the key a guess proves nothing"


async def test_the_time_is_kept_when_something_fails(real_answer_time: float) -> None:
    started = time.perf_counter()
    with pytest.raises(NotFound):
        async with same_time.same_time():
            raise NotFound("nothing")
    assert time.perf_counter() - started > real_answer_time


async def test_a_person_of_two_tenants_chooses_by_slug(client: httpx.AsyncClient, runtime: Runtime) -> None:
    first, second = await make_tenant(runtime.db), await make_tenant(runtime.db)
    async with runtime.db.transaction(second.id) as session:
        session.add(Membership(tenant_id=second.id, user_id=first.admin.user_id))
    for slug, expected in ((None, first), (second.slug, second)):
        login = {"email": first.admin.name, "password": PASSWORD} | ({"tenant": slug} if slug else {})
        token = (await client.post("/auth/login", json=login)).json()["accessToken"]
        me = await client.get("/auth/session", headers={"Authorization": f"Bearer {token}"})
        assert me.json()["tenantId"] == str(expected.id)


@pytest.mark.contract("AC-09", part="a login cannot name a tenant the person does not belong to")
async def test_a_login_into_a_foreign_tenant_fails(
    client: httpx.AsyncClient, member: Principal, runtime: Runtime
) -> None:
    foreign = await make_tenant(runtime.db)
    login = {"email": member.name, "password": PASSWORD, "tenant": foreign.slug}
    assert (await client.post("/auth/login", json=login)).status_code == 401


def forge(runtime: Runtime, principal: Principal, session_id: object, **changes: Any) -> str:
    key = signing_key(runtime.settings)
    now = datetime.now(UTC)
    claims = {
        "iss": "pharos", "aud": "pharos-api", "sub": str(principal.user_id), "iat": now,
        "exp": now + timedelta(minutes=5), "jti": "1", "tenant": str(principal.tenant_id), "sid": str(session_id),
    }  # fmt: skip
    claims = {name: value for name, value in (claims | changes.pop("claims", {})).items() if value is not None}
    return jwt.encode(
        claims,
        changes.get("key", key),
        algorithm=changes.get("algorithm", "HS256"),
        headers={"kid": changes.get("kid", key_id(key))},
    )


@pytest.mark.contract("ID-06", part="forged, foreign, expired and incomplete tokens")
async def test_a_token_we_did_not_sign_in_this_form_is_refused(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal, stranger: Principal
) -> None:
    issued = await open_session(runtime, member)
    claims = jwt.decode(issued.access_token, options={"verify_signature": False})

    async def status(**changes: Any) -> int:
        token = forge(runtime, member, claims["sid"], **changes)
        return (await client.get("/projects", headers={"Authorization": f"Bearer {token}"})).status_code

    assert await status() == 200
    key = signing_key(runtime.settings)
    assert await status(key=b"another key that is as long as ours", kid=key_id(key)) == 401
    assert await status(algorithm="HS384") == 401
    assert await status(algorithm="none", key="") == 401
    assert await status(kid="../../etc/passwd") == 401
    for change in (
        {"exp": datetime.now(UTC) - timedelta(seconds=1)},
        {"aud": "elsewhere"},
        {"iss": "elsewhere"},
        {"jti": None},
        {"exp": None},
        {"tenant": str(stranger.tenant_id)},
        {"sub": str(stranger.user_id)},
        {"sid": str(stranger.user_id)},
        {"tenant": "not a tenant"},
    ):
        assert await status(claims=change) == 401, change


@pytest.mark.contract("ID-06")
async def test_an_access_token_is_hs256_and_lives_as_long_as_is_set(runtime: Runtime, member: Principal) -> None:
    assert Settings(_env_file=None).access_token_minutes == 30
    for minutes in (30, 5):
        settings = runtime.settings.model_copy(update={"access_token_minutes": minutes})
        token = (await open_session(replace(runtime, settings=settings), member)).access_token
        claims = jwt.decode(token, signing_key(settings), algorithms=["HS256"], audience="pharos-api")
        assert claims["exp"] - claims["iat"] == minutes * 60


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "Bearer ", "Bearer a.b.c", "nonsense", "Bearer \xff"])
async def test_a_strange_authorization_header_is_nobody(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.get("/projects", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_whoever_leaves_the_tenant_is_out_at_once(
    as_member: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    assert (await as_member.get("/projects")).status_code == 200
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(delete(Membership).where(Membership.user_id == member.user_id))
    assert (await as_member.get("/projects")).status_code == 401


async def test_signing_out_ends_every_token_of_the_session(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    issued = await open_session(runtime, member, holder="program")
    bearer = {"Authorization": f"Bearer {issued.access_token}"}
    assert (await client.post("/auth/logout", headers=bearer)).status_code == 204
    assert (await client.get("/auth/session", headers=bearer)).status_code == 401
    refreshed = await client.post("/auth/refresh", json={"refreshToken": issued.refresh_token})
    assert refreshed.status_code == 401
    async with runtime.db.transaction(member.tenant_id) as session:
        actions = (await session.execute(select(AuditEntry.action).where(AuditEntry.actor == member.name))).scalars()
        assert sorted(actions) == ["session.ended", "session.opened"]


async def test_tokens_are_stored_as_hashes_only(runtime: Runtime, member: Principal) -> None:
    issued = await open_session(runtime, member)
    async with runtime.db.transaction(member.tenant_id) as session:
        stored = (await session.execute(select(SignInSession).filter_by(user_id=member.user_id))).scalar_one()
    assert issued.session_token not in str(vars(stored))
    assert len(stored.token_hash or "") == 64


async def test_a_session_that_has_run_out_is_nobody(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    issued = await open_session(runtime, member)
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(update(SignInSession).values(expires_at=func.now()))
    client.cookies.set(COOKIE, issued.session_token)
    assert (await client.get("/auth/session")).status_code == 401


class TestCookie:
    async def test_a_page_gets_a_cookie_no_script_can_read_and_no_refresh_token(
        self, client: httpx.AsyncClient, member: Principal
    ) -> None:
        login = {"email": member.name, "password": PASSWORD}
        answer = await client.post("/auth/login", json=login, headers=PAGE)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=phs_")
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert "refreshToken" not in answer.json()
        assert (await client.get("/auth/session")).json()["email"] == member.name

    async def test_a_change_needs_the_token_of_the_page(
        self, client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, stranger: Principal
    ) -> None:
        issued, other = await open_session(runtime, tenant.admin), await open_session(runtime, stranger)
        client.cookies.set(COOKIE, issued.session_token)
        for headers in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "wrong"}, {"X-CSRF-Token": other.csrf_token}):
            answer = await client.post("/projects", json={"name": "Forged"}, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (403, "bad_csrf_token")
        made = await client.post("/projects", json={"name": "Real"}, headers={"X-CSRF-Token": issued.csrf_token})
        assert made.status_code == 201

    @pytest.mark.parametrize(
        "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
    )
    async def test_a_request_from_another_site_is_refused(
        self, client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, headers: dict[str, str]
    ) -> None:
        issued = await open_session(runtime, tenant.admin)
        client.cookies.set(COOKIE, issued.session_token)
        headers = headers | {"X-CSRF-Token": issued.csrf_token}
        answer = await client.post("/projects", json={"name": "Forged"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (403, "cross_site")
        login = {"email": tenant.admin.name, "password": PASSWORD}
        assert (await client.post("/auth/login", json=login, headers=headers)).status_code == 403

    async def test_a_bad_bearer_token_is_not_saved_by_a_good_cookie(
        self, client: httpx.AsyncClient, runtime: Runtime, member: Principal
    ) -> None:
        client.cookies.set(COOKIE, (await open_session(runtime, member)).session_token)
        assert (await client.get("/projects", headers={"Authorization": "Bearer a.b.c"})).status_code == 401

    @pytest.mark.parametrize("token", ["", "nonsense", "phs_zz_x", f"phs_{'0' * 32}_x", "phs__"])
    async def test_a_strange_cookie_is_nobody(self, client: httpx.AsyncClient, token: str) -> None:
        client.cookies.set(COOKIE, token)
        assert (await client.get("/projects")).status_code == 401
