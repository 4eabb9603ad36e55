"""OpenAI's own client, unmodified, asks here: by its format, with our limits, rules and errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import numpy as np
import openai
import pytest
from sqlalchemy import func, select
from tests.conftest import RunJobs, open_client
from tests.fakes import FakeChat, with_model
from tests.make import MadeTenant, make_document, make_project
from tests.provider_server import provider_server
from tests.providers.worlds import make_provider, patient
from tests.test_serve import start_web, wait_for

from pharos.app import create_app
from pharos.chat.models import Message
from pharos.identity.api_keys import create_key
from pharos.identity.principal import Principal
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Unavailable
from pharos.infra.ids import ProjectId
from pharos.providers.contract import ChatRequest
from pharos.providers.models import LlmCall
from pharos.runtime import Runtime

QUESTION = "Where was the lighthouse of Alexandria built?"
SENTENCE = "The lighthouse of Alexandria was built on the island of Pharos."
NAME = "Light Houses & Co"
MODEL = "pharos/light-houses-co"
ASKED: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture
async def project_id(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> ProjectId:
    project_id = await make_project(runtime.db, tenant.admin, name=NAME)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    return project_id


async def make_key(runtime: Runtime, person: Principal, **choices: Any) -> str:
    async with runtime.db.transaction(person.tenant_id) as session:
        return (await create_key(session, person, name="a program", user_id=person.user_id, **choices))[1]


@asynccontextmanager
async def client_of(runtime: Runtime, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(create_app(runtime.settings, runtime=runtime))
    async with httpx2.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(base_url="http://testserver/v1", api_key=key, max_retries=0, http_client=http)


@pytest.fixture
async def asker(runtime: Runtime, member: Principal) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(runtime, await make_key(runtime, member)) as client:
        yield client


async def test_against_a_running_server_models_are_listed_and_a_cited_answer_is_streamed(
    runtime: Runtime,
    member: Principal,
    project_id: ProjectId,
    *,
    database_urls: DatabaseUrls,
    programs: Path,
    tmp_path: Path,
) -> None:
    key, port, python = await make_key(runtime, member), free_port(), str(programs / "python")
    with provider_server() as provider:
        provider.words = ["It was built on", " the island of", " Pharos [1]."]
        operator = {"PHAROS_LLM_URL": provider.openai_url, "PHAROS_LLM_MODEL": "lamp-large"}
        with start_web(database_urls.app, tmp_path, port, python=python, **operator) as web:
            wait_for(web, port)
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
            try:
                assert MODEL in [model.id async for model in client.models.list()]
                assert (await client.models.retrieve(MODEL)).id == MODEL
                stream = await client.chat.completions.create(
                    model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True}
                )
                *chunks, counted = [chunk async for chunk in stream]
                whole = await client.chat.completions.create(model=MODEL, messages=ASKED)
                with pytest.raises(openai.AuthenticationError) as refused:
                    await client.with_options(api_key="sk-somebody-elses").models.list()
            finally:
                await client.close()
                web.terminate()
                web.communicate()
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == provider.words
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    (citation,) = chunks[-1].model_extra["citations"] if chunks[-1].model_extra else []
    assert (citation["index"], citation["document"], citation["text"]) == (1, "note.txt", SENTENCE)
    assert counted.usage is not None
    assert counted.usage.completion_tokens == len(provider.words)
    assert whole.choices[0].message.content == "".join(provider.words)
    assert whole.model_extra is not None
    assert (whole.model_extra["mode"], whole.model_extra["grounded"]) == ("model", True)
    assert refused.value.code == "not_signed_in"


async def test_without_a_model_the_answer_is_made_of_cited_sentences(
    asker: openai.AsyncOpenAI, project_id: ProjectId
) -> None:
    answer = await asker.chat.completions.create(model=f"pharos/{project_id}", messages=ASKED)
    assert answer.choices[0].message.content == f"{SENTENCE} [1]"
    assert answer.model_extra is not None
    assert answer.model_extra["mode"] == "extractive"
    assert [source["document"] for source in answer.model_extra["citations"]] == ["note.txt"]


async def test_what_was_said_before_reaches_the_model_and_instructions_of_the_caller_do_not(
    runtime: Runtime, member: Principal, project_id: ProjectId
) -> None:
    model = FakeChat(QUESTION)  # which is also what it makes of the follow-up question
    messages: Any = [
        {"role": "system", "content": "Talk like a pirate."},
        {"role": "user", "content": "What is a keeper?"},
        {"role": "assistant", "content": "Somebody who trims lamps."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    async with client_of(with_model(runtime, model), await make_key(runtime, member)) as client:
        await client.chat.completions.create(model="pharos", messages=messages)
    request = model.requests[-1]
    said = [(message.role, message.content) for message in request.messages[1:-1]]
    assert said == [("user", "What is a keeper?"), ("assistant", "Somebody who trims lamps.")]
    assert request.messages[-1].content.endswith(QUESTION)
    assert "pirate" not in str(model.requests)


async def test_a_model_that_fails_in_the_middle_ends_the_stream_with_an_error_of_the_clients_own(
    runtime: Runtime, member: Principal, project_id: ProjectId
) -> None:
    class Breaks(FakeChat):
        async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
            yield "It was "
            yield "built "
            raise Unavailable("Gone.", code="provider_failed")

    pieces = []
    async with client_of(with_model(runtime, Breaks()), await make_key(runtime, member)) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=ASKED, stream=True)
        with pytest.raises(openai.APIError) as failed:  # noqa: PT012
            async for chunk in stream:
                pieces.append(chunk.choices[0].delta.content or "")
        with pytest.raises(openai.InternalServerError) as whole:
            await client.chat.completions.create(model=MODEL, messages=ASKED)
    assert "".join(pieces).startswith("It was")
    assert (failed.value.code, failed.value.message) == ("provider_failed", "Failed to generate response.")
    assert whole.value.code == "provider_failed"


@pytest.mark.contract("CH-01", part="the same question through OpenAI's client, with an API key")
async def test_a_question_through_this_door_is_kept_like_any_other(
    runtime: Runtime, member: Principal, asker: openai.AsyncOpenAI, project_id: ProjectId
) -> None:
    answer = await asker.chat.completions.create(model=MODEL, messages=ASKED)
    message_id = answer.id.removeprefix("chatcmpl-")
    async with runtime.db.transaction(member.tenant_id) as session:
        kept = await session.scalar(select(Message.body).where(Message.id == message_id))
        total = await session.scalar(select(func.count()).select_from(Message))
    assert kept == answer.choices[0].message.content
    assert total == 2


async def test_a_project_nobody_shared_is_no_model(
    runtime: Runtime, tenant: MadeTenant, asker: openai.AsyncOpenAI, stranger: Principal, project_id: ProjectId
) -> None:
    private = await make_project(runtime.db, tenant.admin, name="The board", is_private=True)
    foreign = await make_project(runtime.db, stranger, name="Elsewhere")
    assert [model.id async for model in asker.models.list()] == [MODEL, "minilm-l6-v2"]
    for name in ("pharos/the-board", f"pharos/{private}", f"pharos/{foreign}", "pharos/elsewhere", "gpt-4o", "lamp/x"):
        with pytest.raises(openai.NotFoundError) as unknown:
            await asker.chat.completions.create(model=name, messages=ASKED)
        assert unknown.value.code == "no_such_model"


async def test_two_projects_that_would_share_a_name_have_their_ids(
    runtime: Runtime, tenant: MadeTenant, asker: openai.AsyncOpenAI, project_id: ProjectId
) -> None:
    other = await make_project(runtime.db, tenant.admin, name="Light houses, Co.")
    listed = {model.id async for model in asker.models.list()}
    assert {f"pharos/{project_id}", f"pharos/{other}"} <= listed
    for name in (MODEL, "pharos"):
        with pytest.raises(openai.UnprocessableEntityError) as unclear:
            await asker.chat.completions.create(model=name, messages=ASKED)
        assert unclear.value.code == "project_required"


async def test_a_model_wished_for_by_name_is_not_replaced_in_silence(
    asker: openai.AsyncOpenAI, project_id: ProjectId
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:  # its client would try a 503 twice more
        await asker.chat.completions.create(model=f"{MODEL}@lamp/lamp-large", messages=ASKED)
    assert missing.value.code == "no_provider"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n": 2}, "unsupported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported"),
        ({"response_format": {"type": "json_object"}}, "unsupported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported",
        ),
        ({"messages": [*ASKED, {"role": "assistant", "content": "Well."}]}, "bad_question"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "bad_question"),
        ({"messages": []}, "invalid"),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_the_clients_own_shape(
    asker: openai.AsyncOpenAI, project_id: ProjectId, change: dict[str, Any], code: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await asker.chat.completions.create(**{"model": MODEL, "messages": ASKED, **change})
    assert refused.value.code == code
    assert refused.value.type == "invalid_request_error"


@pytest.mark.contract("ID-07", part="the scope of a key, at the door for OpenAI's clients")
@pytest.mark.contract("RL-02", part="questions through the door for OpenAI's clients")
async def test_a_key_needs_its_scope_and_ten_questions_a_minute_are_all(
    runtime: Runtime, member: Principal, project_id: ProjectId
) -> None:
    async with client_of(runtime, await make_key(runtime, member, scopes=["read"])) as reader:
        with pytest.raises(openai.PermissionDeniedError) as narrow:
            await reader.chat.completions.create(model=MODEL, messages=ASKED)
    assert narrow.value.code == "missing_scope"
    async with client_of(runtime, await make_key(runtime, member)) as client:
        for _ in range(10):
            with pytest.raises(openai.NotFoundError):  # a question counts whatever becomes of it
                await client.chat.completions.create(model="pharos/none", messages=ASKED)
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model=MODEL, messages=ASKED)
    assert limited.value.code == "rate_limited"
    assert int(limited.value.response.headers["retry-after"]) > 0


async def test_vectors_are_those_that_search_uses(runtime: Runtime, asker: openai.AsyncOpenAI) -> None:
    texts = ["one lamp", "two lamps"]
    wanted = await runtime.embedding.embed(texts)
    plain = await asker.embeddings.create(model="minilm-l6-v2", input=texts, encoding_format="float")
    packed = await asker.embeddings.create(model="minilm-l6-v2", input=texts)  # the client asks for base64 by itself
    for reply in (plain, packed):
        assert np.allclose([one.embedding for one in reply.data], wanted, atol=1e-6)
    alone = await asker.embeddings.create(model="minilm-l6-v2", input="one lamp", dimensions=384)
    assert alone.data[0].embedding == packed.data[0].embedding
    bad: list[dict[str, Any]] = [{"input": []}, {"input": ["x"] * 65}, {"input": [""]}, {"input": "x", "dimensions": 8}]
    for change in bad:
        with pytest.raises(openai.UnprocessableEntityError):
            await asker.embeddings.create(model="minilm-l6-v2", **change)
    with pytest.raises(openai.NotFoundError):
        await asker.embeddings.create(model="text-embedding-3-small", input="x")


async def test_vectors_of_a_providers_own_model_are_had_by_its_name_and_are_limited_like_questions(
    runtime: Runtime, tenant: MadeTenant, member: Principal
) -> None:
    world, texts, model = patient(runtime), ["one lamp", "two lamps"], "lamps/text-embedding-3-small"
    with provider_server() as provider:
        await make_provider(world, tenant.id, provider.openai_url, name="lamps", models=["text-embedding-3-small"])
        async with client_of(world, await make_key(runtime, member)) as client:
            plain = await client.embeddings.create(model=model, input=texts, encoding_format="float")
            packed = await client.embeddings.create(model=model, input=texts)
            short = await client.embeddings.create(model=model, input=texts, dimensions=12)
            provider.faults.extend(["wrong_dimension"] * 3)
            with pytest.raises(openai.InternalServerError) as bad:
                await client.embeddings.create(model=model, input=texts)
            for name, code in (("lamps/other", "no_provider"), ("nobody/lamp", "no_provider")):
                with pytest.raises(openai.NotFoundError) as unknown:
                    await client.embeddings.create(model=name, input=texts)
                assert unknown.value.code == code
            for _ in range(4):
                await client.embeddings.create(model="minilm-l6-v2", input="x")
            with pytest.raises(openai.RateLimitError):
                await client.embeddings.create(model="minilm-l6-v2", input="x")
        await world.models.close()
    assert (plain.model, plain.usage.prompt_tokens, len(plain.data)) == (model, 4, 2)
    assert len(plain.data[0].embedding) == provider.dimension
    assert packed.data[1].embedding == plain.data[1].embedding
    assert len(short.data[0].embedding) == 12
    assert bad.value.code == "provider_answer_bad"
    async with runtime.db.transaction(tenant.id) as session:
        paid = (await session.execute(select(LlmCall.purpose, LlmCall.status))).all()
    assert sorted(map(tuple, paid)) == [("embed", "ok")] * 3 + [("embed", "provider_answer_bad")] * 3


async def test_a_bearer_key_opens_this_door_only(
    client: httpx.AsyncClient, runtime: Runtime, member: Principal
) -> None:
    header = {"Authorization": f"Bearer {await make_key(runtime, member)}"}
    assert (await client.get("/v1/models", headers=header)).status_code == 200
    assert (await client.get("/projects", headers=header)).status_code == 401
    unknown = await client.get("/v1/nothing", headers=header)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert re.fullmatch(r"\w{24}", unknown.json()["error"]["requestId"])


async def test_an_answer_that_its_length_cut_says_so_and_is_asked_for_again(
    runtime: Runtime, tenant: MadeTenant, member: Principal, project_id: ProjectId
) -> None:
    world = patient(runtime)
    with provider_server() as short:
        short.always = "at_limit"
        await make_provider(world, tenant.id, short.openai_url, is_default=True)
        async with client_of(world, await make_key(runtime, member)) as client:
            whole = await client.chat.completions.create(model=MODEL, messages=ASKED)
            streamed = await client.chat.completions.create(model=MODEL, messages=ASKED, stream=True)
            ends = [chunk.choices[0].finish_reason async for chunk in streamed]
        await world.models.close()
    assert (whole.choices[0].finish_reason, ends[-1], set(ends[:-1])) == ("length", "length", {None})
    assert len(short.asked) == 2, "a cut answer was kept for an hour"
    assert whole.model_extra is not None
    async with open_client(world, member) as browser:
        page = await browser.get(f"/projects/{project_id}?conversation={whole.model_extra['conversation_id']}")
    assert "cut off before its end" in page.text


async def test_a_person_asks_with_an_access_token_too(as_member: httpx.AsyncClient, project_id: ProjectId) -> None:
    assert (await as_member.get(f"/v1/models/{MODEL}")).json()["name"] == NAME
    answer = await as_member.post("/v1/chat/completions", json={"model": MODEL, "messages": ASKED, "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.contract("LP-20", part="the answer says who had failed before")
async def test_an_answer_says_which_model_made_it_and_who_had_failed_before(
    runtime: Runtime, tenant: MadeTenant, member: Principal, project_id: ProjectId
) -> None:
    world = patient(runtime)
    with provider_server() as broken, provider_server() as good:
        broken.always = "failed"
        await make_provider(world, tenant.id, broken.openai_url, name="first", is_default=True)
        await make_provider(world, tenant.id, good.anthropic_url, name="second", kind="anthropic", models=["lamp"])
        async with client_of(world, await make_key(runtime, member)) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=ASKED)
        await world.models.close()
    assert answer.choices[0].message.content == "".join(good.words)
    assert answer.model_extra is not None
    made_by = answer.model_extra["made_by"]
    assert (made_by["provider"], made_by["model"], made_by["failed_over_from"]) == ("second", "lamp", ["first"])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(good.words)
