"""Pages over HTTP, on a real database: who is led where, what is refused, what exactly is shown."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import update
from tests.conftest import RunJobs, open_client
from tests.mailbox import token_to
from tests.make import PASSWORD, MadeTenant, make_document, make_person, make_project, make_tenant

from pharos.identity import email_change, invitations, magic_link, password_reset
from pharos.identity.current import COOKIE
from pharos.identity.models import Tenant
from pharos.identity.principal import Principal
from pharos.identity.setup import SETUP_PATH, issue_setup_link
from pharos.identity.sign_in import open_session
from pharos.identity.tenants import add_place
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library.documents import get_text
from pharos.runtime import Runtime
from pharos.web.html import STATIC, static_path, static_version

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
NOTE = "The lighthouse burned oil. <b>Its</b> keeper was Sostratus. It stood for 1,500 years."


@pytest.fixture
async def browser(runtime: Runtime, tenant: MadeTenant) -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which the tenant's superadmin is signed in."""
    issued = await open_session(runtime, tenant.admin)
    async with open_client(runtime) as client:
        client.headers.update(BROWSER)
        client.cookies.set(COOKIE, issued.session_token)
        yield client


@pytest.fixture
async def project_id(runtime: Runtime, tenant: MadeTenant) -> ProjectId:
    return await make_project(runtime.db, tenant.admin)


@pytest.fixture
async def document_id(runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, run_jobs: RunJobs) -> DocumentId:
    document = await make_document(runtime, tenant.admin, project_id, content=NOTE.encode())
    await run_jobs(runtime)
    return DocumentId(document.id)


def csrf_token_of(page: str) -> str:
    found = re.search(r'name="csrf-token" content="([0-9a-f]+)"', page)
    assert found is not None
    return found[1]


@pytest.mark.contract("ID-02", part="pages")
async def test_before_setup_every_page_leads_to_it_and_after_it_the_page_offers_nothing(fresh_runtime: Runtime) -> None:
    link = await issue_setup_link(fresh_runtime)
    path = link.removeprefix(fresh_runtime.settings.base_url)
    async with open_client(fresh_runtime) as client:
        for address in ("/", "/sign-in", "/projects/x", "/no-such-page"):
            reply = await client.get(address, headers=BROWSER)
            assert (reply.status_code, reply.headers["location"]) == (303, "/onboarding/first-login"), address
        assert 'name="password"' in (await client.get(path)).text
        for wrong in ("/onboarding/first-login", "/onboarding/first-login?token=wrong"):
            page = (await client.get(wrong)).text
            assert "pharos setup-link" in page
            assert 'name="password"' not in page
        token = path.partition("token=")[2]
        person = {"name": "M", "email": "m@example.org", "password": "four calm words here"}
        made = await client.post("/bootstrap/init", json={"token": token, **person}, headers={"X-CSRF-Token": "none"})
        assert made.status_code == 201
        assert 'name="password"' not in (await client.get(path)).text


async def test_nobody_is_led_to_the_sign_in_page_and_back_to_where_they_were_going(client: httpx.AsyncClient) -> None:
    reply = await client.get("/projects/x?conversation=y", headers=BROWSER)
    assert reply.status_code == 303
    assert reply.headers["location"] == "/sign-in?next=" + quote("/projects/x?conversation=y", safe="")
    assert 'data-next="/projects/x?conversation=y"' in (await client.get(reply.headers["location"])).text


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "\t//e"])
async def test_signing_in_never_leads_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    assert 'data-next="/"' in (await client.get("/sign-in", params={"next": path})).text


async def test_every_page_carries_the_strict_policy(
    browser: httpx.AsyncClient, project_id: ProjectId, document_id: DocumentId
) -> None:
    for path in ("/", f"/projects/{project_id}", f"/projects/{project_id}/documents/{document_id}", "/nowhere"):
        reply = await browser.get(path)
        assert "script-src 'self';" in reply.headers["content-security-policy"], path
        assert "img-src 'self' data:" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"


async def test_static_files_are_kept_below_their_version_and_asked_for_again_below_any_other(
    client: httpx.AsyncClient,
) -> None:
    for path in (static_path("pharos.css"), "/static/0123456789ab/pharos.css", "/static/pharos.css"):
        reply = await client.get(path)
        assert reply.text == (STATIC / "pharos.css").read_text()
        kept = "max-age=86400" if path == static_path("pharos.css") else "no-cache"
        assert reply.headers["cache-control"] == kept
        again = await client.get(path, headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, kept)


