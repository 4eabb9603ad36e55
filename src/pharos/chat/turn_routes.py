"""Turns over HTTP: follow one from where the line was cut, stop it, answer its question anew."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from pharos.chat.history import reopen_turn
from pharos.chat.routes import CurrentTurns, count_question
from pharos.chat.turn_rows import ask_to_stop, get_turn, interrupt_lost_turns
from pharos.identity.current import CurrentAsker, CurrentRuntime
from pharos.infra.ids import MessageId
from pharos.infra.sse import STREAMED, last_event_id, sse_response

router = APIRouter(tags=["chat"], prefix="/chat/turns/{turn_id}")


@router.get("/events", response_class=StreamingResponse, responses=STREAMED)
async def follow_turn(
    request: Request, turn_id: MessageId, principal: CurrentAsker, runtime: CurrentRuntime, turns: CurrentTurns
) -> StreamingResponse:
    """What a turn tells after the event that `Last-Event-ID` names, or from its beginning.

    An answer older than an hour is told as a whole, in its `done`.
    """
    async with runtime.db.transaction(principal.tenant_id) as session:
        await get_turn(session, principal, turn_id=turn_id)
    told = turns.follow(runtime, principal.tenant_id, turn_id, after=last_event_id(request))
    return sse_response(request, told, turn_id=turn_id)


@router.post("/stop", status_code=204)
async def stop_turn(turn_id: MessageId, principal: CurrentAsker, runtime: CurrentRuntime, turns: CurrentTurns) -> None:
    """Ask no more of the model; what it has said becomes the answer. Nothing changes for a turn that has ended."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await get_turn(session, principal, turn_id=turn_id)
        await ask_to_stop(session, turn_id)
    turns.stop(turn_id)


@router.post(
    "/regenerate", dependencies=[Depends(count_question)], response_class=StreamingResponse, responses=STREAMED
)
async def answer_anew(
    request: Request, turn_id: MessageId, principal: CurrentAsker, runtime: CurrentRuntime, turns: CurrentTurns
) -> StreamingResponse:
    """A new answer to the last question of a conversation, in the events of `POST /chat/stream`.

    The answer that is there stays until the new one is.
    """
    async with runtime.db.transaction(principal.tenant_id) as session:
        await interrupt_lost_turns(session)
        old = await get_turn(session, principal, turn_id=turn_id)
        turn = await reopen_turn(
            session,
            principal,
            conversation_id=old.conversation_id,
            question_id=old.question_id,
            wish=old.wish,
            owner=turns.owner,
        )
    turns.start(runtime, principal, turn)
    return sse_response(request, turns.follow(runtime, principal.tenant_id, turn.message_id), turn_id=turn.message_id)
