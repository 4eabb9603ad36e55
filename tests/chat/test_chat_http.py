"""Asking over HTTP: streamed for pages, whole for programs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from tests.conftest import open_client
from tests.fakes import FakeChat, with_model
from tests.make import MadeTenant, make_person, make_project

from pharos.chat.models import Conversation, Message
from pharos.identity.api_keys import create_key
from pharos.identity.model_managers import find_models_page
from pharos.identity.principal import Principal
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.errors import Unavailable
from pharos.infra.ids import ProjectId
from pharos.providers.contract import ChatRequest
from pharos.runtime import Runtime

QUESTION = "Where was the lighthouse of Alexandria built?"
Events = list[tuple[str, dict[str, Any]]]


def events_of(body: str) -> Events:
    blocks = [block.split("\n") for block in body.strip().split("\n\n")]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]


async def test_a_turn_streams_its_events_in_order(as_member: httpx.AsyncClient, project_id: ProjectId) -> None:
    answer = await as_member.post(f"/chat/projects/{project_id}", json={"question": QUESTION})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["meta", "sources", "text", "done"]
    found = dict(events)
    (source,) = found["sources"]["sources"]
    assert (source["document"], source["start"], source["index"]) == ("note.txt", 0, 1)
    assert found["done"]["grounded"] is True
    assert "Pharos" in found["done"]["html"]


async def test_a_program_gets_the_whole_answer(as_member: httpx.AsyncClient, project_id: ProjectId) -> None:
    answer = (await as_member.post("/chat", json={"question": QUESTION, "projectId": str(project_id)})).json()
    assert answer["grounded"] is True
    assert "island of Pharos" in answer["answer"]
    assert answer["sources"][0]["text"] in "The lighthouse of Alexandria was built on the island of Pharos."
    only = (await as_member.post("/chat", json={"question": QUESTION})).json()
    assert only["answer"] == answer["answer"]


async def test_without_a_project_and_with_several_one_must_be_named(
    runtime: Runtime, tenant: MadeTenant, as_member: httpx.AsyncClient, project_id: ProjectId
) -> None:
    assert await make_project(runtime.db, tenant.admin) != project_id
    answer = await as_member.post("/chat", json={"question": QUESTION})
    assert (answer.status_code, answer.json()["error"]) == (422, "project_required")


@pytest.mark.contract("PD-05")
async def test_a_conversation_belongs_to_its_person_and_project(
    runtime: Runtime,
    member: Principal,
    project_id: ProjectId,
    as_member: httpx.AsyncClient,
    as_admin: httpx.AsyncClient,
) -> None:
    path = f"/chat/projects/{project_id}"
    first = events_of((await as_member.post(path, json={"question": QUESTION})).text)
    conversation_id = first[0][1]["conversation_id"]
    again = {"question": QUESTION, "conversation_id": conversation_id}
    assert (await as_member.post(path, json=again)).status_code == 200
    foreign = await as_admin.post(path, json=again)
    assert (foreign.status_code, foreign.json()["error"]) == (404, "no_such_conversation")
    async with runtime.db.transaction(member.tenant_id) as session:
        conversation = (await session.execute(select(Conversation))).scalar_one()
        roles = (await session.execute(select(Message.role).order_by(Message.created_at, Message.id))).scalars().all()
    assert (conversation.user_id, conversation.project_id) == (member.user_id, project_id)
    assert roles == ["user", "assistant"] * 2


@pytest.mark.parametrize("question", ["", "?", "x" * 3000])
async def test_what_is_no_question_is_an_ordinary_error(
    as_member: httpx.AsyncClient, project_id: ProjectId, question: str
) -> None:
    answer = await as_member.post(f"/chat/projects/{project_id}", json={"question": question})
    assert answer.status_code == 422
    assert answer.json().keys() >= {"error", "message", "requestId"}


async def test_a_model_streams_and_is_held_to_its_sources(
    runtime: Runtime, member: Principal, project_id: ProjectId
) -> None:
    model = FakeChat("It was built on the island of Pharos [1].")
    async with open_client(with_model(runtime, model), member) as client:
        answer = await client.post(f"/chat/projects/{project_id}", json={"question": QUESTION})
    names = [name for name, _ in events_of(answer.text)]
    assert names.count("text") > 1
    assert names[-1] == "done"
    assert len(model.requests) == 1


@pytest.mark.contract("CH-01")
async def test_a_program_asks_with_its_key_through_every_door(
    runtime: Runtime, tenant: MadeTenant, member: Principal, project_id: ProjectId
) -> None:
    async with runtime.db.transaction(tenant.id) as session:
        _, key = await create_key(session, tenant.admin, name="a program", user_id=None, scopes=["ask"])
    asked = {"question": QUESTION, "projectId": str(project_id)}
    async with open_client(runtime) as client:
        client.headers["X-API-Key"] = key
        whole = await client.post("/chat", json=asked)
        streams = [await client.post(path, json=asked) for path in ("/chat/stream", f"/chat/projects/{project_id}")]
        turn_id = streams[0].headers["x-turn-id"]
        again = await client.get(f"/chat/turns/{turn_id}/events", headers={"Last-Event-ID": "3"})
        said = await client.post("/feedback", json={"messageId": turn_id, "rating": "up"})
    assert "island of Pharos" in whole.json()["answer"]
    assert [events_of(stream.text)[-1][0] for stream in streams] == ["done", "done"]
    assert events_of(again.text) == events_of(streams[0].text)[3:]
    assert said.status_code == 201


class Broken(FakeChat):
    """Fails after its first word."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        yield "On "
        raise Unavailable("It went away.", code="provider_failed", cause_words="500 out of lamps")


