"""Answers in the making: tasks of the web process that began them, followed by whoever listens, from any process.

A turn does not end when its listener leaves. What it tells is stored at most every 100 ms and then read by other web
processes; in its own it is passed on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from pharos.chat.answer import Event, Stop, answer_turn, done_event
from pharos.chat.answer_html import answer_html
from pharos.chat.failures import told_failure
from pharos.chat.history import Draft, Turn, close_turn
from pharos.chat.turn_news import TurnNews
from pharos.chat.turn_rows import (
    HEARTBEAT_SECONDS,
    NOTHING_SAID,
    STOP,
    ToldEvent,
    TurnState,
    add_events,
    beat,
    end_turn,
)
from pharos.identity.principal import Principal
from pharos.infra.database_errors import as_pharos_error
from pharos.infra.errors import Conflict, PharosError, Unavailable
from pharos.infra.ids import MessageId, TenantId, new_id
from pharos.infra.logs import get_logger
from pharos.infra.metrics import TURNS_ENDED, TURNS_RUNNING
from pharos.infra.sse import Told
from pharos.runtime import Runtime

log = get_logger(__name__)

WRITE_EVERY_SECONDS = 0.1
SIGN_OF_LIFE_SECONDS = 15.0
STORE_AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Pauses between the tries to store an end: as long as a lease, after which the turn counts as interrupted."""

FAILED = Event("error", {"error": "internal", "message": "Something went wrong here. Ask again."})
INTERRUPTED = Event("error", {"error": "interrupted", "message": "This answer was interrupted. Ask again."})
NOT_STORED = Event("error", {"error": "not_stored", "message": "The answer could not be stored. Ask again."})


@dataclass(eq=False)
class Running:
    """A turn of this process. Event number n is `told[n - 1]`, and the first `stored` of them are in the database."""

    principal: Principal
    turn: Turn
    told: list[Event] = field(default_factory=list)
    stored: int = 0
    is_ending: bool = False
    is_over: bool = False
    listeners: set[asyncio.Future[bool]] = field(default_factory=set)
    stop: Stop = field(default_factory=Stop)

    def tell(self, event: Event) -> None:
        """Pass an event on to everybody who listens here."""
        self.told.append(event)
        self.wake()

    def wake(self) -> None:
        """Let everybody who listens here look again."""
        for listener in self.listeners:
            _settle(listener, True)

    async def news(self) -> bool:
        """Wait for what is told next; False when nothing was for as long as a sign of life is due.

        Of futures and a timer by hand: `asyncio.timeout` and an event cost several times as much at each word.
        """
        loop = asyncio.get_running_loop()
        listener: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(SIGN_OF_LIFE_SECONDS, _settle, listener, False)
        self.listeners.add(listener)
        try:
            return await listener
        finally:
            self.listeners.discard(listener)
            timer.cancel()

    def unstored(self) -> list[ToldEvent]:
        """What the database does not know yet."""
        news = self.told[self.stored :]
        return [
            ToldEvent(self.turn.message_id, seq, event.name, event.data)
            for seq, event in enumerate(news, self.stored + 1)
        ]