def test_a_static_file_that_changes_changes_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pharos.web.html.STATIC", tmp_path)
    versions = []
    for name, words in (("a.js", "one"), ("a.js", "two"), ("b.js", "one")):
        (tmp_path / name).write_text(words)
        static_version.cache_clear()
        versions.append(static_version())
    static_version.cache_clear()
    assert len(set(versions)) == len(versions)


async def test_the_passage_of_a_citation_is_marked_to_the_character(
    browser: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, document_id: DocumentId
) -> None:
    async with runtime.db.transaction(tenant.id) as session:
        text = (await get_text(session, tenant.admin, document_id=document_id)).body
    start, end = text.index("<b>"), text.index("Sostratus") + len("Sostratus")
    page = (await browser.get(f"/projects/{project_id}/documents/{document_id}?start={start}&end={end}")).text
    (marked,) = re.findall(r"<mark[^>]*>(.*?)</mark>", page, re.DOTALL)
    assert html.unescape(marked) == text[start:end]
    assert "<b>" not in page


async def test_what_others_have_looks_as_if_it_were_not_there(
    browser: httpx.AsyncClient, runtime: Runtime, stranger: Principal
) -> None:
    foreign = await make_project(runtime.db, stranger)
    missing = await browser.get("/projects/00000000-0000-7000-8000-000000000000")
    reply = await browser.get(f"/projects/{foreign}")
    assert reply.status_code == missing.status_code == 404
    request = re.compile(r"Request [0-9a-f]+")
    assert request.sub("", reply.text) == request.sub("", missing.text)


async def test_a_document_is_shown_only_below_its_own_project(
    browser: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, document_id: DocumentId
) -> None:
    other = await make_project(runtime.db, tenant.admin)
    assert (await browser.get(f"/projects/{other}/documents/{document_id}")).status_code == 404


