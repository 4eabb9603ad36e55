"""Turns as rows: begun, told in numbered events, ended once; whoever follows one reads it here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.chat.history import get_conversation
from pharos.chat.models import Conversation, Message, TurnEvent, TurnRow
from pharos.identity.principal import Principal
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.ids import ConversationId, MessageId, ProjectId, TenantId

TurnState = Literal["running", "done", "failed", "stopped", "interrupted"]

HEARTBEAT_SECONDS = 2.0
LEASE_SECONDS = 10.0
"""A turn whose owner was silent for this long has lost it. Five heartbeats: one lost to a busy machine is no death."""
EVENTS_KEPT_SECONDS = 3600
EVENTS_READ = 500
CHANNEL = "pharos_turns"
STOP = "stop:"
"""Before the id of a turn in a hint that somebody wants it to stop; without it, that it told something."""
TERMINAL = ("done", "error")
"""Events after which a turn tells nothing more."""
NOTHING_SAID = {"text": "", "html": "", "grounded": False, "confidence": 0.0, "unsupported": []}
"""The `done` of a turn that was stopped before its first word."""

NO_TURN = NotFound("There is no such answer in your conversations. Ask again.", code="no_such_turn")


@dataclass(frozen=True)
class ToldEvent:
    """An event of a turn as it was stored; `seq` counts from 1."""

    turn_id: UUID
    seq: int
    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class TurnView:
    """A turn. `question_id` names the message that asks, `wish` the model it named; `is_guests`: asked by a guest of a
    share link."""

    id: MessageId
    conversation_id: ConversationId
    project_id: ProjectId
    question_id: MessageId
    question: str
    state: TurnState
    wish: str | None
    is_guests: bool


ADD_EVENTS = text(
    """
    insert into turn_events (tenant_id, turn_id, seq, name, data)
    select :tenant_id, told.turn_id, told.seq, told.name, told.data
    from jsonb_to_recordset(cast(:told as jsonb)) as told(turn_id uuid, seq int, name text, data jsonb)
    join turns on turns.id = told.turn_id and turns.state = 'running'
    on conflict do nothing
    """
)
# The message is the truth: a turn whose answer is stored has ended, whatever became of its owner.
INTERRUPT = text(
    """
    update turns set ended_at = now(),
        state = case when exists (select from messages where messages.id = turns.id) then 'done' else 'interrupted' end
    where state = 'running' and heartbeat_at < now() - make_interval(secs => :seconds)
    returning id
    """
)
FORGET_EVENTS = text(
    """
    delete from turn_events using turns
    where turns.id = turn_events.turn_id and turns.ended_at < now() - make_interval(secs => :seconds)
    """
)
NOTIFY = text("select pg_notify(:channel, payload) from unnest(cast(:payloads as text[])) as payload")
TURNS_A_NOTICE = 200
"""Of 37 characters each: a payload has less than 8,000. A notice for each would wake every process 2,000 times a
second."""


async def add_events(session: AsyncSession, tenant_id: TenantId, events: Sequence[ToldEvent]) -> None:
    """Store what turns have told, as far as they are still running; storing the same again changes nothing."""
    if not events:
        return
    told = json.dumps([vars(event) for event in events], ensure_ascii=False, default=str)
    await session.execute(ADD_EVENTS, {"tenant_id": tenant_id, "told": told})
    await announce(session, {event.turn_id for event in events})


async def announce(session: AsyncSession, turn_ids: set[UUID]) -> None:
    """Hint to every web process, at the commit, that something became of these turns: their ids and blanks."""
    ids = [str(each) for each in turn_ids]
    payloads = [" ".join(ids[at : at + TURNS_A_NOTICE]) for at in range(0, len(ids), TURNS_A_NOTICE)]
    await session.execute(NOTIFY, {"channel": CHANNEL, "payloads": payloads})


async def beat(session: AsyncSession, turn_ids: Sequence[UUID]) -> dict[UUID, bool]:
    """Say that their owner lives; the turns that still run, and whether somebody wants each to stop."""
    alive = (
        update(TurnRow)
        .where(TurnRow.id.in_(turn_ids), TurnRow.state == "running")
        .values(heartbeat_at=func.now())
        .returning(TurnRow.id, TurnRow.is_stop_asked)
    )
    return {row.id: row.is_stop_asked for row in await session.execute(alive)}


async def end_turn(session: AsyncSession, turn_id: UUID, *, state: TurnState) -> bool:
    """End a turn that runs. False when it had ended in this very way; `Conflict` when it ended in another.

    The second is a fence: an owner that was thought dead must not add its answer to what people were told.
    """
    ended = (
        update(TurnRow)
        .where(TurnRow.id == turn_id, TurnRow.state == "running")
        .values(state=state, ended_at=func.now())
        .returning(TurnRow.id)
    )
    if (await session.execute(ended)).scalar_one_or_none() is not None:
        return True
    found = (await session.execute(select(TurnRow.state).where(TurnRow.id == turn_id))).scalar_one_or_none()
    if found != state:
        raise Conflict("This answer was interrupted. Ask again.", code="interrupted")
    return False


async def interrupt_lost_turns(session: AsyncSession, *, lease_seconds: float = LEASE_SECONDS) -> int:
    """Mark the turns of the tenant whose owner is dead as interrupted; returns how many."""
    lost = {row.id for row in await session.execute(INTERRUPT, {"seconds": lease_seconds})}
    if lost:
        await announce(session, lost)
    return len(lost)


async def forget_events(session: AsyncSession) -> None:
    """Delete the events of turns that ended an hour ago: the message is what stays."""
    await session.execute(FORGET_EVENTS, {"seconds": EVENTS_KEPT_SECONDS})


async def get_turn(session: AsyncSession, principal: Principal, *, turn_id: MessageId) -> TurnView:
    """A turn of one's own conversations. Raises `NotFound` for anybody else's."""
    view = await view_turn(session, turn_id)
    try:
        await get_conversation(session, principal, conversation_id=view.conversation_id)
    except NotFound as error:
        raise NO_TURN from error
    return view


async def view_turn(session: AsyncSession, turn_id: MessageId) -> TurnView:
    """A turn of the tenant, whoever asked; for who was let in already."""
    row = (await session.execute(_views().where(TurnRow.id == turn_id))).one_or_none()
    if row is None:
        raise NO_TURN
    return _view(row)


async def list_open_turns(session: AsyncSession, *, conversation_id: ConversationId) -> list[TurnView]:
    """The turns of a conversation that left no answer, or none yet: running, failed, stopped, interrupted."""
    answered = select(Message.id).where(Message.conversation_id == conversation_id)
    rows = await session.execute(
        _views().where(TurnRow.conversation_id == conversation_id, TurnRow.id.not_in(answered)).order_by(TurnRow.id)
    )
    return [_view(row) for row in rows]


async def ask_to_stop(session: AsyncSession, turn_id: MessageId) -> None:
    """Let the owner of a running turn know, whichever process it is, that nobody wants the rest.

    The hint spares it what the model says until its next heartbeat.
    """
    asked = update(TurnRow).where(TurnRow.id == turn_id, TurnRow.state == "running").values(is_stop_asked=True)
    await session.execute(asked)
    await session.execute(NOTIFY, {"channel": CHANNEL, "payloads": [f"{STOP}{turn_id}"]})


async def read_events(session: AsyncSession, turn_id: MessageId, *, after: int) -> list[ToldEvent]:
    """The next events of a turn, at most `EVENTS_READ`."""
    found = await session.execute(
        select(TurnEvent)
        .where(TurnEvent.turn_id == turn_id, TurnEvent.seq > after)
        .order_by(TurnEvent.seq)
        .limit(EVENTS_READ)
    )
    return [ToldEvent(row.turn_id, row.seq, row.name, row.data) for row in found.scalars()]


def _views() -> Select[*tuple[Any, ...]]:
    return (
        select(
            TurnRow.id,
            TurnRow.conversation_id,
            TurnRow.question_id,
            TurnRow.state,
            TurnRow.wish,
            Conversation.project_id,
            Conversation.share_token_id,
            Message.body,
        )
        .join(Conversation, Conversation.id == TurnRow.conversation_id)
        .join(Message, Message.id == TurnRow.question_id)
    )


def _view(row: Any) -> TurnView:
    return TurnView(
        id=MessageId(row.id),
        conversation_id=ConversationId(row.conversation_id),
        project_id=ProjectId(row.project_id),
        question_id=MessageId(row.question_id),
        question=row.body,
        state=row.state,
        wish=row.wish,
        is_guests=row.share_token_id is not None,
    )
