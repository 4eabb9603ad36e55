"""Asking over HTTP: a streamed turn for browsers, a whole answer for programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pharos.chat.answer import Event, begin_turn, gather_answer
from pharos.chat.history import AnswerCut, Turn
from pharos.chat.turns import Turns
from pharos.identity.current import CurrentAsker, CurrentPrincipal, CurrentRuntime
from pharos.identity.principal import Principal
from pharos.identity.request_limits import count_try
from pharos.infra.errors import Invalid
from pharos.infra.ids import ConversationId, ProjectId
from pharos.infra.limits import LLM
from pharos.infra.sse import STREAMED, Told, sse_response
from pharos.library.projects import list_projects
from pharos.runtime import Runtime

router = APIRouter(tags=["chat"])


def current_turns(request: Request) -> Turns:
    """The turns of this process."""
    turns: Turns = request.app.state.turns
    return turns


CurrentTurns = Annotated[Turns, Depends(current_turns)]


class Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Question(Body):
    question: Annotated[str, Field(min_length=1, max_length=4000)]
    conversation_id: UUID | None = None
    model: Annotated[
        str | None, Field(max_length=300, description="`provider/model` or a bare model; else the default.")
    ] = None


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


class MadeBy(Body):
    """The model that wrote an answer, and the providers that were asked before it and did not answer.

    `cut` where the answer ends before its end: at its length, by the vendor's filter, stopped, or after three minutes.
    """

    provider: str
    model: str
    failed_over_from: list[str]
    cut: AnswerCut | None


class Answer(Body):
    """`grounded` is false for an honest "not in these documents", and where no sentence is supported by the passages it
    cites; `confidence` falls with the share of sentences that are not. `degraded`: a part of the search did not answer.

    `unsupported` are the offsets in `answer` where sentences end that the passages they cite do not support; `madeBy`
    is null where no model wrote it.
    """

    answer: str
    sources: list[Source]
    grounded: bool
    confidence: float
    mode: str
    degraded: bool
    unsupported: list[int]
    made_by: MadeBy | None
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
async def ask(body: ProjectQuestion, principal: CurrentAsker, runtime: CurrentRuntime, turns: CurrentTurns) -> Answer:
    """The whole answer at once."""
    project_id = ProjectId(body.project_id) if body.project_id else await _only_project(runtime, principal)
    turn = await start_turn(runtime, principal, turns, project_id=project_id, body=body)
    told = turns.follow(runtime, principal.tenant_id, turn.message_id)
    return Answer.model_validate(asdict(await gather_answer(events_of(told))))


@router.post(
    "/chat/stream", dependencies=[Depends(count_question)], response_class=StreamingResponse, responses=STREAMED
)
async def ask_any_streamed(
    request: Request, body: ProjectQuestion, principal: CurrentAsker, runtime: CurrentRuntime, turns: CurrentTurns
) -> StreamingResponse:
    """As `POST /chat`, in events."""
    project_id = ProjectId(body.project_id) if body.project_id else await _only_project(runtime, principal)
    turn = await start_turn(runtime, principal, turns, project_id=project_id, body=body)
    return sse_response(request, turns.follow(runtime, principal.tenant_id, turn.message_id), turn_id=turn.message_id)


@router.post(
    "/chat/projects/{project_id}",
    dependencies=[Depends(count_question)],
    response_class=StreamingResponse,
    responses=STREAMED,
)
async def ask_streamed(
    *,
    request: Request,
    project_id: ProjectId,
    body: Question,
    principal: CurrentAsker,
    runtime: CurrentRuntime,
    turns: CurrentTurns,
) -> StreamingResponse:
    """The answer as numbered server-sent events; what forbids a turn is still an ordinary error.

    It goes on when the line is cut: `GET /chat/turns/{id}/events` with `Last-Event-ID` tells the rest.
    """
    turn = await start_turn(runtime, principal, turns, project_id=project_id, body=body)
    return sse_response(request, turns.follow(runtime, principal.tenant_id, turn.message_id), turn_id=turn.message_id)


async def start_turn(
    runtime: Runtime, principal: Principal, turns: Turns, *, project_id: ProjectId, body: Question
) -> Turn:
    """Begin to answer a question in this process."""
    turn = await begin_turn(
        runtime,
        principal,
        project_id=project_id,
        question=body.question,
        conversation_id=ConversationId(body.conversation_id) if body.conversation_id else None,
        wish=body.model,
        owner=turns.owner,
    )
    turns.start(runtime, principal, turn)
    return turn


async def events_of(told: AsyncIterator[Told | None]) -> AsyncIterator[Event]:
    """What was told, without its numbers."""
    async for event in told:
        if event is not None:
            yield Event(event.name, dict(event.data))  # type: ignore[arg-type]  # only turns tell here


async def _only_project(runtime: Runtime, principal: Principal) -> ProjectId:
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = [project for project in await list_projects(session, principal) if not project.is_handbook]
    if len(found) != 1:
        raise Invalid("Say which project to ask, as `projectId`; `GET /projects` lists them.", code="project_required")
    return found[0].id
