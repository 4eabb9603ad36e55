"""What each door answers while a store, the embedder or a provider is gone (C-36), as `docs/runbook/outages.md` tells
it; and that an answer of a provider which cannot be used leaves nothing half done."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from numpy.typing import NDArray
from sqlalchemy import func, select
from structlog.testing import capture_logs
from tests.conftest import RunJobs, open_client
from tests.fakes import FakeChat, FakeEmbedding, with_model
from tests.make import MadeTenant, make_document, make_project, make_token
from tests.provider_server import Fault, Provider, provider_server
from tests.providers.worlds import KEY, make_provider, patient
from tests.redis_server import RedisServer, needs_redis

from pharos.chat.models import Message
from pharos.infra.cache import Cache
from pharos.infra.db import create_database
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Unavailable
from pharos.infra.ids import ProjectId
from pharos.infra.limits import Limits
from pharos.infra.metrics import FALLBACK_ACTIVE
from pharos.providers.calls import Models
from pharos.providers.contract import ModelState
from pharos.runtime import Runtime

PAGE = Path(__file__).parents[2] / "docs" / "runbook" / "outages.md"
QUESTION = "Where was the lighthouse of Alexandria built?"


@dataclass(frozen=True)
class House:
    """A tenant with a project, and what its administrator's requests carry."""

    tenant: MadeTenant
    project_id: ProjectId
    authorization: str

    @property
    def asked(self) -> dict[str, str]:
        return {"question": QUESTION, "projectId": str(self.project_id)}