class Turns:
    """The turns of one web process, which is their `owner`, and news of those of other ones."""

    def __init__(self) -> None:
        self.owner = new_id().hex
        self.news = TurnNews()
        self.ends_at: float | None = None
        self._running: dict[UUID, Running] = {}
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def start(self, runtime: Runtime, principal: Principal, turn: Turn) -> None:
        """Answer a turn whose row names this process as its owner."""
        running = Running(principal, turn)
        self._running[turn.message_id] = running
        TURNS_RUNNING.inc()
        task = asyncio.create_task(self._run(runtime, running))
        self._tasks[turn.message_id] = task
        if self._writer is None or self._writer.done():
            # Of no request: its log lines must not carry the id of whoever asked first.
            self._writer = asyncio.create_task(self._write(runtime), context=contextvars.Context())

    async def follow(
        self, runtime: Runtime, tenant_id: TenantId, turn_id: MessageId, *, after: int = 0
    ) -> AsyncIterator[Told | None]:
        """The events of a turn that come after number `after`, to its end; None is a sign of life.

        The caller has found the turn to be the asker's.
        """
        running = self._running.get(turn_id)
        told = _follow_here(running, after) if running else self.news.follow(runtime, tenant_id, turn_id, after)
        async for event in told:
            yield event

    def stop(self, turn_id: MessageId) -> None:
        """Read the model of this turn no further, if the turn is of this process."""
        if (running := self._running.get(turn_id)) is not None:
            running.stop.ask()

    def hear(self, payload: str) -> None:
        """What the database hints of turns."""
        if payload.startswith(STOP):
            with contextlib.suppress(ValueError):
                self.stop(MessageId(UUID(payload.removeprefix(STOP))))
        else:
            self.news.hear(payload)

    async def close(self) -> None:
        """Let running turns end until `ends_at` (monotonic seconds; None: now), then mark the rest as interrupted."""
        tasks = list(self._tasks.values())
        if tasks and self.ends_at is not None:
            await asyncio.wait(tasks, timeout=max(0.0, self.ends_at - time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.cancel()

    async def _run(self, runtime: Runtime, running: Running) -> None:
        try:
            await self._answer(runtime, running)
        except asyncio.CancelledError:  # this process ends, or another one has taken the turn for lost
            await self._end(runtime, running, "interrupted", INTERRUPTED)
        except PharosError as error:
            log.warning("turn.failed", code=error.code)
            await self._end(runtime, running, "failed", Event("error", told_failure(error, running.principal)))
        except Exception as error:
            log.exception("turn.failed", error=type(error).__name__)
            await self._end(runtime, running, "failed", FAILED)
        finally:
            running.is_over = True
            running.wake()
            del self._running[running.turn.message_id], self._tasks[running.turn.message_id]
            TURNS_RUNNING.dec()

    async def _answer(self, runtime: Runtime, running: Running) -> None:
        async for told in answer_turn(runtime, running.principal, running.turn, stop=running.stop):
            if isinstance(told, Draft):
                state: TurnState = "stopped" if running.stop.is_asked else "done"
                await self._end(runtime, running, state, _done(running, told), draft=told)
            elif told.name == "error":
                await self._end(runtime, running, "failed", told)
            else:
                running.tell(told)
        if not running.is_ending:
            await self._end(runtime, running, "stopped", Event("done", {**NOTHING_SAID, "stopped": True}))

    async def _end(
        self, runtime: Runtime, running: Running, state: TurnState, last: Event, *, draft: Draft | None = None
    ) -> None:
        """Store the last event with the answer and the turn's end in one transaction; only then it is told."""
        running.is_ending = True
        async with self._writing:  # a batch that holds events of this turn ends first
            pass
        for pause in (*STORE_AGAIN_SECONDS, None):
            try:
                await _store_end(runtime, running, state, last, draft)
                break
            except Conflict:
                state, last = "interrupted", INTERRUPTED
                break
            except (SQLAlchemyError, OSError) as error:
                log.warning("turn.not_stored", error=type(error).__name__, gives_up=pause is None)
                if pause is None:
                    last = NOT_STORED
                    break
                await asyncio.sleep(pause)
        running.tell(last)
        TURNS_ENDED.labels(state).inc()

    async def _write(self, runtime: Runtime) -> None:
        beaten_at = time.monotonic()
        while self._running:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            is_beat = time.monotonic() - beaten_at >= HEARTBEAT_SECONDS
            try:
                async with self._writing:
                    await self._store(runtime, is_beat=is_beat)
            except (SQLAlchemyError, OSError) as error:
                log.warning("turns.not_stored", error=type(error).__name__)
                continue
            except Exception as error:
                log.exception("turns.not_stored", error=type(error).__name__)
                continue
            if is_beat:
                beaten_at = time.monotonic()

    async def _store(self, runtime: Runtime, *, is_beat: bool) -> None:
        """Store what is new: one transaction for each tenant whose turns told something, for all at a heartbeat.

        What one tenant's turns tell and the database refuses keeps no other tenant's from being stored.
        """
        tenants: defaultdict[TenantId, list[Running]] = defaultdict(list)
        for running in self._running.values():
            if not running.is_ending and (is_beat or running.stored < len(running.told)):
                tenants[running.principal.tenant_id].append(running)
        for tenant_id, turns in tenants.items():
            try:
                await self._store_tenant(runtime, tenant_id, turns, is_beat=is_beat)
            except (SQLAlchemyError, ValueError) as error:  # a ValueError: what the driver cannot even send
                if isinstance(as_pharos_error(error), Unavailable):
                    raise  # the others would only wait for the same database
                log.error("turns.not_stored", tenant_id=str(tenant_id), error=type(error).__name__)

    async def _store_tenant(
        self, runtime: Runtime, tenant_id: TenantId, turns: list[Running], *, is_beat: bool
    ) -> None:
        told = {running: len(running.told) for running in turns}
        async with runtime.db.transaction(tenant_id) as session:
            await add_events(session, tenant_id, [event for running in turns for event in running.unstored()])
            alive = await beat(session, [running.turn.message_id for running in turns]) if is_beat else None
        for running, count in told.items():
            running.stored = count
        if alive is not None:
            self._heed(turns, alive)

    def _heed(self, turns: list[Running], alive: dict[UUID, bool]) -> None:
        """Stop what somebody wants stopped, and give up what another process has taken for lost."""
        for running in turns:
            turn_id = running.turn.message_id
            if running.is_ending or turn_id not in self._tasks:
                continue
            if turn_id not in alive:
                log.warning("turn.taken_for_lost", tenant_id=str(running.principal.tenant_id), turn_id=str(turn_id))
                self._tasks[turn_id].cancel()
            elif alive[turn_id] and not running.stop.is_asked:
                running.stop.ask()


async def _follow_here(running: Running, after: int) -> AsyncIterator[Told | None]:
    at = after
    while True:
        while at < len(running.told):
            event = running.told[at]
            at += 1
            yield Told(at, event.name, event.data)
        if running.is_over:
            return
        if not await running.news():
            yield None


def _settle(listener: asyncio.Future[bool], is_news: bool) -> None:
    if not listener.done():
        listener.set_result(is_news)


async def _store_end(runtime: Runtime, running: Running, state: TurnState, last: Event, draft: Draft | None) -> None:
    turn, tenant_id = running.turn, running.principal.tenant_id
    news = [*running.unstored(), ToldEvent(turn.message_id, len(running.told) + 1, last.name, last.data)]
    async with runtime.db.transaction(tenant_id) as session:
        await add_events(session, tenant_id, news)
        is_first = await end_turn(session, turn.message_id, state=state)
        if draft is not None and is_first:
            await close_turn(session, running.principal, turn, draft)


def _done(running: Running, draft: Draft) -> Event:
    """`done` with the answer as HTML; a guest, who cannot open documents, is led to the quotations on their page."""
    project_id = None if running.principal.kind == "guest" else running.turn.project_id
    html = answer_html(
        draft.body, mode=draft.mode, project_id=project_id, sources=draft.sources, unsupported=draft.unsupported
    )
    done = done_event(draft)
    return Event("done", done.data | {"html": html, "stopped": running.stop.is_asked})