async def test_the_handbook_is_hidden_and_shown_by_one_click_from_our_own_page_only(
    browser: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    handbook = await make_project(runtime.db, tenant.admin, name="Pharos handbook", is_handbook=True)
    token = csrf_token_of((await browser.get("/")).text)
    forged = await browser.post(f"/projects/{handbook}/hide", data={"csrf_token": "0" * 64})
    assert forged.status_code == 403
    assert f"/projects/{handbook}/hide" in (await browser.get("/")).text
    assert (await browser.post(f"/projects/{handbook}/hide", data={"csrf_token": token})).status_code == 303
    assert f"/projects/{handbook}/show" in (await browser.get("/")).text
    assert (await browser.get(f"/projects/{handbook}")).status_code == 200


async def test_the_list_asks_again_only_while_something_is_on_its_way(
    browser: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, run_jobs: RunJobs
) -> None:
    await make_document(runtime, tenant.admin, project_id)
    path = f"/projects/{project_id}/documents/list"
    assert "every 2s" in (await browser.get(path)).text
    await run_jobs(runtime)
    assert "every 2s" not in (await browser.get(path)).text
    assert "note.txt" not in (await browser.get(path, params={"name": "nothing"})).text


async def test_an_earlier_conversation_is_shown_with_its_sources(
    browser: httpx.AsyncClient, project_id: ProjectId, document_id: DocumentId
) -> None:
    headers = {"X-CSRF-Token": csrf_token_of((await browser.get("/")).text), "Accept": "application/json"}
    body = {"projectId": str(project_id), "question": "Who was the keeper of the lighthouse?"}
    answer = (await browser.post("/chat", json=body, headers=headers)).json()
    page = (await browser.get(f"/projects/{project_id}?conversation={answer['conversationId']}")).text
    assert "Who was the keeper of the lighthouse?" in page
    for source in answer["sources"]:
        assert f"/documents/{document_id}?start={source['start']}&amp;end={source['end']}#passage" in page


async def test_only_who_may_make_a_project_is_offered_to(
    browser: httpx.AsyncClient, as_member: httpx.AsyncClient
) -> None:
    assert 'action="/projects"' in (await browser.get("/")).text
    assert 'action="/projects"' not in (await as_member.get("/", headers=BROWSER)).text


async def test_signing_out_ends_the_session(browser: httpx.AsyncClient) -> None:
    token = csrf_token_of((await browser.get("/")).text)
    kept = browser.cookies[COOKIE]
    assert (await browser.post("/sign-out", data={"csrf_token": token})).headers["location"] == "/sign-in"
    browser.cookies.set(COOKIE, kept)
    assert (await browser.get("/")).status_code == 303


async def test_programs_get_json_where_people_get_a_page(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nowhere", headers=BROWSER)).text.startswith("<!doctype html>")
    assert (await client.get("/nowhere")).json()["error"] == "not_found"


async def test_an_address_that_opens_something_by_itself_is_told_to_nobody(client: httpx.AsyncClient) -> None:
    paths = [magic_link.LINK_PATH, password_reset.RESET_PATH, invitations.INVITATION_PATH, email_change.CONFIRM_PATH]
    secret = [f"{path}?token=pho_x" for path in (*paths, SETUP_PATH)] + ["/share/phl_x"]
    for address in [*secret, "/sign-in"]:
        reply = await client.get(address, headers=BROWSER)
        told = (reply.headers["referrer-policy"], reply.headers.get("x-robots-tag"))
        expected = ("no-referrer", "noindex, nofollow") if address in secret else ("same-origin", None)
        assert told == expected, address
        assert 'name="referrer"' not in reply.text  # it would count instead of the header


async def test_the_page_of_an_error_greets_who_is_signed_in(
    browser: httpx.AsyncClient, client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    member = await make_person(runtime.db, tenant.id)
    issued = await open_session(runtime, member)
    for path, status in (("/nowhere", 404), ("/admin/audit?before=x", 422), ("/mail-sent", 200)):
        reply = await browser.get(path)
        assert reply.status_code == status
        assert 'action="/sign-out"' in reply.text, path
        assert csrf_token_of(reply.text), path
        assert 'action="/sign-out"' not in (await client.get(path, headers=BROWSER)).text, path
        ended = await client.get(path, headers=BROWSER | {"Cookie": f"{COOKIE}=phs_{'0' * 32}_x"})
        assert 'action="/sign-out"' not in ended.text, path
    refused = await client.get("/admin/people", headers=BROWSER | {"Cookie": f"{COOKIE}={issued.session_token}"})
    assert refused.status_code == 403
    assert 'action="/sign-out"' in refused.text


async def test_who_belongs_to_several_organisations_sees_where_they_are_and_goes_to_another(
    browser: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    assert "/auth/tenant" not in (await browser.get("/")).text
    other = await make_tenant(runtime.db)
    async with runtime.db.transaction(other.id) as session:
        await session.execute(update(Tenant).where(Tenant.id == other.id).values(name="The other house"))
    await add_place(runtime, other.admin, email=tenant.admin.name)
    page = (await browser.get("/")).text
    assert "You are in A tenant." in page
    assert "Go to The other house" in page
    assert "forms.js" in page
    token = csrf_token_of(page)
    gone = await browser.post("/auth/tenant", json={"slug": other.slug}, headers={"X-CSRF-Token": token})
    assert gone.status_code == 200
    page = (await browser.get("/nowhere")).text
    assert "You are in The other house." in page
    assert "Go to A tenant" in page


async def test_an_invitation_to_who_has_an_account_leads_into_the_organisation_that_invites(
    client: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    elsewhere = (await make_tenant(runtime.db)).admin
    await invitations.invite(runtime, tenant.admin, invitations.Invited(email=elsewhere.name))
    token = await token_to(runtime, tenant.id, elsewhere.name)
    page = (await client.get("/invitation", params={"token": token})).text
    assert f'data-next="/sign-in?tenant={tenant.slug}"' in page
    assert 'data-said="You now belong to A tenant."' in page
    joined = await client.post("/invitations/accept", json={"token": token})
    assert joined.status_code == 201
    page = (await client.get("/sign-in", params={"tenant": tenant.slug})).text
    assert f"You sign in to the organisation “{tenant.slug}”." in page
    assert f'name="tenant" value="{tenant.slug}"' in page
    asked = {"email": elsewhere.name, "password": PASSWORD, "tenant": tenant.slug}
    assert (await client.post("/auth/login", json=asked)).status_code == 200


async def test_the_sign_in_page_takes_a_user_name(client: httpx.AsyncClient) -> None:
    page = (await client.get("/sign-in")).text
    field = re.search(r'<input id="email"[^>]*>', page)
    assert field is not None
    assert 'type="text"' in field[0]  # the browser refuses what is no address in a field for one
    assert "E-mail or user name" in page
