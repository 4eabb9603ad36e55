"""Health over HTTP: is the process alive, can it work, and which part is ill. For anybody, so nothing but states."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.current import CurrentRuntime
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import LimitReached, PharosError
from pharos.infra.jobs import has_worker
from pharos.infra.migrate import head_revision
from pharos.library.models import VectorSpace
from pharos.ops.standing import read_standing
from pharos.runtime import Runtime

router = APIRouter(tags=["health"])

PROBE_SECONDS = 2.0
STARTED = time.monotonic()
MOST_STREAMS, LONGEST_PAUSE_SECONDS = 10, 300
"""Of the stream that anybody may ask for: a connection each, and nothing else."""

State = Literal["up", "down", "loading", "degraded"]
Probe = Callable[[Runtime], Awaitable[bool]]


@router.get("/health")
async def health(runtime: CurrentRuntime, response: Response) -> dict[str, object]:
    """200 while the database answers, else 503."""
    is_up = await _holds(runtime, database_answers)
    response.status_code = 200 if is_up else 503
    return {"status": "healthy" if is_up else "down", **_database(is_up), "uptime": _uptime_seconds()}


@router.get("/api/health")
@router.get("/api/v1/health", operation_id="api_v1_health")
async def api_health(runtime: CurrentRuntime, response: Response) -> dict[str, object]:
    """The same in the words of a deploy's check."""
    is_up = await _holds(runtime, database_answers)
    response.status_code = 200 if is_up else 503
    return _database(is_up)


@router.get("/health/live")
async def live() -> dict[str, object]:
    """200 while the process lives; touches nothing else."""
    return {"status": "alive", "uptime": _uptime_seconds()}


@router.get("/health/ready")
async def ready(runtime: CurrentRuntime, response: Response) -> dict[str, object]:
    """200 when the database answers and its schema is the one this code was written for, else 503."""
    is_up, is_valid = await asyncio.gather(_holds(runtime, database_answers), _holds(runtime, schema_is_valid))
    response.status_code = 200 if is_up and is_valid else 503
    return {
        "status": "ready" if is_up and is_valid else "not_ready",
        **_database(is_up),
        "ok": is_up and is_valid,
        "schema": "valid" if is_valid else "invalid",
        "uptime": _uptime_seconds(),
    }


@router.get("/health/detailed")
async def detailed(runtime: CurrentRuntime, response: Response) -> dict[str, object]:
    """Every part: 200 also when one is down, 503 when none can work without it."""
    probes = PROBES | ({"redis": redis_counts} if runtime.settings.redis_url else {})
    found = await asyncio.gather(*(_holds(runtime, probe) for probe in probes.values()))
    states: dict[str, State] = {name: "up" if holds else "down" for name, holds in zip(probes, found, strict=True)}
    if states["embedder"] == "down" and await _holds(runtime, embedder_loads):
        states["embedder"] = "loading"
    if states["backup"] == "down":
        states["backup"] = "degraded"  # nothing that people do rests on it, yet
    is_down = any(states[name] == "down" for name in REQUIRED)
    overall = "down" if is_down else "healthy" if set(states.values()) == {"up"} else "degraded"
    response.status_code = 503 if is_down else 200
    return {
        "status": overall,
        **_database(states["postgres"] == "up"),
        "ok": not is_down,
        "components": {name: {"status": state} for name, state in states.items()},
        "uptime": _uptime_seconds(),
    }


@router.get(
    "/health/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "begin, a silence, end"}},
)
async def stream(
    pause_seconds: Annotated[float, Query(ge=0, le=LONGEST_PAUSE_SECONDS)] = 0.2,
) -> StreamingResponse:
    """Two events with a silence between them: who gets both at once, or one alone, knows what a proxy does."""
    if len(_streams) >= MOST_STREAMS:
        raise LimitReached("Too many of these streams are open. Try again later.", retry_after_seconds=pause_seconds)
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_paused(pause_seconds), media_type="text/event-stream", headers=headers)


_streams: set[object] = set()


async def _paused(seconds: float) -> AsyncIterator[str]:
    this = object()
    _streams.add(this)
    try:
        yield "event: begin\ndata: {}\n\n"
        await asyncio.sleep(seconds)
        yield "event: end\ndata: {}\n\n"
    finally:
        _streams.discard(this)


async def database_answers(runtime: Runtime) -> bool:
    """A transaction of no tenant can be opened."""
    async with system_transaction(runtime.db) as session:
        await session.execute(text("select 1"))
    return True


async def schema_is_valid(runtime: Runtime) -> bool:
    """Exactly this code's migrations have been applied."""
    async with system_transaction(runtime.db) as session:
        applied = (await session.execute(text("select version_num from alembic_version"))).scalars().all()
    return list(applied) == [_head()]


async def sessions_answer(runtime: Runtime) -> bool:
    """The store of sign-in sessions can be read."""
    async with system_transaction(runtime.db) as session:
        await session.execute(text("select from sessions limit 1"))
    return True


async def vectors_answer(runtime: Runtime) -> bool:
    """One vector space is live."""
    async with system_transaction(runtime.db) as session:
        live_spaces = (await session.execute(select(VectorSpace.id).where(VectorSpace.state == "live"))).all()
    return len(live_spaces) == 1


async def queue_answers(runtime: Runtime) -> bool:
    """The queue can be read and a worker has reported within half a minute."""
    async with system_transaction(runtime.db) as session:
        return await has_worker(session)


async def storage_answers(runtime: Runtime) -> bool:
    """The folder of uploads is there and may be written."""

    def is_writable() -> bool:
        root = runtime.blobs.root
        place = root if root.exists() else root.parent
        return os.access(place, os.W_OK | os.X_OK)

    return await asyncio.to_thread(is_writable)


async def embedder_answers(runtime: Runtime) -> bool:
    """The embedder turns a word into a vector."""
    return len(await runtime.embedding.embed(["health"])) == 1


async def embedder_loads(runtime: Runtime) -> bool:
    """The embedder is there and will answer in some seconds."""
    return await runtime.embedding.state() == "loading"


async def backups_work(runtime: Runtime) -> bool:
    """No backup, copy or drill that is due is missing or failed; which of it does `doctor` says.

    What was never set up (another disk, a place elsewhere, an offline key) is told on the page, by `doctor` and in the
    metrics: an installation that is called ill from its first day on says nothing when it falls ill.
    """
    return not (await read_standing(runtime)).is_failing


async def redis_counts(runtime: Runtime) -> bool:
    """Redis takes a count; asked only where one is configured."""
    await runtime.limits.probe()
    return True


PROBES: dict[str, Probe] = {
    "postgres": database_answers,
    "schema": schema_is_valid,
    "sessions": sessions_answer,
    "vectors": vectors_answer,
    "queue": queue_answers,
    "storage": storage_answers,
    "embedder": embedder_answers,
    "backup": backups_work,
}
REQUIRED = ("postgres", "schema", "sessions", "vectors")


async def _holds(runtime: Runtime, probe: Probe) -> bool:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await probe(runtime)
    except (SQLAlchemyError, PharosError, OSError, TimeoutError):
        return False


@cache
def _head() -> str:
    return head_revision()


def _database(is_up: bool) -> dict[str, object]:
    return {"ok": is_up, "database": "connected" if is_up else "disconnected"}


def _uptime_seconds() -> float:
    return round(time.monotonic() - STARTED, 3)
