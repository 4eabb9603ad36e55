"""The pages of administration and account over HTTP: who gets in, that names are text, that other tenants stay out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text, update
from tests.conftest import open_client
from tests.make import MadeTenant, make_document, make_group, make_person, make_project, make_tenant
from tests.ops.backups import make_folder
from tests.web.test_pages import BROWSER

from pharos.access import grants, shares
from pharos.chat.answer import answer_question, gather_answer
from pharos.chat.feedback import Given, store_feedback
from pharos.chat.history import list_messages
from pharos.chat.shared import request_share
from pharos.identity import api_keys, tenant_secrets
from pharos.identity.audit import record_audit
from pharos.identity.current import COOKIE
from pharos.identity.departments import create_department
from pharos.identity.groups import create_group
from pharos.identity.invitations import Invited, invite
from pharos.identity.models import User
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.identity.sign_in import Origin, open_session
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict
from pharos.infra.ids import ConversationId, DocumentId, MessageId, new_id
from pharos.library.ingest import ingest_documents
from pharos.library.project_settings import change_project_settings
from pharos.ops.backup.signing import public_key
from pharos.ops.models import Drill
from pharos.providers.models import Provider
from pharos.runtime import Runtime
from pharos.web.admin_pages import SECTIONS

HOSTILE = "\"><img src=x onerror=alert(1)>'{{ 7*7 }}"
SECTION_PATHS = [f"/admin/{section}" for section in SECTIONS]


@asynccontextmanager
async def browser_of(runtime: Runtime, person: Principal) -> AsyncIterator[httpx.AsyncClient]:
    issued = await open_session(runtime, person, origin=Origin(agent=HOSTILE))
    async with open_client(runtime) as client:
        client.headers.update(BROWSER)
        client.cookies.set(COOKIE, issued.session_token)
        yield client


async def furnish(runtime: Runtime, house: MadeTenant, name: str) -> dict[str, Any]:
    """One of everything the pages list, called `name` wherever a name is free; gives the ids of what has a page."""
    admin = house.admin
    person = await make_person(runtime.db, house.id)
    project_id = await make_project(runtime.db, admin, name=name)
    note = await make_document(runtime, admin, project_id, name="note.txt")
    await ingest_documents(runtime, house.id, [DocumentId(note.id)])
    question = f"{name} Where was the lighthouse of Alexandria built?"
    answer = await gather_answer(answer_question(runtime, admin, project_id=project_id, question=question))
    await invite(runtime, admin, Invited(email=f"guest-{new_id().hex}@example.org", name=name))
    async with runtime.db.transaction(house.id) as session:
        await session.execute(update(User).where(User.id == person.user_id).values(name=name))
        await create_department(session, admin, name=name)
        group = await create_group(session, admin, name=name)
        await session.flush()
        await grants.give(session, admin, project_id=project_id, kind="group", grantee_id=group.id, tier="use")
        await api_keys.create_key(session, admin, name=name, scopes=["read"], user_id=None, expires_in_days=1)
        await tenant_secrets.save_tenant_secret(
            session, runtime.vault, admin, kind="github", name="k", value="sk-12345678"
        )
        await record_audit(session, admin, action="test.done", subject=name, name={"old": name, "new": [name]})
        await record_security_event(
            session, house.id, event_type="login_failed", severity="low", subject=name, agent=name
        )
        asked = await request_share(
            session, admin, conversation_id=ConversationId(UUID(answer.conversation_id)), message=name
        )
        _, token = await shares.approve(session, admin, request_id=asked.id, days=1)
        await request_share(session, admin, conversation_id=ConversationId(UUID(answer.conversation_id)), message=name)
        messages = await list_messages(session, conversation_id=ConversationId(UUID(answer.conversation_id)))
        await store_feedback(session, admin, Given(MessageId(messages[-1].id), "down", name, datetime.now(UTC)))
        session.add(
            Provider(tenant_id=house.id, name=name, kind="openai", base_url="https://lamp.example/v1", models=[name])
        )
        await change_project_settings(session, admin, project_id=project_id, instructions=name, memories=[name])
    return {"person": person.user_id, "project": project_id, "group": group.id, "token": token}


def pages_of(ids: dict[str, Any]) -> list[str]:
    own = [f"/projects/{ids['project']}/instructions"]
    own += ["/account", f"/projects/{ids['project']}/people", f"/projects/{ids['project']}", f"/share/{ids['token']}"]
    return [*SECTION_PATHS, f"/admin/people/{ids['person']}", f"/admin/groups/{ids['group']}", *own]


async def test_every_page_answers_and_whatever_a_name_says_is_text(runtime: Runtime, tenant: MadeTenant) -> None:
    ids = await furnish(runtime, tenant, HOSTILE)
    async with browser_of(runtime, tenant.admin) as browser:
        for path in pages_of(ids):
            reply = await browser.get(path)
            assert reply.status_code == 200, path
            assert "onerror=alert" in reply.text or path == "/admin/secrets", path
            assert "<img" not in reply.text, path
            assert "&#39;49" not in reply.text, path


async def test_no_page_shows_a_row_of_another_tenant(runtime: Runtime, tenant: MadeTenant) -> None:
    ids = await furnish(runtime, tenant, "Ours")
    other = await make_tenant(runtime.db)
    foreign = await furnish(runtime, other, "Theirs-alone")
    async with browser_of(runtime, tenant.admin) as browser:
        for path in pages_of(ids):
            assert "Theirs-alone" not in (await browser.get(path)).text, path
        for path in (f"/admin/people/{foreign['person']}", f"/admin/groups/{foreign['group']}"):
            assert (await browser.get(path)).status_code == 404
        for page in ("people", "instructions"):
            assert (await browser.get(f"/projects/{foreign['project']}/{page}")).status_code == 404


@pytest.mark.parametrize("platform_role", ["none", "engineer"])
async def test_who_does_not_administrate_gets_the_page_that_says_so(
    runtime: Runtime, tenant: MadeTenant, platform_role: Any
) -> None:
    someone = await make_person(runtime.db, tenant.id, platform_role=platform_role)
    group_id = await make_group(runtime.db, tenant_id=tenant.id)
    async with browser_of(runtime, someone) as browser:
        for path in (*SECTION_PATHS, f"/admin/people/{someone.user_id}", f"/admin/groups/{group_id}"):
            reply = await browser.get(path)
            assert reply.status_code == 403, path
            assert "Not allowed" in reply.text
        assert "/admin" not in (await browser.get("/")).text


@pytest.mark.contract("LP-01", part="the page where providers are added")
async def test_the_installations_models_are_for_its_engineers_and_told_to_them_where_none_answers(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    default = await ensure_default_tenant(runtime)
    engineer = await make_person(runtime.db, default, platform_role="engineer")
    head = await make_person(runtime.db, default, platform_role="superadmin")
    project_id = await make_project(runtime.db, head, name=f"Works {new_id().hex}")
    async with browser_of(runtime, engineer) as browser:
        shown = await browser.get("/engineer/providers")
        assert (shown.status_code, "Add a provider" in shown.text) == (200, True)
        assert "No model can be asked" not in shown.text, "an organisation may have its own"
        assert 'href="/engineer/providers"' in (await browser.get("/")).text
        assert "No model is configured" in (await browser.get(f"/projects/{project_id}")).text
    for other in (tenant.admin, await make_person(runtime.db, default)):
        async with browser_of(runtime, other) as browser:
            assert (await browser.get("/engineer/providers")).status_code == 403
            assert "/engineer/providers" not in (await browser.get("/")).text


@pytest.mark.parametrize("tier", ["use", "edit"])
async def test_what_a_project_asks_of_answers_is_for_who_manages_it(
    runtime: Runtime, tenant: MadeTenant, tier: Any
) -> None:
    project_id = await make_project(runtime.db, tenant.admin, name="Works")
    someone = await make_person(runtime.db, tenant.id)
    assert someone.user_id is not None
    async with runtime.db.transaction(tenant.id) as session:
        give = grants.give(
            session, tenant.admin, project_id=project_id, kind="user", grantee_id=someone.user_id, tier=tier
        )
        await give
    asked = {"instructions": "Be brief.", "memories": ["The lamp is called Ada.", " "], "model": "lamp/large"}
    async with open_client(runtime, someone) as client:
        assert (await client.put(f"/projects/{project_id}/settings", json=asked)).status_code == 403
    async with open_client(runtime, tenant.admin) as client:
        changed = await client.put(f"/projects/{project_id}/settings", json=asked)
        assert changed.json() == asked | {"memories": ["The lamp is called Ada."]}
        emptied = await client.put(f"/projects/{project_id}/settings", json={"model": "", "memories": []})
        assert emptied.json() == {"instructions": "Be brief.", "memories": [], "model": None}


async def test_nobody_is_led_to_the_sign_in_page(client: httpx.AsyncClient) -> None:
    for path in (*SECTION_PATHS, f"/admin/people/{new_id()}", f"/admin/groups/{new_id()}", "/account"):
        reply = await client.get(path, headers=BROWSER)
        assert reply.status_code == 303, path
        assert reply.headers["location"].startswith("/sign-in?next="), path


async def test_a_manager_sees_their_departments_groups_and_nothing_else(runtime: Runtime, tenant: MadeTenant) -> None:
    async with runtime.db.transaction(tenant.id) as session:
        works = await create_department(session, tenant.admin, name="Works")
        sales = await create_department(session, tenant.admin, name="Sales")
        own = await create_group(session, tenant.admin, name="Night shift", department_id=works.id)
        theirs = await create_group(session, tenant.admin, name="Door to door", department_id=sales.id)
        everybodys = await create_group(session, tenant.admin, name="Choir")
    place: dict[str, Any] = {"org_position": "manager", "department_id": works.id}
    manager = await make_person(runtime.db, tenant.id, **place)
    colleague = await make_person(runtime.db, tenant.id, department_id=works.id)
    outsider = await make_person(runtime.db, tenant.id, department_id=sales.id)
    async with browser_of(runtime, manager) as browser:
        assert "/admin/organisation" in (await browser.get("/")).text
        page = (await browser.get("/admin/organisation")).text
        assert "Night shift" in page
        for hidden in ("Door to door", "Choir", "Sales", "/admin/people", 'action="/departments"'):
            assert hidden not in page, hidden
        members = (await browser.get(f"/admin/groups/{own.id}")).text
        assert colleague.name in members
        assert outsider.name not in members
        for other in (theirs.id, everybodys.id):
            assert (await browser.get(f"/admin/groups/{other}")).status_code == 404
        for path in ("/admin/people", "/admin/audit", f"/admin/people/{colleague.user_id}"):
            assert (await browser.get(path)).status_code == 403


async def test_an_address_that_holds_nonsense_is_answered_with_a_page(runtime: Runtime, tenant: MadeTenant) -> None:
    async with browser_of(runtime, tenant.admin) as browser:
        for path in ("/admin/security?severity=none", "/admin/audit?before=x"):
            reply = await browser.get(path)
            assert reply.status_code == 422, path
            assert reply.text.startswith("<!doctype html>")
        for path in ("/admin/people/nobody", f"/admin/people/{UUID(int=0)}", f"/admin/groups/{UUID(int=0)}"):
            reply = await browser.get(path)
            assert reply.status_code == 404, path
            assert reply.text.startswith("<!doctype html>")


async def test_what_a_form_of_a_filter_brings_back_may_be_empty(runtime: Runtime, tenant: MadeTenant) -> None:
    async with browser_of(runtime, tenant.admin) as browser:
        for path in ("/admin/audit?actor=&action=", "/admin/security?event_type=&severity=low", "/admin/people?q="):
            assert (await browser.get(path)).status_code == 200, path
        found = await browser.get("/admin/security?event_type=API key created&severity=low")
        assert "Nothing found" in found.text


async def test_asking_to_share_says_what_the_link_opens_and_what_became_of_it(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    person = await make_person(runtime.db, tenant.id)
    project_id = await make_project(runtime.db, tenant.admin, name="Beacons", is_private=False)
    question = "Where was the lighthouse of Alexandria built?"
    answer = await gather_answer(answer_question(runtime, person, project_id=project_id, question=question))
    conversation_id = ConversationId(UUID(answer.conversation_id))
    address = f"/projects/{project_id}?conversation={conversation_id}"
    async with browser_of(runtime, person) as asker, browser_of(runtime, tenant.admin) as admin:
        assert 'id="share-state"' not in (await asker.get(address)).text
        for decide, state in ((shares.reject, "was rejected on"), (shares.approve, "Shared until")):
            async with runtime.db.transaction(tenant.id) as session:
                asked = await request_share(session, person, conversation_id=conversation_id, message="")
            assert "waiting for an administrator" in (await asker.get(address)).text
            waiting = (await admin.get("/admin/shares")).text
            assert f"Conversation: “{question}”" in waiting
            assert "can ask about all documents of “Beacons”" in waiting
            async with runtime.db.transaction(tenant.id) as session:
                await decide(session, tenant.admin, request_id=asked.id)
            assert state in (await asker.get(address)).text
        async with runtime.db.transaction(tenant.id) as session:
            await shares.revoke_link(session, tenant.admin, request_id=asked.id)
        assert "is closed" in (await asker.get(address)).text


async def test_the_address_of_administration_alone_leads_to_the_people(client: httpx.AsyncClient) -> None:
    led = await client.get("/admin")
    assert (led.status_code, led.headers["location"]) == (303, "/admin/people")


async def test_the_keys_of_people_and_of_programs_say_whom_they_act_as(runtime: Runtime, tenant: MadeTenant) -> None:
    person = await make_person(runtime.db, tenant.id)
    async with runtime.db.transaction(tenant.id) as session:
        await api_keys.create_key(session, tenant.admin, name="a robot", user_id=None)
        await api_keys.create_key(session, tenant.admin, name="a helper", user_id=person.user_id)
    async with browser_of(runtime, tenant.admin) as browser:
        page = (await browser.get("/admin/keys")).text
    rows = {name: next(row for row in page.split("<li") if name in row) for name in ("a robot", "a helper")}
    assert "acts as nobody in particular" in rows["a robot"]
    assert f"acts as {person.name}" in rows["a helper"]


@pytest.fixture
async def operators_house(fresh_runtime: Runtime) -> MadeTenant:
    tenant_id = await ensure_default_tenant(fresh_runtime)
    admin = await make_person(fresh_runtime.db, tenant_id, platform_role="superadmin")
    async with fresh_runtime.db.transaction(tenant_id) as session:
        await session.execute(text("update bootstrap_state set is_initialized = true"))
    return MadeTenant(tenant_id, "default", admin)


async def test_backups_are_shown_to_the_operators_organisation_and_to_nobody_else(
    fresh_runtime: Runtime, operators_house: MadeTenant
) -> None:
    others = await make_tenant(fresh_runtime.db)
    member = await make_person(fresh_runtime.db, operators_house.id)
    async with browser_of(fresh_runtime, operators_house.admin) as browser:
        assert (await browser.get("/admin/backups")).status_code == 200
        assert "/admin/backups" in (await browser.get("/admin/people")).text
    for stranger in (others.admin, member):
        async with browser_of(fresh_runtime, stranger) as browser:
            assert (await browser.get("/admin/backups")).status_code == 403
            assert "/admin/backups" not in (await browser.get("/admin/people")).text


async def test_the_page_of_backups_says_what_would_be_lost_how_long_it_takes_and_what_to_mend(
    fresh_runtime: Runtime, operators_house: MadeTenant
) -> None:
    settings, admin = fresh_runtime.settings, operators_house.admin
    async with browser_of(fresh_runtime, admin) as browser:
        empty = (await browser.get("/admin/backups")).text
        assert "There is no backup yet" in empty
        assert empty.count("Everything would be lost") == 2
        assert "<code>pharos drill</code>" in empty
        now = datetime.now(UTC)
        make_folder(settings, made_at=now - timedelta(hours=30), documents=7, offsite=True)
        make_folder(
            settings,
            made_at=now - timedelta(hours=1),
            error=Conflict(f"The file /srv/x of tenant 1 differs. {HOSTILE}", code="backup_differs"),
        )
        report = f"# restore-drill-1\n\n| check | result |\n|---|---|\n| tables | 46 |\n\n{HOSTILE}"
        async with system_transaction(fresh_runtime.db) as session:
            session.add(Drill(name="restore-drill-1", started_at=now, seconds=41.5, passed=True, by="x", report=report))
        await make_document(fresh_runtime, admin, await make_project(fresh_runtime.db, admin))
        assert "Signed by" not in empty, "looking makes no key"
        public_key(settings)
        full = (await browser.get("/admin/backups")).text
    for said in (
        "Back to 30 h ago",
        "1 document received",
        "<td>46</td>",
        "About 42 s",
        "by size, from what the last drill took: 42 s",
        public_key(settings),
        "7 documents",
        "is not good (backup_differs)",
        "Of no use without this machine: no identity of PHAROS_BACKUP_RECIPIENT opens its keys",
        "<code>pharos backup list --log</code>",
    ):
        assert said in full, said
    for mends in ("PHAROS_OFFSITE", "PHAROS_BACKUP_DIR", "PHAROS_BACKUP_RECIPIENT", "<code>pharos backup now</code>"):
        assert mends in full, mends
    assert "/srv/x" not in full
    assert "<img" not in full
