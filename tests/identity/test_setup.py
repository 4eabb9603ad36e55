"""First setup: a link from the machine, one account, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import select, update
from tests.conftest import open_client

from pharos.identity import setup
from pharos.identity.commands import save_admin
from pharos.identity.models import BootstrapState, Membership, Tenant, User
from pharos.identity.passwords import hash_apart
from pharos.identity.setup import NewPerson, issue_setup_link
from pharos.identity.tenants import ensure_default_tenant, find_tenant, get_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict
from pharos.infra.limits import SETUP
from pharos.runtime import Runtime

OWNER = {"name": "Ada", "email": "Ada@Example.org", "password": "a long enough password"}
CEO = {"name": "Grace", "email": "grace@example.org"}
BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture
async def fresh(fresh_runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(fresh_runtime) as client:
        yield client


async def setup_token(runtime: Runtime) -> str:
    return (await issue_setup_link(runtime)).rpartition("token=")[2]


@pytest.mark.contract("ID-01")
async def test_status_is_exactly_one_word_before_and_after_the_setup(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime
) -> None:
    before = await fresh.get("/bootstrap/status")
    assert (before.status_code, before.text) == (200, '{"isInitialized":false}')
    await fresh.post("/bootstrap/init", json={"token": await setup_token(fresh_runtime), **OWNER})
    assert (await fresh.get("/bootstrap/status")).json() == {"isInitialized": True}


@pytest.mark.contract("ID-02")
@pytest.mark.parametrize("path", ["/", "/projects/018f0000-0000-7000-8000-000000000000", "/nowhere"])
async def test_a_browser_is_led_to_the_setup_page(fresh: httpx.AsyncClient, path: str) -> None:
    answer = await fresh.get(path, headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (303, "/onboarding/first-login")


@pytest.mark.contract("ID-02")
async def test_the_api_says_that_it_is_not_set_up(fresh: httpx.AsyncClient) -> None:
    answers = [
        await fresh.get("/projects"),
        await fresh.get("/projects", headers={"Authorization": "Bearer nonsense"}),
        await fresh.post("/auth/login", json={"email": "a@b.org", "password": "x"}),
    ]
    assert [(a.status_code, a.json()["error"]) for a in answers] == [(503, "not_initialized")] * 3
    assert (await fresh.get("/health/live")).status_code == 200


@pytest.mark.contract("ID-02")
async def test_the_setup_page_offers_nothing_once_set_up(fresh: httpx.AsyncClient, fresh_runtime: Runtime) -> None:
    link = await issue_setup_link(fresh_runtime)
    path = link.removeprefix(fresh_runtime.settings.base_url)
    assert 'name="password"' in (await fresh.get(path, headers=BROWSER)).text
    await fresh.post("/bootstrap/init", json={"token": link.rpartition("=")[2], **OWNER})
    fresh.cookies.clear()
    assert 'name="password"' not in (await fresh.get(path, headers=BROWSER)).text


@pytest.mark.contract("ID-03")
async def test_setup_makes_the_superadmin_and_the_head_in_one_go(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime
) -> None:
    answer = await fresh.post("/bootstrap/init", json={"token": await setup_token(fresh_runtime), **OWNER, "ceo": CEO})
    assert answer.status_code == 201
    bearer = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
    me = (await fresh.get("/auth/session", headers=bearer)).json()
    assert (me["email"], me["platformRole"]) == ("ada@example.org", "superadmin")
    tenant_id = await find_tenant(fresh_runtime, "default")
    async with fresh_runtime.db.transaction(tenant_id) as session:
        places = select(User.email, Membership.platform_role, Membership.org_position).join(Membership)
        rows = {tuple(row) for row in await session.execute(places)}
    assert rows == {("ada@example.org", "superadmin", "member"), ("grace@example.org", "none", "ceo")}


async def test_the_organisation_is_called_what_the_setup_says(fresh: httpx.AsyncClient, fresh_runtime: Runtime) -> None:
    body = {"token": await setup_token(fresh_runtime), **OWNER, "organisation": "  Harbour   Office "}
    answer = await fresh.post("/bootstrap/init", json=body)
    assert (await get_tenant(fresh_runtime, "default")).name == "Harbour Office"
    bearer = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
    assert (await fresh.patch("/tenant", json={"name": "Quay"}, headers=bearer)).status_code == 204
    assert (await fresh.patch("/tenant", json={"name": "  "}, headers=bearer)).json()["error"] == "bad_name"
    assert (await get_tenant(fresh_runtime, "default")).name == "Quay"
    entries = (await fresh.get("/audit-log", params={"action": "tenant.renamed"}, headers=bearer)).json()["entries"]
    assert [entry["detail"]["new"] for entry in entries] == ["Quay", "Harbour Office"]


async def test_the_organisation_keeps_its_name_where_the_setup_gives_none(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime
) -> None:
    await fresh.post("/bootstrap/init", json={"token": await setup_token(fresh_runtime), **OWNER, "organisation": " "})
    assert (await get_tenant(fresh_runtime, "default")).name == "Default"


@pytest.mark.contract("ID-02")
async def test_a_wrong_or_replaced_token_makes_nothing(fresh: httpx.AsyncClient, fresh_runtime: Runtime) -> None:
    replaced = await setup_token(fresh_runtime)
    await setup_token(fresh_runtime)
    for token in ("wrong", replaced):
        answer = await fresh.post("/bootstrap/init", json={"token": token, **OWNER})
        assert (answer.status_code, answer.json()["error"]) == (403, "bad_setup_token")
    async with system_transaction(fresh_runtime.db) as session:
        assert (await session.execute(select(User))).all() == []


async def test_a_stranger_cannot_make_the_setup_hash_passwords_or_try_for_ever(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    async def counted(password: str) -> str:
        hashed.append(password)
        return await hash_apart(password)

    monkeypatch.setattr(setup, "hash_apart", counted)
    body = {**OWNER, "ceo": {**CEO, "password": "a long enough one"}}
    token = await setup_token(fresh_runtime)
    answers = [(await fresh.post("/bootstrap/init", json={"token": "wrong", **body})).status_code for _ in range(11)]
    assert answers == [403] * SETUP.hits + [429]
    assert hashed == []
    async with open_client(fresh_runtime) as elsewhere:
        assert (await elsewhere.post("/bootstrap/init", json={"token": token, **body})).status_code == 201
        assert len(hashed) == 2
        assert (await elsewhere.post("/bootstrap/init", json={"token": token, **body})).status_code == 409
    assert len(hashed) == 2


@pytest.mark.contract("ID-02")
async def test_the_token_works_once_even_if_the_flag_is_edited_by_hand(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime
) -> None:
    token = await setup_token(fresh_runtime)
    async with system_transaction(fresh_runtime.db) as session:
        hashed = (await session.execute(select(BootstrapState.setup_token_hash))).scalar_one()
    await fresh.post("/bootstrap/init", json={"token": token, **OWNER})
    again = {"token": token, **OWNER, "email": "eve@example.org"}
    assert (await fresh.post("/bootstrap/init", json=again)).status_code == 409
    async with system_transaction(fresh_runtime.db) as session:
        await session.execute(update(BootstrapState).values(is_initialized=False, setup_token_hash=hashed))
    assert (await fresh.post("/bootstrap/init", json=again)).status_code == 409
    with pytest.raises(Conflict):
        await issue_setup_link(fresh_runtime)


@pytest.mark.contract("ID-02")
async def test_of_two_browsers_one_wins(fresh: httpx.AsyncClient, fresh_runtime: Runtime) -> None:
    token = await setup_token(fresh_runtime)
    bodies = [{"token": token, **OWNER, "email": f"p{number}@example.org"} for number in range(4)]
    answers = await asyncio.gather(*(fresh.post("/bootstrap/init", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"password": "short"}, "weak_password"),
        ({"email": "nobody"}, "bad_email"),
        ({"ceo": {"name": "Ada", "email": "ada@example.org"}}, "same_email"),
    ],
)
async def test_what_is_wrong_is_said_and_the_token_stays_good(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime, change: dict[str, object], code: str
) -> None:
    token = await setup_token(fresh_runtime)
    wrong = await fresh.post("/bootstrap/init", json={"token": token, **OWNER, **change})
    assert (wrong.status_code, wrong.json()["error"]) == (422, code)
    assert (await fresh.post("/bootstrap/init", json={"token": token, **OWNER})).status_code == 201


@pytest.mark.contract("AC-11")
async def test_seeding_twice_makes_one_default_tenant(fresh_runtime: Runtime) -> None:
    assert await ensure_default_tenant(fresh_runtime) == await ensure_default_tenant(fresh_runtime)
    async with system_transaction(fresh_runtime.db) as session:
        assert (await session.execute(select(Tenant.slug))).scalars().all() == ["default"]


@pytest.mark.contract("ID-08", part="creating, and changing the password by running it again")
async def test_an_administrator_made_at_the_machine_closes_the_setup(
    fresh: httpx.AsyncClient, fresh_runtime: Runtime
) -> None:
    token = await setup_token(fresh_runtime)
    for password, is_new in (("a first password", True), ("a second password", False)):
        person = NewPerson(name="admin", email="admin@example.com", password=password)
        assert await save_admin(fresh_runtime, person, tenant="default") is is_new
    assert (await fresh.post("/bootstrap/init", json={"token": token, **OWNER})).status_code == 409
    statuses = [
        (await fresh.post("/auth/login", json={"email": "admin@example.com", "password": password})).status_code
        for password in ("a first password", "a second password")
    ]
    assert statuses == [401, 200]
