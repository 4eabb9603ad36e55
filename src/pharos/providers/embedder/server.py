"""The embedder process: the model behind a socket, so that it is in memory once a machine.

`POST /embed` {"texts": […]} answers rows of little-endian float32; `GET /health` answers 200 `ready` or 503 `loading`.
The socket opens before the model is loaded: a refused connection means that no embedder runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pharos.infra.errors import Conflict, Invalid, PharosError, TooLarge, Unavailable
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.providers.embedder.inference import Inference
from pharos.providers.embedder.known import read_known
from pharos.providers.embedder.minilm import DIMENSION, MODEL_NAME
from pharos.providers.embedder.model import LocalModel, model_folder, read_manifest

log = get_logger("pharos.embedder")

MAX_TEXTS = 256
MAX_BODY_BYTES = 8 * 1024 * 1024
STOP_SECONDS = 4  # less than the supervisor waits before it kills
KEEP_ALIVE_SECONDS = 60  # longer than the client keeps an idle connection, so that it never meets a closed one
SOCKET_PATH_BYTES = 107  # what the kernel takes
ROWS_HEADER, DIMENSION_HEADER, MODEL_HEADER = "x-pharos-rows", "x-pharos-dimension", "x-pharos-model"

Load = Callable[[], Inference]


def create_app(load: Load, *, on_failure: Callable[[], None]) -> Starlette:
    """The ASGI application; `load` runs in a thread after the start, `on_failure` when it raises."""
    app = Starlette(
        routes=[Route("/embed", _embed, methods=["POST"]), Route("/health", _health)],
        exception_handlers={PharosError: _answer_error},
        lifespan=_lifespan,
    )
    app.state.load, app.state.on_failure, app.state.inference = load, on_failure, None
    return app


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    loading = asyncio.create_task(_load(app))
    yield
    loading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loading
    if app.state.inference is not None:
        await asyncio.to_thread(app.state.inference.close)
    log.info("embedder.stopped")


async def _load(app: Starlette) -> None:
    started = time.monotonic()
    log.info("model.loading", model=MODEL_NAME)
    try:
        inference: Inference = await asyncio.to_thread(app.state.load)
        await inference.embed(["the first text pays for what is made on first use"])
    except Exception as error:  # whatever it is, the process says why and ends
        log.exception("model.load_failed", model=MODEL_NAME, error=str(error))
        app.state.on_failure()
        return
    app.state.inference = inference
    log.info("model.loaded", model=MODEL_NAME, seconds=round(time.monotonic() - started, 3))


async def _health(request: Request) -> JSONResponse:
    inference: Inference | None = request.app.state.inference
    state: dict[str, object] = {"status": "ready" if inference else "loading", "model": MODEL_NAME}
    if inference:
        state["queued"] = inference.queued
    return JSONResponse(state, status_code=200 if inference else 503)


async def _embed(request: Request) -> Response:
    started, request_id = time.monotonic(), request.headers.get("x-request-id", "")[:64]
    texts = await _read_texts(request)
    inference: Inference | None = request.app.state.inference
    if inference is None:
        raise Unavailable("The model is still loading. Try again in some seconds.", code="embedder_loading")
    work = asyncio.ensure_future(inference.embed(texts))
    gone = asyncio.ensure_future(_disconnected(request))
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not work.done():
        work.cancel()
        return Response(status_code=499)  # nobody reads it; the queue is spared the rest
    vectors = work.result()
    log.info("texts.embedded", texts=len(texts), seconds=round(time.monotonic() - started, 3), request_id=request_id)
    headers = {ROWS_HEADER: str(len(vectors)), DIMENSION_HEADER: str(DIMENSION), MODEL_HEADER: MODEL_NAME}
    return Response(vectors.astype("<f4").tobytes(), media_type="application/octet-stream", headers=headers)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_texts(request: Request) -> list[str]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge("A request has at most 8 MiB. Send fewer texts at a time.", limit_bytes=MAX_BODY_BYTES)
    try:
        texts = json.loads(body)["texts"]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid('The body must be JSON: {"texts": ["…"]}.', code="bad_body") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Invalid("`texts` must be a list of strings.", code="bad_body")
    if len(texts) > MAX_TEXTS:
        raise TooLarge(f"A request has at most {MAX_TEXTS} texts. Send them in parts.", limit=MAX_TEXTS)
    return texts


async def _answer_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PharosError)
    headers = {"Retry-After": "1"} if error.retryable else None
    return JSONResponse({"error": error.code, "message": error.message}, status_code=error.http_status, headers=headers)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, finishing the requests in work. Raises `Unavailable` when the model is not prepared,
    `Conflict` when an embedder runs already."""
    folder = model_folder(settings.models_dir)
    read_manifest(folder)
    listener = open_listener(settings)
    # uvicorn raises a signal again after its own orderly stop; the default handler would make that a violent end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    failed = False

    def stop_failed() -> None:
        nonlocal failed
        failed = True
        server.should_exit = True

    def load() -> Inference:
        return Inference(LocalModel(folder, verify=False), known=read_known(folder))

    app = create_app(load, on_failure=stop_failed)
    server = uvicorn.Server(server_config(app))
    log.info("embedder.started", address=settings.embedder_url or str(settings.embedder_socket))
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        if settings.embedder_url is None:
            settings.embedder_socket.unlink(missing_ok=True)
    if failed:
        raise Unavailable("The model could not be loaded; the log says why. Run `pharos models prepare`.")


def server_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",  # its own lines about starting and stopping say no more than ours
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def open_listener(settings: Settings) -> socket.socket:
    """The socket the settings name: a file only its owner may use, or host and port of `embedder_url`."""
    if settings.embedder_url is not None:
        address = urlsplit(settings.embedder_url)
        if address.scheme != "http" or not address.hostname or not address.port:
            raise Invalid("PHAROS_EMBEDDER_URL must be http://host:port.", code="bad_embedder_url")
        try:
            return socket.create_server((address.hostname, address.port))
        except OSError as error:
            raise Conflict(f"{settings.embedder_url} cannot be opened: {error.strerror}.", code="port_taken") from error
    path = settings.embedder_socket
    if len(bytes(path)) > SOCKET_PATH_BYTES:
        raise Invalid(f"The path {path} is too long for a socket. Choose a shorter PHAROS_DATA_DIR.", code="long_path")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A bound socket refuses callers until it listens: it gets its mode before anybody can be let in.
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove what a killed embedder left behind; raise `Conflict` when one still answers."""
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise Conflict(f"An embedder answers on {path} already. `pharos status` shows it.", code="embedder_running")
