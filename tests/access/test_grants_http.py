"""Giving and taking access, and being told why: over HTTP and from the machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from tests.conftest import open_client
from tests.make import MadeTenant, make_department, make_group, make_person, make_project

from pharos.identity.models import AuditEntry
from pharos.identity.principal import Principal
from pharos.infra.ids import ProjectId, new_id
from pharos.runtime import Runtime


@pytest.fixture
async def private(runtime: Runtime, tenant: MadeTenant) -> ProjectId:
    return await make_project(runtime.db, tenant.admin, name="Private", is_private=True)


@pytest.mark.contract("AC-04")
async def test_a_grant_opens_a_project_changes_and_is_taken_back(
    runtime: Runtime, tenant: MadeTenant, private: ProjectId, as_admin: httpx.AsyncClient, member: Principal
) -> None:
    grants = f"/projects/{private}/grants"
    async with open_client(runtime, member) as client:
        assert (await client.get(f"/projects/{private}/documents")).status_code == 403
        body = {"granteeKind": "user", "email": member.name.upper(), "tier": "use"}
        made = (await as_admin.put(grants, json=body)).json()
        assert (made["grantee"], made["tier"], made["grantedBy"]) == (member.name, "use", tenant.admin.name)
        assert (await client.get(f"/projects/{private}/documents")).status_code == 200
        until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        changed = (await as_admin.put(grants, json=body | {"tier": "edit", "expiresAt": until})).json()
        assert (changed["id"], changed["tier"], changed["isExpired"]) == (made["id"], "edit", False)
        assert len((await as_admin.get(grants)).json()["grants"]) == 1
        assert (await as_admin.delete(f"{grants}/{made['id']}")).status_code == 204
        assert (await client.get(f"/projects/{private}/documents")).status_code == 403
    assert (await as_admin.delete(f"{grants}/{made['id']}")).json()["error"] == "no_such_grant"
    wanted = AuditEntry.action.in_(("grant.given", "grant.revoked"))
    async with runtime.db.transaction(tenant.id) as session:
        entries = (await session.execute(select(AuditEntry).where(wanted).order_by(AuditEntry.id))).scalars().all()
    assert [(entry.action, entry.detail["tier"]) for entry in entries] == [
        ("grant.given", {"old": None, "new": "use"}),
        ("grant.given", {"old": "use", "new": "edit"}),
        ("grant.revoked", {"old": "edit", "new": None}),
    ]


@pytest.mark.contract("AC-08", part="groups and departments are grant targets")
async def test_groups_and_departments_are_granted_access(
    runtime: Runtime, tenant: MadeTenant, private: ProjectId, as_admin: httpx.AsyncClient
) -> None:
    department = await make_department(runtime.db, tenant.id)
    person = await make_person(runtime.db, tenant.id, department_id=department)
    group = await make_group(runtime.db, person, tenant_id=tenant.id)
    for kind, grantee, expected in (("department", department, "edit"), ("group", group, "use")):
        body = {"granteeKind": kind, "granteeId": str(grantee), "tier": expected}
        assert (await as_admin.put(f"/projects/{private}/grants", json=body)).status_code == 200
        seen = (await as_admin.get(f"/projects/{private}/access/{person.user_id}")).json()
        assert (seen["tier"], seen["source"]) == (expected, kind)


async def test_only_who_has_all_of_a_project_gives_access_to_it(
    runtime: Runtime, tenant: MadeTenant, private: ProjectId, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    body: dict[str, Any] = {"granteeKind": "user", "granteeId": str(member.user_id)}
    for tier, status in (("use", 403), ("edit", 403), ("full", 200)):
        await as_admin.put(f"/projects/{private}/grants", json=body | {"tier": tier})
        async with open_client(runtime, member) as client:
            assert (await client.get(f"/projects/{private}/grants")).status_code == status
            assert (await client.get(f"/projects/{private}/access")).status_code == status
            other = f"/projects/{private}/access/{tenant.admin.user_id}"
            assert (await client.get(other)).status_code == status
            given = await client.put(f"/projects/{private}/grants", json=body | {"tier": tier})
            assert given.status_code == status


@pytest.mark.parametrize("source", ["user", "group", "department"])
async def test_who_has_a_project_for_a_time_gives_nothing_that_lasts_longer(
    runtime: Runtime, tenant: MadeTenant, private: ProjectId, as_admin: httpx.AsyncClient, source: str
) -> None:
    department = await make_department(runtime.db, tenant.id)
    lent = await make_person(runtime.db, tenant.id, department_id=department)
    group = await make_group(runtime.db, lent, tenant_id=tenant.id)
    other = await make_group(runtime.db, lent, tenant_id=tenant.id)
    reached = {"user": lent.user_id, "group": group, "department": department}[source]
    end = datetime.now(UTC) + timedelta(days=2)
    grants, until = f"/projects/{private}/grants", (end - timedelta(days=1)).isoformat()
    own = {"granteeKind": source, "granteeId": str(reached), "tier": "full", "expiresAt": end.isoformat()}
    assert (await as_admin.put(grants, json=own)).status_code == 200
    to_other = {"granteeKind": "group", "granteeId": str(other), "tier": "full"}
    async with open_client(runtime, lent) as client:
        answers = [
            await client.put(grants, json=own | {"expiresAt": None}),
            await client.put(grants, json=own | {"expiresAt": until}),
            await client.put(grants, json=to_other),
            await client.put(grants, json=to_other | {"expiresAt": (end + timedelta(hours=1)).isoformat()}),
            await client.put(grants, json=to_other | {"expiresAt": until}),
        ]
    assert [(answer.status_code, answer.json().get("error")) for answer in answers] == [
        (403, "own_grant"),
        (403, "own_grant"),
        (403, "outlasts_own"),
        (403, "outlasts_own"),
        (200, None),
    ]


async def test_an_owner_who_was_also_granted_a_time_gives_what_lasts(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    theirs = await make_project(runtime.db, member, is_private=True)
    grants = f"/projects/{theirs}/grants"
    body = {"granteeKind": "user", "granteeId": str(member.user_id), "tier": "full"}
    end = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert (await as_admin.put(grants, json=body | {"expiresAt": end})).status_code == 200
    async with open_client(runtime, member) as client:
        assert (await client.put(grants, json=body)).status_code == 200


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"granteeId": str(new_id())}, "no_such_user"),
        ({"granteeId": None, "email": "nobody@example.org"}, "no_such_user"),
        ({"granteeId": None}, "invalid"),
        ({"granteeKind": "group", "granteeId": None, "email": "a@example.org"}, "invalid"),
        ({"tier": "own"}, "invalid"),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "bad_expiry"),
        ({"expiresAt": "2040-01-01T00:00:00"}, "invalid"),
    ],
)
async def test_a_grant_that_makes_no_sense_is_refused(
    private: ProjectId, member: Principal, as_admin: httpx.AsyncClient, change: dict[str, Any], error: str
) -> None:
    body = {"granteeKind": "user", "granteeId": str(member.user_id), "tier": "use"} | change
    answer = await as_admin.put(f"/projects/{private}/grants", json=body)
    assert (answer.status_code // 100, answer.json()["error"]) == (4, error)
    assert (await as_admin.get(f"/projects/{private}/grants")).json()["grants"] == []


async def test_a_person_of_another_tenant_cannot_be_granted_anything_nor_look(
    private: ProjectId, stranger: Principal, as_admin: httpx.AsyncClient, as_stranger: httpx.AsyncClient
) -> None:
    for who in ({"granteeId": str(stranger.user_id)}, {"email": stranger.name}):
        answer = await as_admin.put(f"/projects/{private}/grants", json={"granteeKind": "user", "tier": "use"} | who)
        assert (answer.status_code, answer.json()["error"]) == (404, "no_such_user")
        assert "email" not in who or "Check it" in answer.json()["message"]  # nobody at a page has a shell
    nowhere = new_id()
    for path in ("grants", "access", f"access/{stranger.user_id}"):
        foreign = await as_stranger.get(f"/projects/{private}/{path}")
        missing = await as_stranger.get(f"/projects/{nowhere}/{path}")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["message"] == missing.json()["message"]


@pytest.mark.contract("AC-07", part="over HTTP, with the audit entry of what granted it")
async def test_an_explanation_names_every_rung_the_winner_and_its_audit_entry(
    runtime: Runtime, tenant: MadeTenant, private: ProjectId, as_admin: httpx.AsyncClient
) -> None:
    person = await make_person(runtime.db, tenant.id)
    group = await make_group(runtime.db, person, tenant_id=tenant.id)
    await as_admin.put(
        f"/projects/{private}/grants", json={"granteeKind": "group", "granteeId": str(group), "tier": "edit"}
    )
    seen = (await as_admin.get(f"/projects/{private}/access/{person.user_id}")).json()
    assert (seen["email"], seen["tier"], seen["source"]) == (person.name, "edit", "group")
    rungs = {rung["source"]: rung for rung in seen["rungs"]}
    assert list(rungs) == ["platform", "owner", "ceo", "direct", "group", "department", "public"]
    assert [source for source, rung in rungs.items() if rung["decides"]] == ["group"]
    assert rungs["platform"]["why"] == "the platform role is none"
    assert tenant.admin.name in rungs["owner"]["why"]
    assert rungs["public"]["why"] == "the project is private"
    assert "granted edit to group" in rungs["group"]["why"]
    async with runtime.db.transaction(tenant.id) as session:
        given = await session.execute(select(AuditEntry.id).where(AuditEntry.action == "grant.given"))
    assert rungs["group"]["auditId"] == str(given.scalar_one())


@pytest.mark.contract("AC-07", part="who can see this, what can this user see")
async def test_who_sees_a_project_and_what_a_person_sees(
    runtime: Runtime, tenant: MadeTenant, private: ProjectId, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    opened = await make_project(runtime.db, tenant.admin, name="Open")
    who = (await as_admin.get(f"/projects/{private}/access")).json()["users"]
    assert [(one["email"], one["tier"], one["source"]) for one in who] == [(tenant.admin.name, "full", "platform")]
    body = {"granteeKind": "user", "granteeId": str(member.user_id), "tier": "use"}
    await as_admin.put(f"/projects/{private}/grants", json=body)
    who = (await as_admin.get(f"/projects/{private}/access")).json()["users"]
    assert [(one["email"], one["tier"]) for one in who] == [(tenant.admin.name, "full"), (member.name, "use")]
    what = (await as_admin.get(f"/users/{member.user_id}/access")).json()["projects"]
    assert [(one["projectId"], one["source"]) for one in what] == [(str(opened), "public"), (str(private), "direct")]
    async with open_client(runtime, member) as client:
        assert (await client.get(f"/users/{member.user_id}/access")).json()["projects"] == what
        assert (await client.get(f"/users/{tenant.admin.user_id}/access")).status_code == 403
    await as_admin.post(f"/users/{member.user_id}/disable")
    who = (await as_admin.get(f"/projects/{private}/access")).json()["users"]
    assert [one["email"] for one in who] == [tenant.admin.name]


async def test_the_handbook_is_granted_to_nobody(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    handbook = await make_project(runtime.db, tenant.admin, is_handbook=True)
    body = {"granteeKind": "user", "granteeId": str(member.user_id), "tier": "full"}
    answer = await as_admin.put(f"/projects/{handbook}/grants", json=body)
    assert answer.status_code in {403, 422}
