"""A web process in this event loop, with a runtime and a line to the database of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from pharos.app import create_app
from pharos.infra.embedded_postgres import free_port
from pharos.infra.settings import Settings


@asynccontextmanager
async def live_server(settings: Settings) -> AsyncIterator[str]:
    """Its address; it hears what others announce when the block begins."""
    port = free_port()
    app = create_app(settings.model_copy(update={"port": port}))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server._serve())  # without its hold on the signals
    while not server.started or not app.state.runtime.notices.is_open:
        await asyncio.sleep(0.01)
        assert not serving.done()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving
