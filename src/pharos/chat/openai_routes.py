"""The door for programs made for OpenAI: the same questions, limits and access rules, in that company's format."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from pharos.chat.answer import begin_turn, gather_answer
from pharos.chat.failures import failure_of
from pharos.chat.history import Turn
from pharos.chat.openai_format import (
    END,
    Completion,
    chunk,
    completion,
    error_line,
    read_conversation,
    usage_chunk,
    vectors_reply,
)
from pharos.chat.routes import CurrentTurns, events_of
from pharos.identity.current import CurrentClient, CurrentRuntime
from pharos.identity.principal import Principal
from pharos.identity.request_limits import count_try
from pharos.infra.errors import Invalid, NotFound, Unavailable
from pharos.infra.http import request_id_of
from pharos.infra.ids import ProjectId
from pharos.infra.limits import LLM
from pharos.infra.metrics import STREAMS_ACTIVE
from pharos.infra.sse import HEADERS, Told
from pharos.library.projects import ProjectView, list_projects
from pharos.providers.contract import Call, VectorRequest
from pharos.providers.spend import estimate_prompt
from pharos.runtime import Runtime

router = APIRouter(prefix="/v1", tags=["openai"])

OWNER = "pharos"
MAX_TEXTS = 64
"""What the embedder takes at once, a second and a half of work."""


class ModelOut(BaseModel):
    """A project that can be asked, or the model that makes vectors; `name` is for people."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = OWNER
    name: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


class Texts(BaseModel):
    """`model`: search's own, or `PROVIDER/MODEL`. What is longer than search's reads (256 tokens) is cut, as there."""

    model: Annotated[str, Field(max_length=400)]
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=10_000)] | None = None


@router.get("/models")
async def list_models(client: CurrentClient, runtime: CurrentRuntime) -> ModelList:
    """The projects the caller may ask, each as a model, and the model of `/v1/embeddings`."""
    projects = await _projects(runtime, client)
    listed = [
        ModelOut(id=f"{OWNER}/{slug}", created=int(project.created_at.timestamp()), name=project.name)
        for slug, project in projects.items()
    ]
    vectors = ModelOut(id=runtime.embedding.name, created=0, name="Vectors of texts")
    return ModelList(data=[*listed, vectors])


@router.get("/models/{model:path}")
async def get_model(model: str, client: CurrentClient, runtime: CurrentRuntime) -> ModelOut:
    """One of them."""
    listed = (await list_models(client, runtime)).data
    if (found := next((one for one in listed if one.id == model), None)) is None:
        raise _no_such_model()
    return found


@router.post("/chat/completions")
async def complete(
    request: Request, body: Completion, client: CurrentClient, runtime: CurrentRuntime, turns: CurrentTurns
) -> Response:
    """An answer of a project, whole or in pieces; its `citations` stand beside OpenAI's own fields."""
    await count_try(request, runtime, LLM, client)
    question, earlier = read_conversation(body)
    project_id, wish = await _find_project(runtime, client, body.model)
    turn = await begin_turn(
        runtime, client, project_id=project_id, question=question, earlier=earlier, wish=wish, owner=turns.owner
    )
    turns.start(runtime, client, turn)
    told = turns.follow(runtime, client.tenant_id, turn.message_id)
    if not body.stream:
        facts = asdict(await gather_answer(events_of(told)))
        beside = _facts(facts) | {"usage": _usage(facts["made_by"])}
        return JSONResponse(completion(body.model, str(turn.message_id), facts["answer"], beside))
    lines = _lines(told, turn, body, request_id=request_id_of(request))
    return StreamingResponse(lines, media_type="text/event-stream", headers=HEADERS)


@router.post("/embeddings")
async def embed(request: Request, body: Texts, client: CurrentClient, runtime: CurrentRuntime) -> Response:
    """Vectors of the model that search uses, or of a provider's own; they count as a question does."""
    await count_try(request, runtime, LLM, client)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(texts) <= MAX_TEXTS or not all(texts):
        raise Invalid(f"Send 1 to {MAX_TEXTS} texts, none of them empty.", code="bad_input")
    asked = VectorRequest(tuple(texts), body.dimensions)
    rows: Any
    if body.model == runtime.embedding.name:
        rows, usage = await _own_vectors(runtime, asked), estimate_prompt(texts)
    elif "/" in body.model:
        call = Call(purpose="embed")
        candidates = await runtime.models.resolve(client.tenant_id, body.model)
        rows = await runtime.models.embed(client.tenant_id, candidates, asked, call)
        usage = call.usage or estimate_prompt(texts)
    else:
        raise _no_such_model()
    is_packed = body.encoding_format == "base64"
    packed = [base64.b64encode(row).decode() if is_packed else row.tolist() for row in rows.astype("<f4")]
    return JSONResponse(vectors_reply(body.model, packed, tokens=usage.prompt_tokens))


