"""Answers are given again while nothing they rest on has changed, and to nobody who lost the right to see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray
from sqlalchemy import text
from tests.conftest import RunJobs, open_client
from tests.fakes import FakeChat, FakeEmbedding, with_model
from tests.make import MadeTenant, make_document, make_person, make_project
from tests.providers.worlds import make_provider
from tests.redis_server import RedisServer, needs_redis

from pharos.access.models import ProjectGrant
from pharos.chat.answer import Answer, answer_question, gather_answer
from pharos.chat.answer_cache import forget_answers
from pharos.identity.principal import Principal
from pharos.infra import cache as cache_module
from pharos.infra.cache import Cache
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotAllowed, Unavailable
from pharos.infra.ids import ConversationId, DocumentId, ProjectId, new_id
from pharos.infra.metrics import ANSWER_SECONDS, CACHE_HITS, CACHE_MISSES, FALLBACK_ACTIVE, render_metrics
from pharos.library.delete import delete_documents
from pharos.providers.calls import Models
from pharos.providers.contract import ChatRequest
from pharos.runtime import Runtime

QUESTION = "Where was the lighthouse of Alexandria built?"


@pytest.fixture
def model() -> FakeChat:
    return FakeChat("It was built on the island of Pharos [1].")


@pytest.fixture
def world(runtime: Runtime, model: FakeChat) -> Runtime:
    return with_model(runtime, model)


@pytest.fixture
async def project_id(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> ProjectId:
    project_id = await make_project(runtime.db, tenant.admin, is_private=True)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    return project_id


async def ask(
    world: Runtime, who: Principal, project_id: ProjectId, question: str = QUESTION, conversation: str | None = None
) -> Answer:
    conversation_id = ConversationId(UUID(conversation)) if conversation else None
    asked = answer_question(world, who, project_id=project_id, question=question, conversation_id=conversation_id)
    return await gather_answer(asked)


@pytest.mark.contract("CH-06")
@pytest.mark.contract("ME-14")
async def test_the_same_question_is_answered_without_the_model_and_counted(
    world: Runtime, tenant: MadeTenant, project_id: ProjectId, model: FakeChat
) -> None:
    hits, misses = CACHE_HITS._value.get(), CACHE_MISSES._value.get()
    first = await ask(world, tenant.admin, project_id)
    again = await ask(world, tenant.admin, project_id, "  where was the Lighthouse of Alexandria built? ")
    assert len(model.requests) == 1
    assert (again.answer, again.sources, again.grounded, again.mode) == (
        first.answer, first.sources, first.grounded, "model",
    )  # fmt: skip
    assert again.conversation_id != first.conversation_id
    assert (CACHE_HITS._value.get() - hits, CACHE_MISSES._value.get() - misses) == (1, 1)
    told = render_metrics().decode()
    assert "rag_cache_hits_total" in told
    assert "rag_cache_misses_total" in told
    await ask(world, tenant.admin, project_id, QUESTION, first.conversation_id)
    assert len(model.requests) > 1, "in the middle of a conversation the question means something else"


class Flaky(FakeChat):
    """Does not answer while it `is_away`."""

    is_away = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        if self.is_away:
            raise Unavailable("It is away.", code="provider_timed_out")
        yield self.reply


@pytest.mark.contract("LP-20", part="the answer says who wrote it, and who did not answer")
@pytest.mark.contract("CH-06", part="kept by model")
async def test_what_a_spare_model_answered_says_so_and_is_not_given_as_the_first_ones(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    opened = {"first": Flaky("By the first [1]."), "spare": Flaky("By the spare [1].")}
    models = Models(runtime.settings, runtime.db, runtime.vault, open_model=lambda one: opened[one.provider])
    world = replace(runtime, models=models)
    await make_provider(world, tenant.id, "https://first.invalid/v1", name="first", is_default=True)
    await make_provider(world, tenant.id, "https://spare.invalid/v1", name="spare")
    question = {"question": QUESTION, "projectId": str(project_id)}
    opened["first"].is_away = True
    async with open_client(world, tenant.admin) as client:
        spare = (await client.post("/chat", json=question)).json()
        assert spare["answer"] == "By the spare [1]."
        assert spare["madeBy"] == {
            "provider": "spare",
            "model": "gpt-4o-mini",
            "failedOverFrom": ["first"],
            "cut": None,
        }
        page = await client.get(f"/projects/{project_id}?conversation={spare['conversationId']}")
        assert "By gpt-4o-mini of spare; first did not answer" in page.text
        opened["first"].is_away = False
        for _ in range(2):  # asked, then kept
            first = (await client.post("/chat", json=question)).json()
            assert first["answer"] == "By the first [1]."
            assert first["madeBy"] == {"provider": "first", "model": "gpt-4o-mini", "failedOverFrom": [], "cut": None}
    assert len(opened["first"].requests) == 2
    await models.close()


@pytest.mark.contract("CH-06", part="a revoked grant never sees a cached answer")
async def test_who_lost_the_project_is_given_no_kept_answer(
    world: Runtime, tenant: MadeTenant, project_id: ProjectId, model: FakeChat
) -> None:
    member = await make_person(world.db, tenant.id)
    grant = ProjectGrant(
        tenant_id=tenant.id, id=new_id(), project_id=project_id, grantee_kind="user", grantee_id=member.user_id,
        tier="use",
    )  # fmt: skip
    async with world.db.transaction(tenant.id) as session:
        session.add(grant)
    assert (await ask(world, member, project_id)).grounded
    async with world.db.transaction(tenant.id) as session:
        await session.execute(text("delete from project_grants"))
    with pytest.raises(NotAllowed):
        await ask(world, member, project_id)
    await ask(world, tenant.admin, project_id)
    assert len(model.requests) == 2, "what was kept under other rights does not count any more"


@pytest.mark.parametrize("change", ["a document more", "a document less", "instructions", "a memory", "cleared"])
async def test_whatever_an_answer_rests_on_makes_the_kept_one_unreachable(
    *, world: Runtime, tenant: MadeTenant, project_id: ProjectId, model: FakeChat, run_jobs: RunJobs, change: str
) -> None:
    other = await make_document(world, tenant.admin, project_id, name="more.txt", content=b"Goats live on Pharos now.")
    await run_jobs(world)
    await ask(world, tenant.admin, project_id)
    await ask(world, tenant.admin, project_id)
    assert len(model.requests) == 1
    match change:
        case "a document more":
            await make_document(world, tenant.admin, project_id, name="a.txt", content=b"A lighthouse was elsewhere.")
            await run_jobs(world)
        case "a document less":
            async with world.db.transaction(tenant.id) as session:
                await delete_documents(session, tenant.admin, document_ids=[DocumentId(other.id)])
        case "instructions":
            async with world.db.transaction(tenant.id) as session:
                await session.execute(text("update projects set instructions = 'Be short.'"))
        case "a memory":
            async with world.db.transaction(tenant.id) as session:
                await session.execute(
                    text("insert into project_memories (tenant_id, id, project_id, body) values (:t, :i, :p, 'Note')"),
                    {"t": tenant.id, "i": new_id(), "p": project_id},
                )
        case "cleared":
            async with system_transaction(world.db) as session:
                await forget_answers(session)
    await ask(world, tenant.admin, project_id)
    assert len(model.requests) == 2
    if change == "a memory":
        assert "- Note" in model.requests[-1].messages[0].content


@pytest.mark.contract("ME-18", part="retrieve, LLM and its first word, total")
async def test_an_answer_tells_where_its_time_went(world: Runtime, tenant: MadeTenant, project_id: ProjectId) -> None:
    def counts() -> dict[str, float]:
        samples = next(iter(ANSWER_SECONDS.collect())).samples
        return {one.labels["stage"]: one.value for one in samples if one.name.endswith("_count")}

    before = counts()
    await ask(world, tenant.admin, project_id)
    stages = ("rewrite", "retrieve", "first_word", "llm", "total")
    assert {stage: counts()[stage] - before.get(stage, 0) for stage in stages} == dict.fromkeys(stages, 1)


@needs_redis
@pytest.mark.contract("CH-04", part="what is kept in Redis: fallback in memory, said in the log, and back by itself")
async def test_a_cache_whose_redis_dies_keeps_for_itself_and_gives_back(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "PROBE_SECONDS", 0.05)
    mine, other = Cache(redis_server.url), Cache(redis_server.url)
    await mine.put("a", b"1")
    assert await other.get("a") == b"1"
    redis_server.kill()
    with structlog.testing.capture_logs() as logs:
        assert await mine.get("a") is None
        await mine.put("b", b"2")
        assert await mine.get("b") == b"2"
    assert [line["event"] for line in logs] == ["FALLBACK ACTIVATED"]
    assert (mine.is_fallen_back, FALLBACK_ACTIVE.labels("cache")._value.get()) == (True, 1)
    redis_server.start()
    async with asyncio.timeout(10):
        while mine.is_fallen_back:  # noqa: ASYNC110 - what ends it is another program
            await asyncio.sleep(0.05)
    assert FALLBACK_ACTIVE.labels("cache")._value.get() == 0
    assert await other.get("b") == b"2"
    redis_server.hold()
    await mine.put("c", b"3")
    assert await mine.get("c") == b"3"
    await mine.close()
    await other.close()


async def test_keeping_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MOST_KEPT", 2)
    cache = Cache()
    for key in "abc":
        await cache.put(key, key.encode())
    assert [await cache.get(key) for key in "abc"] == [None, b"b", b"c"]
    await cache.clear()
    assert await cache.get("c") is None
    monkeypatch.setattr(cache_module, "KEPT_SECONDS", 0)
    await cache.put("d", b"d")
    assert await cache.get("d") is None


class Away(FakeEmbedding):
    """The embedder while it is down."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise Unavailable("The embedder is away.")


async def test_a_search_that_nobody_makes_is_not_degraded(
    world: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    first = await ask(world, tenant.admin, project_id)
    with structlog.testing.capture_logs() as logged:
        again = await ask(replace(world, embedding=Away()), tenant.admin, project_id)
    assert again.answer == first.answer
    assert "search.degraded" not in [one["event"] for one in logged]
