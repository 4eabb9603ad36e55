"""What one caller may ask in a minute: counted by person, else by key, else by address; pages are free."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import psycopg
import pytest
from psycopg import sql
from tests.conftest import open_client
from tests.infra.test_limits import times_failed_open
from tests.make import MadeTenant, make_project, make_tenant
from tests.postgres import Server

from pharos.identity.api_keys import create_key
from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_api_key
from pharos.identity.request_limits import limit_subject
from pharos.infra.limits import GENERAL, LLM, Policy
from pharos.runtime import Runtime


async def use_up(runtime: Runtime, policy: Policy, subject: str | None) -> None:
    assert subject is not None
    await asyncio.gather(*(runtime.limits.hit(policy, subject) for _ in range(policy.hits)))


async def ask(client: httpx.AsyncClient, project: object) -> httpx.Response:
    return await client.post("/chat", json={"question": "Where is the lighthouse?", "projectId": str(project)})


@pytest.mark.contract("RL-01", part="by person")
@pytest.mark.contract("RL-10", part="429 with Retry-After and retryAfterMs, and the code `rate_limited`")
async def test_the_hundred_and_first_request_in_a_minute_is_told_when_to_come_back(
    runtime: Runtime, as_member: httpx.AsyncClient, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    for _ in range(2):
        assert (await as_member.get("/projects")).status_code == 200
    await asyncio.gather(*(runtime.limits.hit(GENERAL, limit_subject(member) or "") for _ in range(98)))
    refused = await as_member.get("/projects")
    assert refused.status_code == 429
    body = refused.json()
    assert body["error"] == "rate_limited"
    assert 0 < body["retryAfterMs"] <= 60_000
    assert int(refused.headers["retry-after"]) == -(-body["retryAfterMs"] // 1000)
    assert (await as_admin.get("/projects")).status_code == 200


@pytest.mark.contract("RL-01", part="by person, whatever the session or the tenant")
async def test_a_second_session_does_not_give_a_second_hundred(runtime: Runtime, member: Principal) -> None:
    await use_up(runtime, GENERAL, limit_subject(member))
    async with open_client(runtime, member) as another:
        assert (await another.get("/projects")).status_code == 429


@pytest.mark.contract("RL-01", part="by API key where there is no person, by nothing for a guest")
def test_a_key_of_no_person_is_a_subject_of_its_own(member: Principal) -> None:
    key = replace(member, user_id=None, kind="program", name="key:nightly")
    assert limit_subject(key) not in {None, limit_subject(replace(key, name="key:other")), limit_subject(member)}
    assert limit_subject(replace(member, kind="program", name="key:mine")) == limit_subject(member)
    assert limit_subject(replace(member, user_id=None, kind="guest", name="guest")) is None


@pytest.mark.contract("RL-01", part="over HTTP, by API key where there is no person")
async def test_two_keys_of_nobody_have_a_hundred_each(runtime: Runtime, tenant: MadeTenant) -> None:
    headers = []
    for name in ("nightly", "weekly"):
        async with runtime.db.transaction(tenant.id) as session:
            _, key = await create_key(
                session, tenant.admin, name=name, scopes=["read"], user_id=None, expires_in_days=None
            )
        headers.append({"X-API-Key": key})
    async with open_client(runtime) as client:
        assert [(await client.get("/projects", headers=key)).status_code for key in headers] == [200, 200]
        nightly = await find_by_api_key(runtime, headers[0]["X-API-Key"])
        await asyncio.gather(*(runtime.limits.hit(GENERAL, limit_subject(nightly) or "") for _ in range(98)))
        assert (await client.get("/projects", headers=headers[0])).status_code == 200
        assert [(await client.get("/projects", headers=key)).status_code for key in headers] == [429, 200]


@pytest.mark.contract("RL-01", part="by address where nobody is known")
@pytest.mark.parametrize("path", ["/projects", "/bootstrap/status"])
async def test_who_is_not_known_is_counted_by_address(runtime: Runtime, path: str) -> None:
    async with open_client(runtime) as client, open_client(runtime) as neighbour:
        before = (await client.get(path)).status_code
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        await asyncio.gather(*(runtime.limits.hit(GENERAL, f"ip:{transport.client[0]}") for _ in range(99)))
        assert (before, (await client.get(path)).status_code) == ((await neighbour.get(path)).status_code, 429)
        forged = await client.get(path, headers={"Authorization": "Bearer nonsense"})
        assert forged.status_code == 429


@pytest.mark.contract("RL-01", part="by address where a key opens nothing")
async def test_a_key_where_only_people_may_go_counts_for_its_address(runtime: Runtime) -> None:
    async with open_client(runtime) as client:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        await asyncio.gather(*(runtime.limits.hit(GENERAL, f"ip:{transport.client[0]}") for _ in range(99)))
        offered = [(await client.get("/api-keys", headers={"X-API-Key": "any"})).status_code for _ in range(2)]
    assert offered == [403, 429]


async def test_pages_static_files_and_health_are_not_counted(runtime: Runtime, member: Principal) -> None:
    await use_up(runtime, GENERAL, limit_subject(member))
    async with open_client(runtime, member) as client:
        for path in ("/", "/static/api.js", "/health", "/health/live"):
            assert (await client.get(path)).status_code == 200, path
        refused = await client.get("/projects", headers={"Accept": "text/html"})
    assert (refused.status_code, "retry-after" in refused.headers) == (429, True)


async def test_a_batch_of_uploads_does_not_use_up_the_requests(
    runtime: Runtime, tenant: MadeTenant, as_admin: httpx.AsyncClient
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    await use_up(runtime, GENERAL, limit_subject(tenant.admin))
    files = {"file": ("note.txt", b"The lighthouse stood on an island.")}
    assert (await as_admin.post(f"/projects/{project}/documents", files=files)).status_code == 201


@pytest.mark.contract("RL-02")
async def test_the_eleventh_question_in_a_minute_is_refused(
    runtime: Runtime, tenant: MadeTenant, as_admin: httpx.AsyncClient
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    assert (await ask(as_admin, project)).status_code == 200
    await asyncio.gather(*(runtime.limits.hit(LLM, limit_subject(tenant.admin) or "") for _ in range(9)))
    refused = await ask(as_admin, project)
    streamed = await as_admin.post(f"/chat/projects/{project}", json={"question": "Where?"})
    assert [(reply.status_code, reply.json()["error"]) for reply in (refused, streamed)] == [(429, "rate_limited")] * 2
    assert (await as_admin.get("/projects")).status_code == 200


@pytest.mark.contract("RL-03", part="the app works")
async def test_the_app_works_while_the_limits_are_away(fresh_runtime: Runtime, database_server: Server) -> None:
    tenant = await make_tenant(fresh_runtime.db)
    urls = database_server.urls((fresh_runtime.settings.database_url or "").rpartition("/")[2])
    with psycopg.connect(urls.migrator) as connection:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(urls.owner_role)))
        connection.execute("drop table rate_limits")
    before = times_failed_open("general")
    async with open_client(fresh_runtime, tenant.admin) as client:
        assert [(await client.get("/projects")).status_code for _ in range(3)] == [200, 200, 200]
    assert times_failed_open("general") == before + 3


@pytest.mark.contract("RL-10", part="behind a trusted proxy clients are told apart by the forwarded address")
async def test_behind_a_trusted_proxy_each_client_has_its_own_limit(runtime: Runtime) -> None:
    settings = runtime.settings.model_copy(update={"trusted_proxies": "10.0.0.0/8"})
    behind, one, other = replace(runtime, settings=settings), "198.51.100.1", "198.51.100.2"
    await use_up(runtime, GENERAL, f"ip:{one}")
    async with open_client(behind) as client:
        statuses = [
            (await client.get("/bootstrap/status", headers={"X-Forwarded-For": address})).status_code
            for address in (one, f"{other}, {one}", other)
        ]
    assert statuses == [429, 429, 200]