async def _own_vectors(runtime: Runtime, asked: VectorRequest) -> Any:
    model = runtime.embedding
    if asked.dimension not in {None, model.dimension}:
        raise Invalid(f"The vectors have {model.dimension} numbers. Leave `dimensions` out.", code="unsupported")
    rows = await model.embed(asked.texts)
    if rows.shape != (len(asked.texts), model.dimension):
        raise Unavailable("The embedder answers with another number of vectors. `pharos doctor` says more.")
    return rows


async def _lines(
    told: AsyncIterator[Told | None], turn: Turn, body: Completion, *, request_id: str
) -> AsyncIterator[str]:
    """The turn as OpenAI streams it; a client that leaves ends the listening, not the turn."""
    message_id, facts = str(turn.message_id), dict[str, Any]()
    with STREAMS_ACTIVE.labels("/v1/chat/completions").track_inprogress():
        yield chunk(body.model, message_id, {"role": "assistant", "content": ""})
        async with aclosing(told) as events:  # type: ignore[type-var]  # what `follow` gives is a generator
            async for event in events:
                if event is None:
                    yield ": here\n\n"
                elif event.name == "text":
                    yield chunk(body.model, message_id, {"content": str(event.data["delta"])})
                elif event.name == "error":
                    yield error_line(failure_of(event.data), request_id=request_id)
                    return
                else:
                    facts |= event.data
        yield chunk(body.model, message_id, {}, facts=_facts(facts))
        if body.stream_options is not None and body.stream_options.include_usage:
            yield usage_chunk(body.model, message_id, _usage(facts.get("made_by")))
        yield END


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside OpenAI's fields, of what a turn tells and of a gathered answer alike."""
    facts = {
        name: told.get(name)
        for name in ("grounded", "confidence", "mode", "degraded", "unsupported", "conversation_id", "made_by")
    }
    return {"citations": told.get("sources", []), **facts}


def _usage(made_by: Mapping[str, Any] | None) -> dict[str, int] | None:
    """The tokens the model took for this answer; none where no model was asked."""
    if made_by is None or made_by["usage"] is None:
        return None
    prompt, answer = made_by["usage"]["prompt_tokens"], made_by["usage"]["completion_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def _find_project(runtime: Runtime, client: Principal, model: str) -> tuple[ProjectId, str | None]:
    """The project and the wish that a name means. Raises `NotFound`, and `Invalid` where it fits several."""
    name, _, wish = model.partition("@")
    owner, _, slug = name.partition("/")
    projects = await _projects(runtime, client) if owner == OWNER else {}
    if slug:
        found = [one for key, one in projects.items() if slug.lower() in {key, str(one.id)}]
    else:
        found = [one for one in projects.values() if not one.is_handbook]
    if slug and not found and any(slug_of(one.name) == slug.lower() for one in projects.values()):
        raise Invalid("Several projects have this name. Take the id from `GET /v1/models`.", code="project_required")
    if not slug and len(found) > 1:
        raise Invalid("Say which project to ask, as `pharos/PROJECT`.", code="project_required")
    if not found:
        raise _no_such_model()
    return found[0].id, wish or None


async def _projects(runtime: Runtime, client: Principal) -> dict[str, ProjectView]:
    """What the caller may ask, by the name it has here: its id where two would have the same one."""
    async with runtime.db.transaction(client.tenant_id) as session:
        projects = await list_projects(session, client)
    times = Counter(slug_of(project.name) for project in projects)
    return {
        slug if times[slug := slug_of(project.name)] == 1 and slug else str(project.id): project for project in projects
    }


def slug_of(name: str) -> str:
    """A project's name as a part of a model's name.

    >>> slug_of("Field Notes & Öl")
    'field-notes-öl'
    """
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")


def _no_such_model() -> NotFound:
    return NotFound("There is no such model here. `GET /v1/models` lists those you may use.", code="no_such_model")
