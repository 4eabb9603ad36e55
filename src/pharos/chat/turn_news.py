"""Turns of other web processes, as their rows tell them: polled, and sooner when the database hints at news.

The row is the truth. A hint comes over the process's line to the database; when that is lost, followers read a little
later and miss nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from pharos.chat.answer_html import answer_html
from pharos.chat.history import Source, list_sources
from pharos.chat.models import Message
from pharos.chat.turn_rows import (
    NOTHING_SAID,
    TERMINAL,
    ToldEvent,
    TurnView,
    interrupt_lost_turns,
    read_events,
    view_turn,
)
from pharos.infra.ids import MessageId, TenantId
from pharos.infra.sse import Told
from pharos.runtime import Runtime

POLL_SECONDS = 0.5
SIGN_OF_LIFE_SECONDS = 15.0
LOOK_FOR_LOST_SECONDS = 2.0


class TurnNews:
    """What followers of other processes' turns wait for."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Event] = {}

    def hear(self, payload: str) -> None:
        """Something became of the turns with these ids."""
        for turn_id in payload.split():
            if (news := self._waiting.pop(turn_id, None)) is not None:
                news.set()

    async def follow(
        self, runtime: Runtime, tenant_id: TenantId, turn_id: MessageId, after: int
    ) -> AsyncIterator[Told | None]:
        """The events of a turn after number `after`, to its end; None is a sign of life."""
        at, alive_at, looked_at = after, time.monotonic(), 0.0
        try:
            while True:
                news = self._waiting.setdefault(str(turn_id), asyncio.Event())
                looks = time.monotonic() - looked_at >= LOOK_FOR_LOST_SECONDS
                looked_at = time.monotonic() if looks else looked_at
                view, events = await _read(runtime, tenant_id, turn_id, after=at, looks_for_lost=looks)
                for event in events:
                    at, alive_at = event.seq, time.monotonic()
                    yield Told(event.seq, event.name, event.data)
                if events:
                    if events[-1].name in TERMINAL:
                        return
                    continue
                if view.state != "running":
                    for told in await _tell_end(runtime, tenant_id, view, after=at):
                        yield told
                    return
                if time.monotonic() - alive_at >= SIGN_OF_LIFE_SECONDS:
                    alive_at = time.monotonic()
                    yield None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await news.wait()
        finally:
            self._waiting.pop(str(turn_id), None)


async def _read(
    runtime: Runtime, tenant_id: TenantId, turn_id: MessageId, *, after: int, looks_for_lost: bool
) -> tuple[TurnView, list[ToldEvent]]:
    async with runtime.db.transaction(tenant_id) as session:
        if looks_for_lost:
            await interrupt_lost_turns(session)
        # In this order: an ended turn has no events that a later statement would not see.
        view = await view_turn(session, turn_id)
        return view, await read_events(session, turn_id, after=after)


async def _tell_end(runtime: Runtime, tenant_id: TenantId, view: TurnView, *, after: int) -> list[Told]:
    """What an ended turn tells when its events are gone, or its owner died before it told an end."""
    if view.state == "interrupted":
        return [_error(after + 1, "interrupted", "This answer was interrupted. Ask again.")]
    async with runtime.db.transaction(tenant_id) as session:
        message = await session.get(Message, (tenant_id, view.id))
        sources = (await list_sources(session, conversation_id=view.conversation_id)).get(view.id, [])
    if message is None and view.state == "failed":
        return [_error(after + 1, "provider_failed", "Failed to generate response.")]
    return [Told(after + place, name, data) for place, (name, data) in enumerate(_parts(view, message, sources), 1)]


def _error(seq: int, code: str, words: str) -> Told:
    return Told(seq, "error", {"error": code, "message": words})


def _parts(view: TurnView, message: Message | None, sources: list[Source]) -> list[tuple[str, dict[str, Any]]]:
    """An answer from its row: its end carries all of its text."""
    stopped = view.state == "stopped"
    if message is None:
        return [("done", {**NOTHING_SAID, "stopped": stopped})]
    meta: dict[str, Any] = {
        "conversation_id": str(view.conversation_id),
        "message_id": str(view.id),
        "mode": message.mode,
        "degraded": bool(message.degraded),
    }
    project_id = None if view.is_guests else view.project_id
    html = answer_html(
        message.body, mode=message.mode, project_id=project_id, sources=sources, unsupported=message.unsupported
    )
    done: dict[str, Any] = {
        "grounded": message.grounded,
        "confidence": message.confidence,
        "text": message.body,
        "html": html,
        "unsupported": message.unsupported,
        "stopped": stopped,
    }
    told: dict[str, Any] = {"sources": [vars(source) for source in sources]}
    if message.made_by is not None:
        told["made_by"] = {**message.made_by, "usage": None}
    return [("meta", meta), ("sources", told), ("done", done)]
