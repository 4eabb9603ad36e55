"""What every HTTP request gets: an id, one log line, safe headers, a limit on its body, and errors in one shape."""

from __future__ import annotations

import ipaddress
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable

import structlog
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pharos.infra import database_errors
from pharos.infra.errors import (
    Invalid,
    LimitReached,
    NotAllowed,
    NotFound,
    NotSignedIn,
    PharosError,
    TooLarge,
    Unavailable,
)
from pharos.infra.logs import get_logger
from pharos.infra.metrics import count_answer
from pharos.infra.redact import anonymise_ip
from pharos.infra.settings import Settings

log = get_logger("pharos.http")

MAX_BODY_BYTES = 512 * 1024
RETRY_AFTER_SECONDS = 5
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
QUIET_PATH = re.compile(r"(/api(/v1)?)?/(health(/.*)?|metrics)")
"""Health and metrics paths: their log lines would bury the others, so only their errors are kept (LO-03)."""

SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

RenderError = Callable[[Request, PharosError], Awaitable[Response]]


class MethodNotAllowed(Invalid):
    """The address is right, the verb is not."""

    code = "method_not_allowed"
    http_status = 405


class EveryRequest:
    """The outermost layer. A header that a route has set itself is left as it is."""

    def __init__(self, app: ASGIApp, *, settings: Settings, streamed: re.Pattern[str], render: RenderError) -> None:
        """`streamed` matches the paths that take bodies of any length and limit them themselves."""
        self.app = app
        self.settings = settings
        self.streamed = streamed
        self.render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, send_safely, has_begun=lambda: status != 0)
        finally:
            seconds = time.perf_counter() - started
            route = _route_of(scope)
            count_answer(method=scope["method"], route=route, status=status, seconds=seconds)
            if status >= 500 or not QUIET_PATH.fullmatch(scope["path"]):
                ip = anonymise_ip(client_ip(Request(scope), self.settings))
                _log_request(scope["method"], route, ip=ip, status=status, seconds=seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, *, has_begun: Callable[[], bool]) -> None:
        request = Request(scope, receive)
        try:
            if self.streamed.fullmatch(scope["path"]) is None:
                receive = await _short_body(request, receive)
            await self.app(scope, receive, send)
        except PharosError as error:
            await (await self.render(request, error))(scope, receive, send)
        except Exception as error:
            log.exception("request.failed", error=type(error).__name__)
            if has_begun():
                raise  # half an answer is out; only cutting the connection tells the caller
            words = "Something went wrong here. Its cause is in the log under this request's id."
            await (await self.render(request, PharosError(words, code="internal")))(scope, receive, send)


def json_error(request: Request, error: PharosError) -> Response:
    """`{"error": code, "message": …, "requestId": …}` and what the error tells about itself."""
    body = {**error.details, "error": error.code, "message": error.message, "requestId": request_id_of(request)}
    if isinstance(error, LimitReached) and error.retry_after_seconds is not None:
        body["retryAfterMs"] = math.ceil(error.retry_after_seconds * 1000)
    return JSONResponse(jsonable_encoder(body), status_code=error.http_status, headers=error_headers(error))


def error_headers(error: PharosError) -> dict[str, str]:
    """What an answer's headers say of an error, as JSON and as a page: when to try again, how to sign in."""
    if isinstance(error, (LimitReached, Unavailable)) and error.retry_after_seconds is not None:
        return {"Retry-After": str(math.ceil(error.retry_after_seconds))}
    if isinstance(error, Unavailable):
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
    if isinstance(error, NotSignedIn):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def client_ip(request: HTTPConnection, settings: Settings) -> str:
    """The address of whoever asks, as text, or "unknown".

    `X-Forwarded-For` is believed from trusted proxies only, read from the right: the first hop that is no trusted
    proxy is the client, because everything left of it may be the client's own invention.
    """
    peer = _address(request.client.host if request.client else "")
    hops = [hop.strip() for value in request.headers.getlist("x-forwarded-for") for hop in value.split(",")]
    while peer is not None and hops and any(peer in network for network in settings.trusted_networks):
        nearer = _address(hops.pop())
        if nearer is None:
            break
        peer = nearer
    return "unknown" if peer is None else str(peer)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def safe_next(path: str | None) -> str:
    """Where to go after signing in: a path of this server, or the start page for anything else."""
    if path is None or not path.startswith("/") or path[1:2] in {"/", "\\"} or any(char < " " for char in path):
        return "/"
    return path


def request_id_of(request: Request) -> str:
    """The id this request's log lines carry."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def add_error_handlers(app: FastAPI, render: RenderError) -> None:
    """Answer every expected failure through `render`."""

    async def handle(request: Request, error: Exception) -> Response:
        return await render(request, as_pharos_error(error))

    for kind in (PharosError, RequestValidationError, HTTPException, DBAPIError, PoolTimeout):
        app.add_exception_handler(kind, handle)


def as_pharos_error(error: Exception) -> PharosError:
    """The kind that an error of a library below us stands for; raises again what only a fault of ours can cause."""
    if isinstance(error, PharosError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return _of_status(error)
    found = database_errors.as_pharos_error(error)
    if not isinstance(found, (Invalid, Unavailable)):
        raise error
    if isinstance(found, Unavailable):
        log.error("database.failed", code=found.code, error=type(error).__name__)
    return found


def _of_status(error: HTTPException) -> PharosError:
    kinds: dict[int, type[PharosError]] = {403: NotAllowed, 404: NotFound, 405: MethodNotAllowed, 413: TooLarge}
    sentences = {404: "There is nothing at this address.", 405: "This address does not take that method."}
    return kinds.get(error.status_code, Invalid)(sentences.get(error.status_code, str(error.detail)))


def _of_validation(error: RequestValidationError) -> PharosError:
    faults = error.errors()
    if any(fault["loc"][0] == "path" and fault["type"].startswith("uuid") for fault in faults):
        return _of_status(HTTPException(404))  # an id in no form of ours is as unknown as one that nobody has
    first = faults[0]
    if first["type"] == "json_invalid":
        return Invalid(f"The body is not JSON: it cannot be read from character {first['loc'][-1]} on.")
    if first["loc"] == ("body",):
        return Invalid("The body is no JSON object. Send one, with the header `Content-Type: application/json`.")
    place = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path"})
    return Invalid(f"{place}: {'This is not an id' if first['type'].startswith('uuid') else first['msg']}.")


def _request_id(offered: str) -> str:
    return offered if REQUEST_ID.fullmatch(offered) else secrets.token_hex(12)


async def _short_body(request: Request, receive: Receive) -> Receive:
    """The body, read to its end and given again, so that a long one is refused before anybody works on it."""
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return receive
    too_large = TooLarge(f"A request's body has at most {MAX_BODY_BYTES // 1024} KiB.", limit_bytes=MAX_BODY_BYTES)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return _once(message, receive)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    return _once({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def _once(message: Message, receive: Receive) -> Receive:
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return message

    return receive_again


def _route_of(scope: Scope) -> str:
    """The template, never the address itself: that may hold names and one-time tokens."""
    path: str = getattr(scope.get("route"), "path", "")
    return path or ("/static" if "/static/" in scope["path"] else "unknown")


def _log_request(method: str, route: str, *, ip: str, status: int, seconds: float) -> None:
    emit = log.error if status >= 500 or status == 0 else log.info
    emit("request.answered", status=status, method=method, path=route, duration=round(seconds, 4), ip=ip)