@pytest.fixture
async def house(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> House:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    return House(tenant, project_id, f"Bearer {await make_token(runtime, tenant.admin)}")


def told(door: str, outage: str) -> str:
    """What the page's table says of a door in an outage."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    heading = next(row for row in rows if outage in row)
    cells = next(row for row in rows if row[0] == f"`{door}`")
    return cells[heading.index(outage)]


DOORS: dict[str, Callable[[httpx.AsyncClient, ProjectId], Any]] = {
    "GET /health/live": lambda client, _: client.get("/health/live"),
    "GET /health/ready": lambda client, _: client.get("/health/ready"),
    "GET /projects": lambda client, _: client.get("/projects", headers={"Accept": "application/json"}),
    "POST /chat": lambda client, project: client.post("/chat", json={"question": QUESTION, "projectId": str(project)}),
    "POST /chat/projects/{id}": lambda client, project: client.post(
        f"/chat/projects/{project}", json={"question": QUESTION}
    ),
    "POST /api/v1/search": lambda client, project: client.post(
        "/api/v1/search", json={"text": QUESTION, "projectId": str(project)}
    ),
    "GET /v1/models": lambda client, _: client.get("/v1/models"),
}


async def ask_all(world: Runtime, house: House, outage: str) -> None:
    async with open_client(world) as client:
        client.headers["Authorization"] = house.authorization
        for door, ask in DOORS.items():
            reply = await ask(client, house.project_id)
            expected = re.findall(r"\d{3}", told(door, outage))[0]
            assert str(reply.status_code) == expected, (door, outage, reply.text)
            if expected == "503" and not door.startswith("GET /health"):
                assert int(reply.headers["Retry-After"]) > 0, door


@pytest.mark.contract("C-36", part="the database gone; feedback has a test of its own")
async def test_without_postgres_the_process_lives_and_says_503_everywhere_else(runtime: Runtime, house: House) -> None:
    nowhere = create_database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=2)
    limits, models = Limits(runtime.settings, nowhere), Models(runtime.settings, nowhere, runtime.vault)
    runtime.sign_ins.listen()
    async with open_client(runtime) as client:  # who asks is remembered from here, and comes as far as the limits
        assert (await client.get("/v1/models", headers={"Authorization": house.authorization})).status_code == 200
    with capture_logs() as logs:
        await ask_all(replace(runtime, db=nowhere, limits=limits, models=models), house, "Postgres gone")
    assert "limiter.store_gone" in {line["event"] for line in logs}, "limits were counted somewhere else"
    await nowhere.dispose()


@needs_redis
@pytest.mark.contract("C-36", part="Redis gone")
@pytest.mark.parametrize("how", ["killed", "flushed", "hung"])
async def test_redis_going_in_a_conversation_is_seen_by_nobody_who_asks(
    runtime: Runtime, house: House, redis_server: RedisServer, how: str
) -> None:
    settings = runtime.settings.model_copy(update={"redis_url": redis_server.url})
    limits, model = Limits(settings, runtime.db), FakeChat()
    world = with_model(replace(runtime, settings=settings, limits=limits, cache=Cache(redis_server.url)), model)
    async with open_client(world, house.tenant.admin) as client:
        first = (await client.post("/chat", json=house.asked)).json()
        assert (await client.post("/chat", json=house.asked)).json()["answer"] == first["answer"]
        assert len(model.requests) == 1, "the second answer came from Redis"
        match how:
            case "killed":
                redis_server.kill()
            case "flushed":
                assert redis.Redis.from_url(redis_server.url).flushall()
            case "hung":
                redis_server.hold()
        goes_on = await client.post("/chat", json=house.asked | {"conversationId": first["conversationId"]})
        assert (goes_on.status_code, goes_on.json()["conversationId"]) == (200, first["conversationId"])
        asked = len(model.requests)
        with capture_logs() as logs:
            again = await client.post("/chat", json=house.asked)
        assert (again.status_code, again.json()["answer"]) == (200, first["answer"])
        assert len(model.requests) > asked, "what Redis kept is lost, the answer is not"
    await ask_all(world, house, "Redis gone")
    is_gone = how != "flushed"
    assert FALLBACK_ACTIVE.labels("cache")._value.get() == is_gone
    assert ("FALLBACK ACTIVATED" in {line["event"] for line in logs}) == is_gone
    assert (world.limits._gone.until > 0) == is_gone
    await world.cache.close()
    await world.limits.close()


class NoEmbedding(FakeEmbedding):
    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise Unavailable("The embedder is not running.", code="embedder_down")

    async def state(self) -> ModelState:
        return "down"


@pytest.mark.contract("C-36", part="the embedder gone: by words, and marked")
async def test_without_the_embedder_answers_come_by_words_and_are_marked(runtime: Runtime, house: House) -> None:
    world = replace(runtime, embedding=NoEmbedding())
    await ask_all(world, house, "embedder gone")
    async with open_client(world, house.tenant.admin) as client:
        answer = (await client.post("/chat", json=house.asked)).json()
    assert (answer["degraded"], answer["grounded"], answer["mode"]) == (True, True, "extractive")


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    with provider_server() as running:
        yield running
        running.release.set()


@pytest.mark.contract("C-36", part="a provider gone: another one, then quotations")
async def test_without_a_provider_another_answers_and_then_nobody_but_the_documents(
    runtime: Runtime, house: House, provider: Provider
) -> None:
    world = patient(runtime)
    await make_provider(world, house.tenant.id, f"http://127.0.0.1:{free_port()}/v1", is_default=True, name="gone")
    other = await make_provider(world, house.tenant.id, provider.openai_url, name="there", models=["lamp-large"])
    assert other
    async with open_client(world, house.tenant.admin) as client:
        answer = (await client.post("/chat", json=house.asked)).json()
        assert (answer["mode"], answer["answer"]) == ("model", "The keeper trims the lamp [1].")
        provider.always = "failed"
        again = (await client.post("/chat", json=house.asked | {"question": f"{QUESTION} Say where."})).json()
        assert (again["mode"], again["degraded"], again["grounded"]) == ("extractive", True, True)
    await ask_all(world, house, "provider gone")
    await world.models.close()


BAD: tuple[Fault, ...] = ("truncated", "not_json", "huge", "redirect", "hang_up", "key_refused")


@pytest.mark.contract("LP-25", part="one line in the log with the provider's words")
@pytest.mark.contract("CH-03", part="what a person sees, what the log says")
@pytest.mark.parametrize("fault", BAD)
async def test_an_answer_that_cannot_be_used_is_named_in_the_log_and_leaves_quotations(
    runtime: Runtime, house: House, provider: Provider, fault: Fault
) -> None:
    world = patient(runtime)
    await make_provider(world, house.tenant.id, provider.openai_url, is_default=True, models=["lamp-large"])
    provider.always, provider.huge_bytes = fault, 2 * 1024 * 1024
    with capture_logs() as logs:
        async with open_client(world, house.tenant.admin) as client:
            answer = await client.post("/chat", json=house.asked)
    await world.models.close()
    if fault == "huge":  # it has begun to speak: what was said is no answer
        assert answer.status_code == 503
        assert answer.json()["message"].startswith("Failed to generate response.")
    else:
        assert (answer.status_code, answer.json()["mode"]) == (200, "extractive")
    failed = [line["code"] for line in logs if line["event"] == "model.failed"]
    assert failed
    assert failed[0].startswith("provider_")
    assert KEY not in str(logs)
    assert "secretsecret" not in str(logs)
    async with runtime.db.transaction(house.tenant.id) as session:
        stored = (await session.execute(select(func.count()).where(Message.role == "assistant"))).scalar_one()
    assert stored == (fault != "huge"), "an answer is stored whole or not at all"
