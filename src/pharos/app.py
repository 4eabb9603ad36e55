"""The web process: every slice's routes, the pages, and one way to answer an error."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import BaseRoute

from pharos import __version__
from pharos.access.news import CHANNEL as APP_EVENTS
from pharos.access.news import Bells
from pharos.access.routes import router as access
from pharos.access.socket_routes import router as news_socket
from pharos.chat.feedback import feedback_upkeep
from pharos.chat.feedback_routes import router as feedback
from pharos.chat.openai_format import openai_error
from pharos.chat.openai_routes import router as openai_door
from pharos.chat.routes import router as chat
from pharos.chat.shared_routes import router as shared
from pharos.chat.turn_routes import router as chat_turns
from pharos.chat.turn_rows import CHANNEL as TURN_NEWS
from pharos.chat.turns import Turns
from pharos.identity.account_routes import router as account
from pharos.identity.audit_routes import router as audit
from pharos.identity.current import KNOWS_WHO_ASKS, get_runtime
from pharos.identity.mail_door_routes import router as mail_doors
from pharos.identity.people_routes import router as people
from pharos.identity.request_limits import count_request
from pharos.identity.routes import router as identity
from pharos.identity.secret_routes import router as secrets
from pharos.identity.setup import is_initialised
from pharos.identity.sign_in_news import sign_in_upkeep
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import NotFound, NotSignedIn, PharosError, Unavailable
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.http import EveryRequest, add_error_handlers, json_error, request_id_of
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.library.routes import router as library
from pharos.ops.backup.download import router as backup_download
from pharos.ops.health import router as health
from pharos.ops.metrics_routes import router as metrics
from pharos.ops.provider_routes import router as providers
from pharos.ops.secrets_check import refuse_wrong_secrets
from pharos.ops.stats import router as stats
from pharos.ops.system_status import router as system_status
from pharos.providers.breaker import reset_breakers
from pharos.retrieval.routes import router as retrieval
from pharos.runtime import Runtime, open_runtime
from pharos.web.errors import NOT_INITIALIZED, error_page, wants_page
from pharos.web.pages import add_pages
from pharos.web.visit import find_visit

log = get_logger(__name__)

STREAMED_BODIES = re.compile(r"/projects/[^/]+/documents")
DRAIN_SECONDS = 30
MOST_SAID_BYTES = 4096
"""Of one message of a WebSocket's client, which has nothing to say."""
TURNS_END_SECONDS = DRAIN_SECONDS + 1.0
"""An answer has ended or is marked as interrupted before the supervisor loses patience, after 35 seconds."""


def create_app(settings: Settings, *, runtime: Runtime | None = None) -> FastAPI:
    """The web app. It opens a runtime when it starts, unless it is given one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_runtime(settings) as opened:
            app.state.runtime = opened
            opened.notices.on(TURN_NEWS, app.state.turns.hear)
            opened.notices.on(APP_EVENTS, app.state.bells.hear)
            async with sign_in_upkeep(opened), feedback_upkeep(opened):
                await reset_breakers(opened.db)  # a start gives every provider another chance (LP-21)
                try:
                    yield
                finally:
                    await app.state.turns.close()

    app = FastAPI(
        title="Pharos",
        version=__version__,
        lifespan=None if runtime else lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        routes=_routes(),
    )
    app.state.turns = Turns()
    app.state.bells = Bells()
    if runtime is not None:
        app.state.runtime = runtime
    add_error_handlers(app, answer_error)
    app.add_middleware(EveryRequest, settings=settings, streamed=STREAMED_BODIES, render=answer_error)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """The same for every app of a process: reading the signatures of them all takes a tenth of a second."""
    routes = APIRouter()
    routes.include_router(health)
    routes.include_router(metrics)
    for router in (
        identity,
        mail_doors,
        audit,
        account,
        people,
        secrets,
        access,
        library,
        retrieval,
        chat,
        chat_turns,
        feedback,
        openai_door,
        shared,
        stats,
        providers,
        system_status,
        backup_download,
    ):
        routes.include_router(router, dependencies=[Depends(count_stranger)])
    routes.include_router(news_socket)
    add_pages(routes)
    return routes.routes


async def count_stranger(request: Request) -> None:
    """Count a request that nobody has to sign in for; all others are counted once the caller is known."""
    if not _identifies(request.scope["route"].dependant):
        await count_request(request, get_runtime(request), None)


def _identifies(dependant: Dependant) -> bool:
    return dependant.call in KNOWS_WHO_ASKS or any(map(_identifies, dependant.dependencies))


async def answer_error(request: Request, error: PharosError) -> Response:
    """An error as JSON, as a page where a browser asks for one, and as OpenAI's clients read it under `/v1`.

    Who is not known on an installation that has no account yet is told that, and a browser is led to the setup (ID-02).
    """
    is_openai = request.url.path.startswith("/v1/")
    is_page = wants_page(request) and not is_openai
    is_stranger = isinstance(error, NotSignedIn) or (isinstance(error, NotFound) and is_page)
    if is_stranger and await _awaits_setup(request):
        words = "Set this installation up first: `pharos setup-link` prints the address."
        error = Unavailable(words, code=NOT_INITIALIZED)
    if is_page:
        return error_page(request, error, request_id=request_id_of(request), visit=await _visit(request, error))
    return openai_error(request, error) if is_openai else json_error(request, error)


def serve(settings: Settings) -> None:
    """Run the web process until SIGTERM; requests in flight get 30 seconds to end.

    Raises `Invalid` or `Conflict` for a role or secrets that do not fit the database, before it listens.
    """
    asyncio.run(refuse_wrong_start(settings))
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws_max_size=MOST_SAID_BYTES,
    )
    Server(config).run()


async def refuse_wrong_start(settings: Settings) -> None:
    """Raise unless this process may serve this database: its role and its secrets must fit."""
    await asyncio.to_thread(refuse_unsafe_role, connection_urls(settings).app)
    async with open_runtime(settings) as runtime:
        await refuse_wrong_secrets(runtime)


class Server(uvicorn.Server):
    """uvicorn that says in our log when it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info(f"Listening on port {self.config.port}", host=self.config.host)  # noqa: G004 - the promised words

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # From now on, and not from the end of the requests, run the seconds that an answer in the making still has.
        self.config.app.state.turns.ends_at = time.monotonic() + TURNS_END_SECONDS  # type: ignore[union-attr]
        await super().shutdown(sockets)


async def _visit(request: Request, error: PharosError) -> dict[str, Any]:
    """What the page of an error shows of who is signed in; nothing where asking would add to the trouble."""
    if error.http_status >= 429:
        return {}
    try:
        visit = await find_visit(request)
    except (PharosError, SQLAlchemyError):
        return {}
    return visit.context if visit else {}


async def _awaits_setup(request: Request) -> bool:
    try:
        return not await is_initialised(request.app.state.runtime)
    except SQLAlchemyError:
        return False
