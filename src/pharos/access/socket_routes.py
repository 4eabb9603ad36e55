"""`/ws`: what happens, as it happens, for whoever may know it. The rows are the truth; a client that was away says
`?after=NUMBER` and misses nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from fastapi.encoders import jsonable_encoder
from sqlalchemy.exc import SQLAlchemyError
from starlette.websockets import WebSocketState

from pharos.access.news import Bells, read_news
from pharos.identity.recognise import SignedIn
from pharos.identity.request_limits import limit_subject
from pharos.identity.socket import PROTOCOL, socket_holder
from pharos.infra.errors import LimitReached, PharosError
from pharos.infra.http import client_ip
from pharos.infra.limits import GENERAL, ip_subject
from pharos.infra.logs import get_logger
from pharos.infra.metrics import STREAMS_ACTIVE
from pharos.runtime import Runtime

log = get_logger(__name__)
router = APIRouter()

REFUSED, TRY_LATER = 1008, 1013
LOOK_AGAIN_SECONDS = 15.0
"""How long a hint may be missing, and how long a session that ended may go on hearing."""
DEAF_SECONDS = 2.0
"""As often as a page would ask by itself, while this process cannot hear hints."""
PAUSE_SECONDS = 0.2
"""Between two looks of a socket: a folder that is taken in changes many documents a second, seen by it or not."""
SEND_SECONDS = 10.0
MOST_OF_ONE_SESSION = 20

_open: Counter[UUID] = Counter()


@router.websocket("/ws")
async def news_socket(socket: WebSocket, after: Annotated[int | None, Query(ge=0)] = None) -> None:
    """`hello` with the number where we are, then each event; `reset`: what came between is lost, load anew.

    Closes with 1008 for whoever is not signed in or no longer, and with 1013 for who should come again later.
    """
    structlog.contextvars.clear_contextvars()
    runtime: Runtime = socket.app.state.runtime
    offered = socket.scope.get("subprotocols", ())
    # A refusal before the handshake would reach a browser as a line that broke; only a close has a code.
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    try:
        signed_in = await _enter(runtime, socket)
        with STREAMS_ACTIVE.labels("/ws").track_inprogress(), _one_more(signed_in):
            await _until_either(_listen(socket), _tell(runtime, socket, after))
    except WebSocketDisconnect:
        return
    except PharosError as error:
        log.info("socket.refused", code=error.code)
        await _close(socket, TRY_LATER if isinstance(error, LimitReached) else REFUSED, error.code)
    except (SQLAlchemyError, OSError) as error:
        log.warning("socket.cut", error=type(error).__name__)
        await _close(socket, TRY_LATER, "unavailable")


async def _enter(runtime: Runtime, socket: WebSocket) -> SignedIn:
    try:
        signed_in = await socket_holder(runtime, socket)
    except PharosError:
        await runtime.limits.hit(GENERAL, ip_subject(client_ip(socket, runtime.settings)))
        raise
    await runtime.limits.hit(GENERAL, limit_subject(signed_in.principal) or "")
    structlog.contextvars.bind_contextvars(tenant_id=str(signed_in.principal.tenant_id))
    return signed_in


@contextlib.contextmanager
def _one_more(signed_in: SignedIn) -> Iterator[None]:
    key = signed_in.session_id
    if _open[key] >= MOST_OF_ONE_SESSION:
        raise LimitReached("Too many sockets of this session are open.", code="too_many_sockets")
    _open[key] += 1
    try:
        yield
    finally:
        _open[key] -= 1
        if not _open[key]:
            del _open[key]


async def _tell(runtime: Runtime, socket: WebSocket, after: int | None) -> None:
    bells: Bells = socket.app.state.bells
    at, is_new = after, True
    while True:
        principal = (await socket_holder(runtime, socket)).principal  # asked anew: a session may end meanwhile
        bell = bells.bell(principal.tenant_id)
        async with runtime.db.transaction(principal.tenant_id) as session:
            reading = await read_news(session, principal, after=at)
        if is_new:
            await _send(socket, {"name": "hello", "seq": reading.at if at is None or reading.is_torn else at})
        if reading.is_torn:
            await _send(socket, {"name": "reset", "seq": reading.at})
        for each in reading.news:
            await _send(socket, asdict(each))
        has_moved = at not in {None, reading.at}
        at, is_new = reading.at, False
        if not has_moved:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_SECONDS if runtime.notices.is_open else DEAF_SECONDS):
                    await bell.wait()
        await asyncio.sleep(PAUSE_SECONDS if has_moved else 0)


async def _listen(socket: WebSocket) -> None:
    """Nothing that a client says means anything yet; that it leaves does."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue


async def _send(socket: WebSocket, message: dict[str, Any]) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await socket.send_json(jsonable_encoder(message))


async def _until_either(*works: Any) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    if WebSocketState.DISCONNECTED not in {socket.client_state, socket.application_state}:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client left while we spoke
            await socket.close(code, reason)