@pytest.mark.contract("CH-03", part="the HTTP error, and engineers are led to the providers")
async def test_a_model_that_fails_is_a_short_sentence_and_for_engineers_a_way_to_the_providers(
    runtime: Runtime, tenant: MadeTenant, member: Principal, project_id: ProjectId
) -> None:
    asked = {"question": QUESTION, "projectId": str(project_id)}
    world = with_model(runtime, Broken())
    async with open_client(world, member) as client:
        failed = await client.post("/chat", json=asked)
        streamed = events_of((await client.post("/chat/stream", json=asked)).text)[-1]
    assert (failed.status_code, failed.json()["error"]) == (503, "provider_failed")
    assert failed.json()["message"] == "Failed to generate response."
    assert "lamps" not in failed.text
    told = {"error": "provider_failed", "message": "Failed to generate response.", "status": 503}
    assert streamed == ("error", told)
    async with open_client(world, tenant.admin) as client:
        told = events_of((await client.post("/chat/stream", json=asked)).text)[-1][1]
    assert told["message"] == "Failed to generate response. The cause is in the log; see /admin/models."


@pytest.mark.contract("CH-03", part="who can mend it is led to a page that they may open")
async def test_who_is_led_to_a_page_of_models_may_open_it(runtime: Runtime, tenant: MadeTenant) -> None:
    home = await ensure_default_tenant(runtime)
    people = {
        "/admin/models": [tenant.admin, await make_person(runtime.db, home, platform_role="admin")],
        "/engineer/providers": [await make_person(runtime.db, home, platform_role="engineer")],
        None: [
            await make_person(runtime.db, tenant.id),
            await make_person(runtime.db, tenant.id, platform_role="engineer"),
        ],
    }
    for page, those in people.items():
        for who in those:
            assert await find_models_page(runtime, who) == page
            async with open_client(runtime, who) as client:
                statuses = [(await client.get(path)).status_code for path in ("/admin/models", "/engineer/providers")]
            assert page is None or 200 in statuses
            assert (page is None) == (200 not in statuses), who
    both = replace(people["/admin/models"][1], platform_role="superadmin")  # another test has the only one
    pages = [await find_models_page(runtime, both, is_shared=is_shared) for is_shared in (False, True)]
    assert pages == ["/admin/models", "/engineer/providers"]
    (engineer,) = people["/engineer/providers"]
    assert await find_models_page(runtime, engineer, is_shared=False) is None, "there is nothing to be seen of it"


@pytest.mark.contract("CH-02")
async def test_ways_of_answering_are_told(as_member: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    assert (await as_member.get("/chat/config")).json() == {"docs": True, "web": False, "deep": False}
    assert (await client.get("/chat/config")).status_code == 401


async def test_search_gives_passages_with_their_place(as_member: httpx.AsyncClient, project_id: ProjectId) -> None:
    for scope in ({"projectId": str(project_id)}, {}):
        answer = (await as_member.post("/api/v1/search", json={"text": "lighthouse Alexandria", **scope})).json()
        (passage,) = answer["passages"]
        assert (passage["document"], passage["start"], answer["degraded"]) == ("note.txt", 0, False)


@pytest.mark.contract("AC-09", part="search across projects stays inside the tenant")
async def test_search_finds_nothing_of_another_tenant(as_stranger: httpx.AsyncClient, project_id: ProjectId) -> None:
    assert project_id
    answer = (await as_stranger.post("/api/v1/search", json={"text": "lighthouse Alexandria"})).json()
    assert answer["passages"] == []
