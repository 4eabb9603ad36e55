"""Asking over HTTP: a streamed turn for browsers, a whole answer for programs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pharos.chat.answer import Event, answer_question, gather_answer
from pharos.chat.answer_html import with_html
from pharos.identity.current import CurrentAsker, CurrentPrincipal, CurrentRuntime
from pharos.identity.principal import Principal
from pharos.identity.request_limits import count_try
from pharos.infra.errors import Invalid, PharosError
from pharos.infra.ids import ConversationId, ProjectId
from pharos.infra.limits import LLM
from pharos.infra.logs import get_logger
from pharos.library.projects import list_projects
from pharos.runtime import Runtime

log = get_logger(__name__)
router = APIRouter(tags=["chat"])

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Question(Body):
    question: Annotated[str, Field(min_length=1, max_length=4000)]
    conversation_id: UUID | None = None


class ProjectQuestion(Question):
    project_id: Annotated[UUID | None, Field(description="May be left out when the caller has exactly one.")] = None


class Source(Body):
    """`text` is exactly characters `start` to `end` of the document's text; `index` is its number in the answer."""

    index: int
    document_id: UUID
    document: str
    page: int | None
    start: int
    end: int
    text: str
    score: float


class Answer(Body):
    """`grounded` is false for an honest "not in these documents"; `degraded`: a part of the search did not answer."""

    answer: str
    sources: list[Source]
    grounded: bool
    confidence: float
    mode: str
    degraded: bool
    conversation_id: UUID


class ChatConfig(Body):
    """Which ways of answering there are."""

    docs: bool
    web: bool
    deep: bool


async def count_question(request: Request, principal: CurrentAsker, runtime: CurrentRuntime) -> None:
    """Ten questions a minute (RL-02), answered by a model or extracted: both work with the models of this machine."""
    await count_try(request, runtime, LLM, principal)


@router.get("/chat/config")
async def chat_config(_principal: CurrentPrincipal) -> ChatConfig:
    """Answers come from the documents; the web is never asked."""
    return ChatConfig(docs=True, web=False, deep=False)


@router.post("/chat", dependencies=[Depends(count_question)])
async def ask(body: ProjectQuestion, principal: CurrentAsker, runtime: CurrentRuntime) -> Answer:
    """The whole answer at once."""
    project_id = ProjectId(body.project_id) if body.project_id else await _only_project(runtime, principal)
    answer = await gather_answer(_turn(runtime, principal, project_id, body))
    return Answer.model_validate(asdict(answer))


@router.post(
    "/chat/projects/{project_id}",
    dependencies=[Depends(count_question)],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "meta, sources, text…, done or error"}},
)
async def ask_streamed(
    project_id: ProjectId, body: Question, principal: CurrentAsker, runtime: CurrentRuntime
) -> StreamingResponse:
    """The answer as server-sent events; what forbids a turn is still an ordinary error."""
    events = with_html(_turn(runtime, principal, project_id, body), project_id=project_id)
    first = await anext(events)
    return StreamingResponse(_as_sse(first, events), media_type="text/event-stream", headers=STREAM_HEADERS)


def _turn(runtime: Runtime, principal: Principal, project_id: ProjectId, body: Question) -> AsyncIterator[Event]:
    conversation_id = ConversationId(body.conversation_id) if body.conversation_id else None
    return answer_question(
        runtime, principal, project_id=project_id, question=body.question, conversation_id=conversation_id
    )


async def _only_project(runtime: Runtime, principal: Principal) -> ProjectId:
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = [project for project in await list_projects(session, principal) if not project.is_handbook]
    if len(found) != 1:
        raise Invalid("Say which project to ask, as `projectId`; `GET /projects` lists them.", code="project_required")
    return found[0].id


async def _as_sse(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[str]:
    yield _sse(first)
    try:
        async with aclosing(rest) as events:  # type: ignore[type-var]
            async for event in events:
                yield _sse(event)
    except PharosError as error:
        yield _sse(Event("error", {"error": error.code, "message": error.message}))
    except Exception as error:
        log.exception("turn.failed", error=type(error).__name__)
        yield _sse(Event("error", {"error": "internal", "message": "Something went wrong here. Ask again."}))


def _sse(event: Event) -> str:
    return f"event: {event.name}\ndata: {json.dumps(event.data, ensure_ascii=False, default=str)}\n\n"
