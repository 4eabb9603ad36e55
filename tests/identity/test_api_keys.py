"""Keys of programs: narrow, shown once, revocable, and never an administrator's."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Interval, cast, func, select, update
from tests.make import MadeTenant, make_person, make_project

from pharos.identity.api_keys import create_key, list_keys, revoke_key
from pharos.identity.models import ApiKey, AuditEntry, Membership, SecurityEvent, User
from pharos.identity.principal import Principal, operator
from pharos.identity.recognise import find_by_api_key
from pharos.infra.errors import NotFound, NotSignedIn
from pharos.runtime import Runtime

FORM = {"files": {"file": ("note.txt", b"The lighthouse stood on Pharos.")}}


async def make_key(runtime: Runtime, actor: Principal, **choices: Any) -> str:
    async with runtime.db.transaction(actor.tenant_id) as session:
        return (await create_key(session, actor, name=choices.pop("name", "a program"), **choices))[1]


def header(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


@pytest.mark.contract("ID-07", part="what administrates refuses a key")
async def test_a_key_opens_the_api_and_no_administration(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    await make_project(runtime.db, tenant.admin, name="Open")
    key = await make_key(runtime, tenant.admin, user_id=tenant.admin.user_id, scopes=["read", "ask", "ingest"])
    found = await client.get("/projects", headers=header(key))
    assert [project["name"] for project in found.json()["projects"]] == ["Open"]
    refused = [
        await client.get("/admin/stats", headers=header(key)),
        await client.post("/ingest", headers=header(key)),
        await client.get("/api-keys", headers=header(key)),
        await client.post("/api-keys", headers=header(key), json={"name": "another"}),
        await client.post("/auth/password", headers=header(key), json={"oldPassword": "x", "newPassword": "y"}),
        await client.post("/projects", headers=header(key), json={"name": "Made by a program"}),
    ]
    assert [(answer.status_code, answer.json()["error"]) for answer in refused] == [(403, "key_not_allowed")] * 6


@pytest.mark.contract("ID-07", part="keys are scoped")
async def test_a_key_does_what_its_scopes_say(client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    requests: dict[str, tuple[str, str, dict[str, Any]]] = {
        "read": ("GET", "/projects", {}),
        "ask": ("POST", "/chat", {"json": {"question": "Who?", "projectId": str(project_id)}}),
        "ingest": ("POST", f"/projects/{project_id}/documents", FORM),
    }
    for scope in requests:
        key = await make_key(runtime, operator(tenant.id), scopes=[scope])
        for needed, (method, path, content) in requests.items():
            answer = await client.request(method, path, headers=header(key), **content)
            assert (answer.json().get("error") == "missing_scope") == (needed != scope), (scope, needed, answer.text)


@pytest.mark.contract("ID-07", part="a key of nobody in particular sees what every member sees")
async def test_a_key_without_a_person_sees_no_private_project(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    await make_project(runtime.db, tenant.admin, name="Open")
    await make_project(runtime.db, tenant.admin, name="Private", is_private=True)
    for user_id in (None, (await make_person(runtime.db, tenant.id)).user_id):
        key = await make_key(runtime, tenant.admin, user_id=user_id)
        found = (await client.get("/projects", headers=header(key))).json()["projects"]
        assert [project["name"] for project in found] == ["Open"]


async def test_keys_for_programs_end_when_who_made_them_is_disabled(
    client: httpx.AsyncClient, as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    chief = await make_person(runtime.db, tenant.id, platform_role="admin")
    made = [(chief, None), (chief, chief.user_id), (tenant.admin, None)]
    keys = [await make_key(runtime, actor, user_id=user_id) for actor, user_id in made]

    async def which_open() -> list[bool]:
        return [(await client.get("/projects", headers=header(key))).status_code == 200 for key in keys]

    assert await which_open() == [True, True, True]
    await as_admin.post(f"/users/{chief.user_id}/disable")
    assert await which_open() == [False, False, True]
    await as_admin.post(f"/users/{chief.user_id}/enable")
    assert await which_open() == [False, True, True]
    wanted = AuditEntry.action == "api_key.revoked", SecurityEvent.event_type == "api_key_revoked"
    async with runtime.db.transaction(tenant.id) as session:
        assert len((await session.execute(select(AuditEntry).where(wanted[0]))).all()) == 1
        assert len((await session.execute(select(SecurityEvent).where(wanted[1]))).all()) == 1


@pytest.mark.contract("SE-08")
@pytest.mark.contract("ID-07", part="stored as hashes, per tenant, several at once, revocable")
async def test_keys_are_kept_as_hashes_and_end_one_by_one(runtime: Runtime, tenant: MadeTenant) -> None:
    keys = [await make_key(runtime, tenant.admin, user_id=tenant.admin.user_id, name=name) for name in "ab"]
    async with runtime.db.transaction(tenant.id) as session:
        stored = await list_keys(session, tenant.admin)
        assert not {row.key_hash for row in stored} & set(keys)
        assert all(key.startswith(f"pha_{tenant.id.hex}_") for key in keys)
        await revoke_key(session, tenant.admin, key_id=next(row.id for row in stored if row.name == "a"))
    with pytest.raises(NotSignedIn):
        await find_by_api_key(runtime, keys[0])
    program = await find_by_api_key(runtime, keys[1])
    assert (program.kind, program.name, program.sees_everything, program.administrates) == (
        "program", "key:b", False, False
    )  # fmt: skip
    async with runtime.db.transaction(tenant.id) as session:
        events = select(SecurityEvent.event_type).where(SecurityEvent.event_type.like("api_key%"))
        actions = select(AuditEntry.action).where(AuditEntry.action.like("api_key%"))
        assert sorted((await session.execute(events)).scalars()) == ["api_key_created"] * 2 + ["api_key_revoked"]
        assert sorted((await session.execute(actions)).scalars()) == ["api_key.created"] * 2 + ["api_key.revoked"]


@pytest.mark.parametrize(
    "change",
    [
        update(ApiKey).values(expires_at=func.now()),
        update(ApiKey).values(revoked_at=func.now()),
        update(Membership).values(disabled_at=func.now()),
        update(User).values(disabled_at=func.now()),
    ],
    ids=["expired", "revoked", "person disabled here", "person disabled"],
)
async def test_a_key_ends_with_its_time_and_its_person(runtime: Runtime, member: Principal, change: Any) -> None:
    key = await make_key(runtime, member, user_id=member.user_id, expires_in_days=1)
    assert (await find_by_api_key(runtime, key)).user_id == member.user_id
    column = change.table.c.id if change.table.name == "users" else change.table.c.user_id
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(change.where(column == member.user_id))
    with pytest.raises(NotSignedIn):
        await find_by_api_key(runtime, key)


@pytest.mark.parametrize("key", ["", "nonsense", "pha_zz_x", f"pha_{'0' * 32}_x", f"phs_{'0' * 32}_x", "x" * 4000])
async def test_a_strange_key_is_nobody(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.get("/projects", headers=header(key))
    assert answer.status_code == 401
    assert answer.json()["message"].startswith("This API key does not open anything.")


async def test_a_key_of_another_tenant_opens_nothing_here(
    runtime: Runtime, tenant: MadeTenant, stranger: Principal
) -> None:
    key = await make_key(runtime, stranger, user_id=stranger.user_id)
    with pytest.raises(NotSignedIn):
        await find_by_api_key(runtime, key.replace(stranger.tenant_id.hex, tenant.id.hex))


async def test_a_bearer_token_beside_a_key_decides_alone(
    as_member: httpx.AsyncClient, client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    key = await make_key(runtime, tenant.admin)
    both = {**header("nonsense"), **as_member.headers}
    assert (await client.get("/auth/session", headers=both)).status_code == 200
    wrong = {**header(key), "Authorization": "Bearer a.b.c"}
    assert (await client.get("/projects", headers=wrong)).status_code == 401


class TestOverHttp:
    async def test_a_person_makes_sees_and_ends_their_own_only(
        self, as_member: httpx.AsyncClient, as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
    ) -> None:
        made = await as_member.post("/api-keys", json={"name": "mine", "expiresInDays": 30})
        assert made.status_code == 201
        assert made.json()["scopes"] == ["read", "ask"]
        others = await as_admin.post("/api-keys", json={"name": "a robot", "forProgram": True, "scopes": ["read"]})
        assert others.json()["userId"] is None
        listed = (await as_member.get("/api-keys")).json()["apiKeys"]
        assert [key["name"] for key in listed] == ["mine"]
        assert "key" not in listed[0]
        assert [key["name"] for key in (await as_admin.get("/api-keys")).json()["apiKeys"]] == ["a robot", "mine"]
        foreign = await as_member.delete(f"/api-keys/{others.json()['id']}")
        assert (foreign.status_code, foreign.json()["error"]) == (404, "no_such_api_key")
        assert (await as_member.delete(f"/api-keys/{made.json()['id']}")).status_code == 204
        assert (await as_member.delete(f"/api-keys/{made.json()['id']}")).status_code == 404
        assert (await as_admin.delete(f"/api-keys/{others.json()['id']}")).status_code == 204

    async def test_what_is_wrong_is_said(self, as_member: httpx.AsyncClient) -> None:
        bodies: list[tuple[dict[str, Any], int]] = [
            ({"name": " "}, 422), ({"name": "x", "scopes": ["admin"]}, 422), ({"name": "x", "scopes": []}, 422),
            ({"name": "x", "expiresInDays": 0}, 422), ({"name": "x", "forProgram": True}, 403),
        ]  # fmt: skip
        for body, status in bodies:
            assert (await as_member.post("/api-keys", json=body)).status_code == status, body

    @pytest.mark.parametrize(("choice", "days"), [({}, 90), ({"expiresInDays": None}, None)])
    async def test_a_key_ends_by_itself_unless_it_is_asked_not_to(
        self, as_member: httpx.AsyncClient, choice: dict[str, None], days: int | None
    ) -> None:
        made = (await as_member.post("/api-keys", json={"name": "x"} | choice)).json()
        made_at, ends_at = (made[name] and datetime.fromisoformat(made[name]) for name in ("createdAt", "expiresAt"))
        assert (ends_at and round((ends_at - made_at) / timedelta(days=1))) == days

    async def test_a_key_that_expires_says_when(self, as_member: httpx.AsyncClient, runtime: Runtime) -> None:
        made = (await as_member.post("/api-keys", json={"name": "x", "expiresInDays": 30})).json()
        async with runtime.db.transaction(await _tenant_of(as_member)) as session:
            left = select(cast(ApiKey.expires_at - func.now(), Interval)).where(ApiKey.id == made["id"])
            assert timedelta(days=29.9) < (await session.execute(left)).scalar_one() <= timedelta(days=30)
            with pytest.raises(NotFound):
                await revoke_key(session, operator(await _tenant_of(as_member)), key_id=await _tenant_of(as_member))


async def _tenant_of(client: httpx.AsyncClient) -> Any:
    return (await client.get("/auth/session")).json()["tenantId"]
