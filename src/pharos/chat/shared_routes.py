"""Sharing a conversation over HTTP: a member asks for it; a guest with the link reads it and asks on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, Field

from pharos.access.shares import MAX_MESSAGE_CHARACTERS
from pharos.chat.answer import gather_answer
from pharos.chat.models import Message
from pharos.chat.routes import Answer, Body, CurrentTurns, Source, events_of
from pharos.chat.shared import SharedConversation, begin_shared, find_shared_turn, read_shared, request_share
from pharos.chat.turn_rows import ask_to_stop
from pharos.chat.turns import Turns
from pharos.identity.current import CurrentPerson, CurrentRuntime
from pharos.infra.http import client_ip
from pharos.infra.ids import ConversationId, MessageId
from pharos.infra.sse import STREAMED, Told, last_event_id, sse_response
from pharos.runtime import Runtime

router = APIRouter(tags=["shares"])


class NewShareRequest(Body):
    message: Annotated[str, Field(max_length=MAX_MESSAGE_CHARACTERS, description="Why, for who decides.")] = ""


class GuestQuestion(Body):
    """`conversationId` names the guest's own follow-ups; the model is not theirs to choose."""

    question: Annotated[str, Field(min_length=1, max_length=4000)]
    conversation_id: UUID | None = None


class MadeShareRequest(Body):
    id: UUID
    state: str


class SharedMessage(Body):
    role: str
    body: str
    sources: list[Source]
    created_at: AwareDatetime


class Shared(Body):
    """`messages` up to the approval; `branch`: what the guest asked since in the conversation they named."""

    title: str
    expires_at: AwareDatetime
    messages: list[SharedMessage]
    branch: list[SharedMessage]


@router.post("/conversations/{conversation_id}/share-requests", status_code=201)
async def ask_for_share(
    conversation_id: ConversationId, body: NewShareRequest, principal: CurrentPerson, runtime: CurrentRuntime
) -> MadeShareRequest:
    """Ask that one's own conversation may be read by somebody without an account; an administrator decides."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        made = await request_share(session, principal, conversation_id=conversation_id, message=body.message)
    return MadeShareRequest(id=made.id, state="pending")


@router.get("/api/v1/share/{token}")
async def read_share(
    token: str, request: Request, runtime: CurrentRuntime, conversation_id: UUID | None = None
) -> Shared:
    """The conversation behind a link; `conversation_id` names the guest's own follow-ups, if there are any."""
    branch_id = ConversationId(conversation_id) if conversation_id else None
    shared = await read_shared(runtime, token, ip=client_ip(request, runtime.settings), branch_id=branch_id)
    return Shared(
        title=shared.title,
        expires_at=shared.expires_at,
        messages=[_message(shared, message) for message in shared.messages],
        branch=[_message(shared, message) for message in shared.branch],
    )


@router.post("/api/v1/share/{token}/questions")
async def ask_on(
    token: str, body: GuestQuestion, request: Request, runtime: CurrentRuntime, turns: CurrentTurns
) -> Answer:
    """A guest's follow-up in the shared conversation's project; its `conversationId` is theirs to go on with."""
    _, told = await _ask(request, runtime, turns, token, body)
    events = events_of(told)
    return Answer.model_validate(asdict(await gather_answer(events)))


@router.post("/api/v1/share/{token}/stream", response_class=StreamingResponse, responses=STREAMED)
async def ask_on_streamed(
    token: str, body: GuestQuestion, request: Request, runtime: CurrentRuntime, turns: CurrentTurns
) -> StreamingResponse:
    """The same in events, as `POST /chat/stream`."""
    turn_id, told = await _ask(request, runtime, turns, token, body)
    return sse_response(request, told, turn_id=turn_id)


@router.get("/api/v1/share/{token}/turns/{turn_id}/events", response_class=StreamingResponse, responses=STREAMED)
async def follow_guests_turn(
    token: str, turn_id: MessageId, request: Request, runtime: CurrentRuntime, turns: CurrentTurns
) -> StreamingResponse:
    """What a guest's own turn tells after the event that `Last-Event-ID` names."""
    guest = await find_shared_turn(runtime, token, ip=client_ip(request, runtime.settings), turn_id=turn_id)
    told = turns.follow(runtime, guest.tenant_id, turn_id, after=last_event_id(request))
    return sse_response(request, told, turn_id=turn_id)


@router.post("/api/v1/share/{token}/turns/{turn_id}/stop", status_code=204)
async def stop_guests_turn(
    token: str, turn_id: MessageId, request: Request, runtime: CurrentRuntime, turns: CurrentTurns
) -> None:
    """Ask no more of the model; what it has said becomes the answer."""
    guest = await find_shared_turn(runtime, token, ip=client_ip(request, runtime.settings), turn_id=turn_id)
    async with runtime.db.transaction(guest.tenant_id) as session:
        await ask_to_stop(session, turn_id)
    turns.stop(turn_id)


async def _ask(
    request: Request, runtime: Runtime, turns: Turns, token: str, body: GuestQuestion
) -> tuple[MessageId, AsyncIterator[Told | None]]:
    guest, turn = await begin_shared(
        runtime,
        token,
        ip=client_ip(request, runtime.settings),
        question=body.question,
        owner=turns.owner,
        branch_id=ConversationId(body.conversation_id) if body.conversation_id else None,
    )
    turns.start(runtime, guest, turn)
    return turn.message_id, turns.follow(runtime, guest.tenant_id, turn.message_id)


def _message(shared: SharedConversation, message: Message) -> SharedMessage:
    sources = shared.sources.get(MessageId(message.id), [])
    return SharedMessage(
        role=message.role,
        body=message.body,
        sources=[Source.model_validate(asdict(source)) for source in sources],
        created_at=message.created_at,
    )
