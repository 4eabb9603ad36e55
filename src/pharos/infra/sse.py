"""Server-sent events: one writer of the format, one gauge of who listens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from pharos.infra.logs import get_logger
from pharos.infra.metrics import STREAMS_ACTIVE

log = get_logger(__name__)

encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
"""Made once: `json.dumps` with options makes one for each call."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "meta, sources, text…, done or error"}
}
"""What a route that answers with events says of it in the API's document."""


@dataclass(frozen=True)
class Told:
    """One event of a stream; with its number the client asks for what follows it."""

    seq: int
    name: str
    data: Mapping[str, Any]


def sse_response(request: Request, events: AsyncIterator[Told | None], *, turn_id: UUID) -> StreamingResponse:
    """Events as they come; None is a sign of life on a line that is silent for long.

    The header names the turn: who loses the line before the first event can ask for it all the same.
    """
    endpoint = getattr(request.scope.get("route"), "path", "")
    headers = HEADERS | {"X-Turn-Id": str(turn_id)}
    return StreamingResponse(_lines(events, endpoint), media_type="text/event-stream", headers=headers)


def last_event_id(request: Request) -> int:
    """The number of the last event that the client has; 0 when it has none."""
    given = request.headers.get("last-event-id", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0


async def _lines(events: AsyncIterator[Told | None], endpoint: str) -> AsyncIterator[str]:
    with STREAMS_ACTIVE.labels(endpoint).track_inprogress():
        try:
            async with aclosing(events) as told:  # type: ignore[type-var]  # all that come here are generators
                async for event in told:
                    yield _line(event) if event is not None else ": here\n\n"
        except (SQLAlchemyError, OSError) as error:
            # The client sees a line that was cut and asks again for what follows its last event.
            log.warning("stream.cut", endpoint=endpoint, error=type(error).__name__)


def _line(event: Told) -> str:
    return f"event: {event.name}\ndata: {encode(event.data)}\nid: {event.seq}\n\n"
