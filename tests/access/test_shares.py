"""A conversation shared with somebody without an account: who asks, who decides, and how little the link opens."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text, update
from tests.conftest import RunJobs, make_runtime, open_client
from tests.make import MadeTenant, make_document, make_project, make_tenant

from pharos.access.models import ShareToken
from pharos.chat.history import list_conversations
from pharos.chat.models import Conversation
from pharos.identity.principal import Principal, operator
from pharos.infra.ids import DocumentId, ProjectId, new_id
from pharos.infra.settings import Settings
from pharos.library.ingest import ingest_documents
from pharos.runtime import Runtime
from pharos.tables import metadata

QUESTION = "Where was the lighthouse of Alexandria built?"
NO_LINK = (404, "no_such_link")


@pytest.fixture
async def project_id(runtime: Runtime, tenant: MadeTenant) -> ProjectId:
    project_id = await make_project(runtime.db, tenant.admin)
    document = await make_document(runtime, tenant.admin, project_id)
    await ingest_documents(runtime, tenant.id, [DocumentId(document.id)])
    return project_id


@pytest.fixture
async def conversation(as_member: httpx.AsyncClient, project_id: ProjectId) -> str:
    """One of the member's, with one question in it."""
    answer = await as_member.post("/chat", json={"question": QUESTION, "projectId": str(project_id)})
    return str(answer.json()["conversationId"])


async def ask(client: httpx.AsyncClient, conversation: str) -> httpx.Response:
    return await client.post(f"/conversations/{conversation}/share-requests", json={"message": "For our auditor"})


@pytest.fixture
async def link(as_member: httpx.AsyncClient, as_admin: httpx.AsyncClient, conversation: str) -> str:
    """The path of an approved share's JSON."""
    request = (await ask(as_member, conversation)).json()["id"]
    approved = (await as_admin.post(f"/admin/share-requests/{request}/approve", json={})).json()
    assert "/share/phl_" in approved["url"]
    return f"/api/v1/share/{approved['url'].rpartition('/')[2]}"


async def outcome(client: httpx.AsyncClient, path: str) -> tuple[int, str]:
    answer = await client.get(path)
    return answer.status_code, answer.json().get("error", "")


@pytest.mark.contract("AC-12", part="a request waits for an administrator, who approves or rejects it once")
async def test_a_request_waits_for_an_administrator_who_decides_once(
    as_member: httpx.AsyncClient, as_admin: httpx.AsyncClient, member: Principal, conversation: str
) -> None:
    made = await ask(as_member, conversation)
    assert (made.status_code, made.json()["state"]) == (201, "pending")
    assert (await ask(as_member, conversation)).json()["error"] == "share_pending"
    (listed,) = (await as_admin.get("/admin/share-requests", params={"state": "pending"})).json()["requests"]
    assert (listed["requestedBy"], listed["message"], listed["link"]) == (member.name, "For our auditor", None)
    decide = f"/admin/share-requests/{listed['id']}"
    assert (await as_member.post(f"{decide}/approve", json={})).status_code == 403
    assert (await as_admin.post(f"{decide}/reject")).status_code == 204
    assert (await as_admin.post(f"{decide}/approve", json={})).json()["error"] == "already_decided"
    assert (await ask(as_member, conversation)).status_code == 201


