"""People, departments and groups over HTTP: who manages them, and what cannot be done to them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
import pytest
from sqlalchemy import select, update
from tests.conftest import open_client
from tests.make import MadeTenant, make_department, make_group, make_person, make_tenant

from pharos.access.models import ProjectGrant
from pharos.identity.current import COOKIE
from pharos.identity.lockout import MAX_FAILURES, count_failure
from pharos.identity.models import AuditEntry, Membership, SignInSession
from pharos.identity.principal import Principal
from pharos.identity.sign_in import open_session
from pharos.identity.tenants import add_place
from pharos.infra.db import Database
from pharos.infra.ids import new_id
from pharos.runtime import Runtime


async def last_entry(db: Database, tenant: MadeTenant, action: str) -> AuditEntry:
    entries = select(AuditEntry).where(AuditEntry.action == action).order_by(AuditEntry.at.desc()).limit(1)
    async with db.transaction(tenant.id) as session:
        return (await session.execute(entries)).scalar_one()


@pytest.mark.contract("ID-17", part="over HTTP")
async def test_people_are_listed_page_by_page_and_found_by_words(
    db: Database, tenant: MadeTenant, as_admin: httpx.AsyncClient
) -> None:
    made = {(await make_person(db, tenant.id)).name for _ in range(4)} | {tenant.admin.name}
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = (await as_admin.get("/users", params={"after": after, "limit": 2})).json()
        seen += [person["email"] for person in page["users"]]
        after = page["next"]
    assert seen == sorted(made)
    wanted = max(made)
    found = (await as_admin.get("/users", params={"q": wanted.upper()})).json()["users"]
    assert [person["email"] for person in found] == [wanted]
    assert found[0].keys() >= {"id", "email", "platformRole", "orgPosition", "departmentId"}


async def test_an_engineer_and_a_member_do_not_manage_people(
    runtime: Runtime, tenant: MadeTenant, member: Principal
) -> None:
    engineer = await make_person(runtime.db, tenant.id, platform_role="engineer")
    for person in (engineer, member):
        async with open_client(runtime, person) as client:
            other = f"/users/{tenant.admin.user_id}"
            tries = [
                await client.get("/users"),
                await client.get(other),
                await client.patch(f"/users/{person.user_id}", json={"platformRole": "admin"}),
                await client.post(f"/users/{person.user_id}/disable"),
                await client.post("/departments", json={"name": "Mine"}),
                await client.patch("/tenant", json={"name": "Mine"}),
                await client.post("/groups", json={"name": "Mine"}),
                await client.get("/admin/share-requests"),
            ]
            assert {answer.status_code for answer in tries} == {403}
            assert (await client.get(f"/users/{person.user_id}")).json()["email"] == person.name


@pytest.mark.contract("AC-01", part="an administrator keeps people and the tenant's keys, an engineer neither")
async def test_an_administrator_keeps_people_and_keys_and_an_engineer_neither(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    for role, status in (("engineer", 403), ("admin", 200), ("superadmin", 200)):
        who = tenant.admin
        if role != "superadmin":
            who = await make_person(runtime.db, tenant.id, platform_role=role)  # type: ignore[arg-type]  # listed above
        async with open_client(runtime, who) as client:
            found = (await client.get("/secrets")).status_code, (await client.get("/users")).status_code
        assert found == (status, status), role


@pytest.mark.contract("AC-01", part="superadmin cannot be given or taken over the API")
async def test_superadmin_is_neither_given_nor_taken(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    admin = await make_person(runtime.db, tenant.id, platform_role="admin")
    async with open_client(runtime, admin) as client:
        tries = [
            await client.patch(f"/users/{member.user_id}", json={"platformRole": "superadmin"}),
            await client.patch(f"/users/{tenant.admin.user_id}", json={"platformRole": "none"}),
            await client.post(f"/users/{tenant.admin.user_id}/disable"),
        ]
        assert {(answer.status_code, answer.json()["error"]) for answer in tries} == {(403, "forbidden_role")}
        own = await client.patch(f"/users/{admin.user_id}", json={"platformRole": "engineer"})
        assert (own.status_code, own.json()["error"]) == (409, "own_account")
    over = await as_admin.patch(f"/users/{admin.user_id}", json={"platformRole": "superadmin"})
    assert (over.status_code, over.json()["error"]) == (403, "forbidden_role"), "the operator alone hands it over"
    given = await as_admin.patch(f"/users/{member.user_id}", json={"platformRole": "engineer"})
    assert given.json()["platformRole"] == "engineer"


async def test_a_change_is_audited_from_old_to_new(
    db: Database, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    department = await make_department(db, tenant.id)
    body = {"orgPosition": "manager", "departmentId": str(department)}
    changed = (await as_admin.patch(f"/users/{member.user_id}", json=body)).json()
    assert (changed["orgPosition"], changed["departmentId"]) == ("manager", str(department))
    entry = await last_entry(db, tenant, "person.changed")
    assert (entry.actor, entry.subject) == (tenant.admin.name, f"user:{member.user_id}")
    assert entry.detail == {
        "org_position": {"old": "member", "new": "manager"},
        "department_id": {"old": None, "new": str(department)},
    }


@pytest.mark.contract("ID-03", part="one ceo a tenant, and without a department")
async def test_there_is_one_ceo_and_they_have_no_department(
    db: Database, tenant: MadeTenant, as_admin: httpx.AsyncClient
) -> None:
    department = await make_department(db, tenant.id)
    first = await make_person(db, tenant.id, department_id=department)
    second = await make_person(db, tenant.id)
    both = {"orgPosition": "ceo", "departmentId": str(department)}
    assert (await as_admin.patch(f"/users/{first.user_id}", json=both)).json()["error"] == "ceo_has_no_department"
    made = (await as_admin.patch(f"/users/{first.user_id}", json={"orgPosition": "ceo"})).json()
    assert (made["orgPosition"], made["departmentId"]) == ("ceo", None)
    taken = await as_admin.patch(f"/users/{second.user_id}", json={"orgPosition": "ceo"})
    assert (taken.status_code, taken.json()["error"]) == (409, "ceo_taken")
    placed = await as_admin.patch(f"/users/{first.user_id}", json={"departmentId": str(department)})
    assert placed.json()["error"] == "ceo_has_no_department"
    lost = await as_admin.patch(f"/users/{second.user_id}", json={"orgPosition": "manager"})
    assert lost.json()["error"] == "manager_needs_department"


async def test_a_disabled_person_is_out_of_this_tenant_at_once_and_of_no_other(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        session.add(Membership(tenant_id=other.id, user_id=member.user_id))
    elsewhere = Principal(other.id, member.user_id, member.name)
    async with open_client(runtime, member) as here, open_client(runtime, elsewhere) as there:
        assert (await here.get("/projects")).status_code == 200
        disabled = await as_admin.post(f"/users/{member.user_id}/disable")
        assert disabled.json()["isDisabled"] is True
        assert (await here.get("/projects")).status_code == 401
        assert (await there.get("/projects")).status_code == 200
        assert (await there.post("/auth/tenant", json={"slug": tenant.slug})).status_code == 404
        assert (await as_admin.post(f"/users/{member.user_id}/enable")).json()["isDisabled"] is False
        assert (await there.post("/auth/tenant", json={"slug": tenant.slug})).status_code == 200


async def test_a_person_of_two_tenants_goes_from_one_to_the_other(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_member: httpx.AsyncClient
) -> None:
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        session.add(Membership(tenant_id=other.id, user_id=member.user_id))
    listed = (await as_member.get("/auth/tenants")).json()["tenants"]
    assert {one["slug"] for one in listed} == {tenant.slug, other.slug}
    token = (await as_member.post("/auth/tenant", json={"slug": other.slug})).json()["accessToken"]
    me = await as_member.get("/auth/session", headers={"Authorization": f"Bearer {token}"})
    assert me.json()["tenantId"] == str(other.id)
    here = await as_member.post("/auth/tenant", json={"slug": tenant.slug})
    assert (here.status_code, here.json()["error"]) == (409, "same_tenant")
    foreign = await make_tenant(runtime.db)
    answers = [await as_member.post("/auth/tenant", json={"slug": slug}) for slug in (foreign.slug, "nowhere")]
    assert [(one.status_code, one.json()["message"]) for one in answers] == [
        (404, answers[0].json()["message"]) for _ in range(2)
    ]


async def test_a_program_gets_nothing_in_another_tenant_that_outlasts_its_sign_in(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    other, third = await make_tenant(runtime.db), await make_tenant(runtime.db)
    for tenant_id in (other.id, third.id):
        async with runtime.db.transaction(tenant_id) as session:
            session.add(Membership(tenant_id=tenant_id, user_id=member.user_id))
    issued = await open_session(runtime, member, holder="program")
    signed_in = {"Authorization": f"Bearer {issued.access_token}"}
    soon = datetime.now(UTC) + timedelta(minutes=1)
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(update(SignInSession).values(expires_at=soon))
    for headers in (signed_in, signed_in | {"X-CSRF-Token": ""}):  # no header makes it a browser's
        tokens = await client.post("/auth/tenant", json={"slug": other.slug}, headers=headers)
        assert (tokens.status_code, sorted(tokens.json())) == (200, ["accessToken", "expiresIn"])
        assert "set-cookie" not in tokens.headers
    given = {"Authorization": f"Bearer {tokens.json()['accessToken']}"}
    assert (await client.get("/auth/session", headers=given)).json()["tenantId"] == str(other.id)
    async with runtime.db.transaction(other.id) as session:
        assert set((await session.execute(select(SignInSession.expires_at))).scalars()) == {soon}
    again = await client.post("/auth/tenant", json={"slug": third.slug}, headers=given)
    assert (again.status_code, again.json()["error"]) == (403, "not_a_sign_in")
    assert (await client.post("/auth/logout", headers=signed_in)).status_code == 204
    assert (await client.get("/auth/session", headers=given)).status_code == 401


async def test_a_browser_that_goes_to_another_tenant_keeps_the_end_of_its_session(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        session.add(Membership(tenant_id=other.id, user_id=member.user_id))
    issued = await open_session(runtime, member)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    async with runtime.db.transaction(member.tenant_id) as session:
        await session.execute(update(SignInSession).values(expires_at=soon, proved_at=soon))
    client.cookies.set(COOKIE, issued.session_token)
    page = {"X-CSRF-Token": issued.csrf_token}
    gone = await client.post("/auth/tenant", json={"slug": other.slug}, headers=page)
    assert gone.status_code == 200
    assert "refreshToken" not in gone.json()
    client.cookies.clear()
    client.cookies.set(COOKIE, issued.session_token)
    assert (await client.get("/auth/session")).status_code == 401
    client.cookies.set(COOKIE, gone.cookies[COOKIE])
    assert (await client.get("/auth/session")).json()["tenantId"] == str(other.id)
    async with runtime.db.transaction(other.id) as session:
        row = (await session.execute(select(SignInSession.expires_at, SignInSession.proved_at))).one()
    assert tuple(row) == (soon, soon)


@pytest.mark.contract("AC-08")
async def test_departments_and_groups_are_made_renamed_filled_and_removed(
    db: Database, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient
) -> None:
    department = (await as_admin.post("/departments", json={"name": " Research "})).json()["id"]
    assert (await as_admin.post("/departments", json={"name": "Research"})).status_code == 409
    assert (await as_admin.patch(f"/departments/{department}", json={"name": "Studies"})).status_code == 204
    await as_admin.patch(f"/users/{member.user_id}", json={"departmentId": department})
    listed = (await as_admin.get("/departments")).json()["departments"]
    assert listed == [{"id": department, "name": "Studies", "people": 1}]
    group = (await as_admin.post("/groups", json={"name": "Readers", "departmentId": department})).json()["id"]
    for _ in range(2):
        assert (await as_admin.put(f"/groups/{group}/members/{member.user_id}")).status_code == 204
    members = (await as_admin.get(f"/groups/{group}/members")).json()["members"]
    assert [one["email"] for one in members] == [member.name]
    assert (await as_admin.get("/groups")).json()["groups"][0]["members"] == 1
    assert (await as_admin.delete(f"/departments/{department}")).status_code == 204
    assert (await as_admin.get("/groups")).json()["groups"][0]["departmentId"] is None
    assert (await as_admin.get(f"/users/{member.user_id}")).json()["departmentId"] is None
    assert (await as_admin.delete(f"/groups/{group}/members/{member.user_id}")).status_code == 204
    assert (await as_admin.delete(f"/groups/{group}")).status_code == 204
    assert (await as_admin.get("/groups")).json() == {"groups": []}
    entry = await last_entry(db, tenant, "department.renamed")
    assert entry.detail == {"name": {"old": "Research", "new": "Studies"}}


@pytest.mark.parametrize(
    ("path", "code"),
    [("/departments", "department_exists"), ("/groups", "group_exists"), ("/projects", "project_exists")],
)
async def test_of_several_who_take_a_name_at_once_one_gets_it(
    as_admin: httpx.AsyncClient, path: str, code: str
) -> None:
    await asyncio.gather(*(as_admin.get(path) for _ in range(4)))  # each has its connection, so that they meet
    answers = await asyncio.gather(*(as_admin.post(path, json={"name": "Harbour"}) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {answer.json().get("error") for answer in answers} == {None, code}


async def test_a_manager_manages_groups_of_their_own_department_only(
    runtime: Runtime, tenant: MadeTenant, member: Principal
) -> None:
    own, other = [await make_department(runtime.db, tenant.id) for _ in range(2)]
    manager = await make_person(runtime.db, tenant.id, org_position="manager", department_id=own)
    colleague = await make_person(runtime.db, tenant.id, department_id=own)
    foreign = await make_group(runtime.db, tenant_id=tenant.id, department_id=other)
    async with open_client(runtime, manager) as client:
        made = await client.post("/groups", json={"name": "Ours", "departmentId": str(own)})
        group = made.json()["id"]
        assert (await client.put(f"/groups/{group}/members/{colleague.user_id}")).status_code == 204
        stranger = await client.put(f"/groups/{group}/members/{member.user_id}")
        assert (stranger.status_code, stranger.json()["error"]) == (422, "not_in_department")
        tries = [
            await client.post("/groups", json={"name": "Theirs", "departmentId": str(other)}),
            await client.post("/groups", json={"name": "Everybody's"}),
            await client.put(f"/groups/{foreign}/members/{colleague.user_id}"),
            await client.patch(f"/groups/{foreign}", json={"name": "Taken"}),
            await client.delete(f"/groups/{foreign}"),
        ]
        assert {(answer.status_code, answer.json()["error"]) for answer in tries} == {(403, "not_a_manager")}


async def test_what_is_of_another_tenant_is_not_there(
    db: Database, tenant: MadeTenant, member: Principal, as_stranger: httpx.AsyncClient, stranger: Principal
) -> None:
    department, group = await make_department(db, tenant.id), await make_group(db, tenant_id=tenant.id)
    own_group = await make_group(db, tenant_id=stranger.tenant_id)

    async def calls(user: UUID, department: UUID, group: UUID) -> list[tuple[int, str, str]]:
        answers = [
            await as_stranger.get(f"/users/{user}"),
            await as_stranger.get(f"/users/{user}/access"),
            await as_stranger.patch(f"/users/{user}", json={"orgPosition": "member"}),
            await as_stranger.post(f"/users/{user}/disable"),
            await as_stranger.patch(f"/departments/{department}", json={"name": "X"}),
            await as_stranger.delete(f"/departments/{department}"),
            await as_stranger.post("/groups", json={"name": "X", "departmentId": str(department)}),
            await as_stranger.patch(f"/groups/{group}", json={"name": "X"}),
            await as_stranger.get(f"/groups/{group}/members"),
            await as_stranger.put(f"/groups/{group}/members/{stranger.user_id}"),
            await as_stranger.put(f"/groups/{own_group}/members/{user}"),
            await as_stranger.delete(f"/groups/{group}"),
        ]
        return [(one.status_code, one.json()["error"], one.json()["message"].replace(str(user), "")) for one in answers]

    assert member.user_id is not None
    foreign = await calls(member.user_id, department, group)
    assert {status for status, _, _ in foreign} == {404}
    assert foreign == await calls(new_id(), new_id(), new_id())


async def test_what_was_granted_to_a_group_goes_with_it(
    db: Database, tenant: MadeTenant, as_admin: httpx.AsyncClient
) -> None:
    made = (await as_admin.post("/projects", json={"name": "Private", "isPrivate": True})).json()["id"]
    group, department = await make_group(db, tenant_id=tenant.id), await make_department(db, tenant.id)
    for kind, grantee in (("group", group), ("department", department)):
        body = {"granteeKind": kind, "granteeId": str(grantee), "tier": "use"}
        assert (await as_admin.put(f"/projects/{made}/grants", json=body)).status_code == 200
    await as_admin.delete(f"/groups/{group}")
    await as_admin.delete(f"/departments/{department}")
    async with db.transaction(tenant.id) as session:
        assert (await session.execute(select(ProjectGrant))).all() == []


async def test_an_administrator_sees_a_lock_ends_it_and_signs_a_person_out_here_alone(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_admin: httpx.AsyncClient, as_stranger: httpx.AsyncClient
) -> None:
    other = await make_tenant(runtime.db)
    await add_place(runtime, other.admin, email=member.name)
    elsewhere = replace(member, tenant_id=other.id)
    account, unlock, sessions = (f"/users/{member.user_id}/{what}" for what in ("account", "unlock", "sessions"))
    async with open_client(runtime, member) as here, open_client(runtime, elsewhere) as there:
        async with runtime.db.transaction(tenant.id) as session:
            for _ in range(MAX_FAILURES):
                assert member.user_id is not None
                await count_failure(session, member.user_id)
        state = (await as_admin.get(account)).json()
        assert state["lockedUntil"] is not None
        assert (state["openSessions"], state["hasPassword"]) == (1, True)
        for refused in (await here.get(account), await here.post(unlock), await here.delete(sessions)):
            assert refused.status_code == 403
        for hidden in (
            await as_stranger.get(account),
            await as_stranger.post(unlock),
            await as_stranger.delete(sessions),
        ):
            assert hidden.status_code == 404
        assert (await as_admin.post(unlock)).status_code == 204
        assert (await as_admin.get(account)).json()["lockedUntil"] is None
        assert (await last_entry(runtime.db, tenant, "account.unlocked")).subject == f"user:{member.user_id}"
        assert (await as_admin.delete(sessions)).status_code == 204
        assert (await here.get("/auth/session")).status_code == 401
        assert (await there.get("/auth/session")).status_code == 200
        assert (await as_admin.get(account)).json()["openSessions"] == 0
