"""A web process in a thread, for journeys that need pages and not a whole installation."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from playwright.sync_api import Browser, BrowserContext, ViewportSize
from tests.conftest import make_runtime, make_settings
from tests.fakes import with_model

from pharos.app import create_app
from pharos.identity.current import COOKIE
from pharos.identity.principal import Principal
from pharos.identity.sign_in import Origin, open_session
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db import create_database
from pharos.providers.contract import ChatModel
from pharos.runtime import Runtime

T = TypeVar("T")

DEADLINE_SECONDS = 60


@dataclass(frozen=True)
class Served:
    """`runtime` lives in the thread's event loop: whatever touches it goes through `run`."""

    runtime: Runtime
    origin: str
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the world that the pages show."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_SECONDS)

    def signed_in(
        self, browser: Browser, person: Principal, *, agent: str = "", viewport: ViewportSize, dark: bool = False
    ) -> BrowserContext:
        """A window of `browser` in which `person` is signed in."""
        issued = self.run(open_session(self.runtime, person, origin=Origin(ip="203.0.113.7", agent=agent)))
        window = browser.new_context(
            viewport=viewport, color_scheme="dark" if dark else "light", locale="en-GB", user_agent=agent or None
        )
        window.add_cookies([{"name": COOKIE, "value": issued.session_token, "url": self.origin}])
        return window


class Announced(uvicorn.Server):
    """A server that tells another thread when it listens."""

    is_up: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@contextmanager
def serve(
    urls: DatabaseUrls, data_dir: Path, port: int, *, model: ChatModel | None = None, **changed: Any
) -> Iterator[Served]:
    """Serve the pages and the API on `port` while the block runs, with models that cost nothing.

    `changed` are settings that are not the tests' own.
    """
    settings = make_settings(urls, data_dir).model_copy(update={"port": port, **changed})
    started: list[Served] = []
    is_up, is_over = threading.Event(), asyncio.Event()

    async def main() -> None:
        assert settings.database_url is not None
        database = create_database(settings.database_url, pool_size=5)
        runtime = with_model(make_runtime(settings, database), model)
        app = create_app(settings, runtime=runtime)
        server = Announced(uvicorn.Config(app, port=port, log_config=None, access_log=False))
        server.is_up = is_up
        started.append(Served(runtime, settings.base_url, asyncio.get_running_loop()))
        serving = asyncio.create_task(server.serve())
        await is_over.wait()
        server.should_exit = True
        await serving
        await runtime.models.close()
        await database.dispose()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert is_up.wait(DEADLINE_SECONDS)
    (served,) = started
    try:
        yield served
    finally:
        served.loop.call_soon_threadsafe(is_over.set)
        thread.join(DEADLINE_SECONDS)