async def test_of_two_requests_at_once_one_waits(as_member: httpx.AsyncClient, conversation: str) -> None:
    await asyncio.gather(*(as_member.get("/projects") for _ in range(4)))  # each has its connection, so that they meet
    answers = await asyncio.gather(*(ask(as_member, conversation) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert {answer.json().get("error") for answer in answers} == {None, "share_pending"}


async def test_only_ones_own_conversation_can_be_shared(
    as_admin: httpx.AsyncClient, as_stranger: httpx.AsyncClient, conversation: str
) -> None:
    for client in (as_admin, as_stranger):
        foreign, missing = await ask(client, conversation), await ask(client, str(new_id()))
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["message"] == missing.json()["message"]


@pytest.mark.contract("AC-12", part="a guest reads the conversation as it was approved, and each opening is counted")
async def test_a_guest_reads_what_was_said_until_the_approval(
    as_member: httpx.AsyncClient, as_admin: httpx.AsyncClient, client: httpx.AsyncClient, conversation: str, link: str
) -> None:
    project_id = (await as_member.get("/projects")).json()["projects"][0]["id"]
    later = {"question": "Who built it?", "projectId": str(project_id), "conversationId": conversation}
    assert (await as_member.post("/chat", json=later)).status_code == 200
    shown = (await client.get(link)).json()
    assert [message["role"] for message in shown["messages"]] == ["user", "assistant"]
    assert shown["messages"][0]["body"] == QUESTION
    assert shown["messages"][1]["sources"][0]["document"] == "note.txt"
    await client.get(link)
    (listed,) = (await as_admin.get("/admin/share-requests")).json()["requests"]
    assert (listed["state"], listed["link"]["uses"], listed["link"]["isOpen"]) == ("approved", 2, True)


@pytest.mark.contract("AC-12", part="a link is stored as a hash only")
async def test_a_link_is_stored_as_a_hash_only(runtime: Runtime, tenant: MadeTenant, link: str) -> None:
    async with runtime.db.transaction(tenant.id) as session:
        row = (await session.execute(select(ShareToken))).scalar_one()
        dump = str((await session.execute(text("select row_to_json(t) from share_tokens t"))).all())
        audit = str((await session.execute(text("select row_to_json(t) from audit_log t"))).all())
    secret = link.rpartition("_")[2]
    assert secret not in dump + audit
    assert len(row.token_hash) == 64


async def test_a_link_outlives_a_rotated_secret(runtime: Runtime, link: str) -> None:
    rotated = Settings(_env_file=None, **(runtime.settings.model_dump() | {"secret_key": secrets.token_hex(32)}))
    async with open_client(make_runtime(rotated, runtime.db)) as guest:
        assert (await guest.get(link)).status_code == 200


@pytest.mark.contract("AC-12", part="unknown, foreign, ended and revoked links are the same 404")
async def test_a_link_that_does_not_hold_opens_nothing_and_says_nothing(
    runtime: Runtime, tenant: MadeTenant, as_admin: httpx.AsyncClient, client: httpx.AsyncClient, link: str
) -> None:
    other = await make_tenant(runtime.db)
    foreign = link.replace(tenant.id.hex, other.id.hex)
    for path in (foreign, link + "x", "/api/v1/share/nonsense", f"/api/v1/share/phs_{tenant.id.hex}_x"):
        assert await outcome(client, path) == NO_LINK
        asked = await client.post(f"{path}/questions", json={"question": QUESTION})
        assert (asked.status_code, asked.json()["error"]) == NO_LINK
    (listed,) = (await as_admin.get("/admin/share-requests")).json()["requests"]
    async with runtime.db.transaction(tenant.id) as session:
        ends = (await session.execute(select(ShareToken.expires_at))).scalar_one()
        await session.execute(update(ShareToken).values(expires_at=func.now()))
    assert await outcome(client, link) == NO_LINK
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(update(ShareToken).values(expires_at=ends))
    assert (await client.get(link)).status_code == 200
    for _ in range(2):
        assert (await as_admin.post(f"/admin/share-requests/{listed['id']}/revoke")).status_code == 204
    assert await outcome(client, link) == NO_LINK
    assert (await client.post(f"{link}/questions", json={"question": QUESTION})).status_code == 404


async def test_a_conversation_that_is_gone_is_not_shared_any_more(
    runtime: Runtime, tenant: MadeTenant, client: httpx.AsyncClient, conversation: str, link: str
) -> None:
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(text("delete from conversations"))
    assert await outcome(client, link) == NO_LINK


@pytest.mark.contract("AC-12", part="a guest asks on, in a branch of their own")
async def test_a_guest_asks_on_in_a_branch_of_their_own(
    runtime: Runtime, tenant: MadeTenant, client: httpx.AsyncClient, conversation: str, link: str
) -> None:
    answer = (await client.post(f"{link}/questions", json={"question": QUESTION})).json()
    assert answer["grounded"] is True
    branch = answer["conversationId"]
    assert branch != conversation
    more = {"question": "On which island was it built?", "conversationId": branch}
    assert (await client.post(f"{link}/questions", json=more)).json()["conversationId"] == branch
    shown = (await client.get(link, params={"conversation_id": branch})).json()
    assert (len(shown["messages"]), len(shown["branch"])) == (2, 4)
    (mine,) = await own_conversations(runtime, tenant, None)
    assert str(mine.id) == branch
    for stranger in (conversation, str(new_id())):
        again = await client.post(f"{link}/questions", json={"question": QUESTION, "conversationId": stranger})
        assert (again.status_code, again.json()["error"]) == (404, "no_such_conversation")
        assert (await client.get(link, params={"conversation_id": stranger})).status_code == 404
    theirs = {"question": QUESTION, "projectId": str(mine.project_id), "conversationId": branch}
    async with open_client(runtime, tenant.admin) as administrator:
        assert (await administrator.post("/chat", json=theirs)).status_code == 404


async def own_conversations(runtime: Runtime, tenant: MadeTenant, user_id: object) -> list[Conversation]:
    async with runtime.db.transaction(tenant.id) as session:
        found = select(Conversation).where(Conversation.user_id.is_not_distinct_from(user_id))
        return list((await session.execute(found)).scalars())


async def test_the_operator_does_not_find_a_guests_branch_among_their_own(
    runtime: Runtime, tenant: MadeTenant, client: httpx.AsyncClient, project_id: ProjectId, link: str
) -> None:
    await client.post(f"{link}/questions", json={"question": QUESTION})
    async with runtime.db.transaction(tenant.id) as session:
        found = await list_conversations(session, operator(tenant.id), project_id=project_id, limit=9)
    assert list(found) == []


@pytest.mark.contract("AC-12", part="a guest changes nothing but their branch")
async def test_a_guests_question_changes_nothing_but_their_branch(
    runtime: Runtime, tenant: MadeTenant, client: httpx.AsyncClient, link: str
) -> None:
    async def prints() -> dict[str, Any]:
        found = {}
        async with runtime.db.transaction(tenant.id) as session:
            for table in metadata.tables:
                digest = text(f"select md5(string_agg(t::text, '' order by t::text)) from {table} t")
                found[table] = (await session.execute(digest)).scalar_one()
        return found

    before = await prints()
    await client.post(f"{link}/questions", json={"question": QUESTION})
    after = await prints()
    changed = {table for table in after if after[table] != before[table]}
    assert changed == {"conversations", "messages", "message_sources", "rate_limits", "turns", "turn_events"}


async def test_a_guest_reaches_no_other_project_and_no_other_route(
    runtime: Runtime, tenant: MadeTenant, client: httpx.AsyncClient, link: str, run_jobs: RunJobs
) -> None:
    other = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, other, content=b"The vault opens at noon with a bronze key.")
    await run_jobs(runtime)
    answer = (await client.post(f"{link}/questions", json={"question": "When does the vault open?"})).json()
    assert "noon" not in str(answer)
    token = link.rpartition("/")[2]
    for headers in ({"Authorization": f"Bearer {token}"}, {"X-API-Key": token}, {"Cookie": f"pharos_session={token}"}):
        assert (await client.get("/projects", headers=headers)).status_code == 401


@pytest.mark.contract("AC-12", part="rate-limited")
async def test_guests_are_limited(runtime: Runtime, link: str) -> None:
    async with open_client(runtime) as guest:
        statuses = [(await guest.get("/api/v1/share/guess")).status_code for _ in range(31)]
        assert (statuses[:30], statuses[30]) == ([404] * 30, 429)
    async with open_client(runtime) as guest:
        asked = [await guest.post(f"{link}/questions", json={"question": "a"}) for _ in range(11)]
    assert [one.status_code for one in asked] == [422] * 10 + [429]
    assert int(asked[-1].headers["retry-after"]) >= 1
