"""The HTTP client for addresses that somebody typed in.

The guard sits where connections are made. A name is resolved once, every address it has is checked, and the connection
goes to one of the checked ones; the name is never looked up again, and TLS and `Host` still carry it. What a check
before the request would miss, a second lookup or a redirect, is a connection like any other here.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp
import httpx2
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from httpx_aiohttp.httpx2 import AiohttpTransport

from pharos.infra.address_guard import (
    CONNECT_SECONDS,
    NO_ADDRESS,
    UNKNOWN_NAME,
    AddressRefused,
    Resolve,
    allowed_addresses,
    refuse_address,
    refuse_request,
    resolve_name,
)
from pharos.infra.errors import Unavailable

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.tracing import Trace

OpenSocket = Callable[[AddrInfoType], socket.socket]

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""The longest answer that is read: 512 vectors of 3072 numbers, or a streamed answer of 60,000 tokens."""
MAX_ADDRESSES = 4
"""So many of a name's are tried. aiohttp begins anew after each that fails, and who holds the name says how many."""
CARRIED_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "anthropic-version", "authorization", "connection", "content-length",
        "content-type", "host", "transfer-encoding", "user-agent", "x-api-key",
    }
)  # fmt: skip
"""What a request to a provider carries; SDKs add what they find in the environment, which is the operator's."""


class ReplyTooLong(Unavailable):
    """More bytes than any honest answer has; the rest was not read."""

    code = "provider_answer_bad"


def open_socket(address: AddrInfoType) -> socket.socket:
    """A socket for what the resolver found, not yet connected."""
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends requests to allowed addresses only and reads no endless answers.

    `allow_private` opens loopback and private networks; metadata and link-local addresses stay closed. `resolve` and
    `open_socket` are the world: the resolver and what connections are made of.
    """

    def __init__(
        self,
        *,
        allow_private: bool,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        resolve: Resolve = resolve_name,
        open_socket: OpenSocket = open_socket,
    ) -> None:
        self._max_reply_bytes = max_reply_bytes

        def open_guarded(address: AddrInfoType) -> socket.socket:
            host, port, *_ = address[-1]
            refuse_address(str(host), int(port), allow_private=allow_private)
            return open_socket(address)

        def open_session() -> aiohttp.ClientSession:
            connector = _Connector(
                limit=0,
                ssl=_tls(),
                resolver=_GuardedNames(allow_private=allow_private, resolve=resolve),
                use_dns_cache=False,
                socket_factory=open_guarded,
            )
            return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

        self._inner = AiohttpTransport(verify=_tls(), client=open_session)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        refuse_request(request.url)
        limits = request.extensions["timeout"]
        try:
            # The adapter limits connecting and reading, but not how long a request is taken.
            async with asyncio.timeout(limits["pool"] + limits["write"] + limits["read"]):
                with _named():
                    response = await self._inner.handle_async_request(request)
        except TimeoutError as error:
            raise httpx2.WriteTimeout("the request was not taken in time") from error
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        if response.headers.get("content-encoding", "identity") != "identity":
            # A thousand times its size may come out of it; counting what arrives would not see that.
            await response.aclose()
            raise ReplyTooLong("The provider's answer is packed, which nobody asked for. Check its address.")
        response.stream = _Bounded(response.stream, self._max_reply_bytes)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def guarded_client(
    *, allow_private: bool, timeout_seconds: float, transport: GuardedTransport | None = None
) -> httpx2.AsyncClient:
    """A client for SDKs. It follows no redirect: a key belongs to the address it was entered for."""
    connect = min(CONNECT_SECONDS, timeout_seconds)
    return httpx2.AsyncClient(
        transport=transport or GuardedTransport(allow_private=allow_private),
        timeout=httpx2.Timeout(timeout_seconds, connect=connect, pool=connect),  # the second has the look-up in it
        trust_env=False,
        follow_redirects=False,
        event_hooks={"request": [_carry_little]},
    )


async def _carry_little(request: httpx2.Request) -> None:
    for name in set(request.headers) - CARRIED_HEADERS:
        del request.headers[name]
    request.headers["accept-encoding"] = "identity"


class _Connector(aiohttp.TCPConnector):
    """Ends at once what is left, and keeps nothing that speaks unasked.

    aiohttp says goodbye and waits for an answer, half a minute over TLS, in which a model goes on writing; and it hands
    what came over an idle connection to the next caller, who may be of another tenant. These are its own methods, hence
    the bound on its version.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (kept := await super()._get(key, traces)) is not None:
            if kept.protocol is None or not kept.protocol.should_close:
                break
            kept.close()
        return kept

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if should_close or protocol.should_close:
            protocol.abort()
            should_close = True
        super()._release(key, protocol, should_close=should_close)


class _GuardedNames(AbstractResolver):
    def __init__(self, *, allow_private: bool, resolve: Resolve) -> None:
        self._allow_private = allow_private
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            addresses = await allowed_addresses(host, port, allow_private=self._allow_private, resolve=self._resolve)
        except UNKNOWN_NAME as error:
            raise OSError("the name is not known") from error
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for address in addresses[:MAX_ADDRESSES]
        ]

    async def close(self) -> None:
        """Nothing is kept."""


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        with _named():
            async for part in self._stream:
                left -= len(part)
                if left < 0:
                    most = self._most // 1024**2
                    raise ReplyTooLong(f"The provider's answer is longer than {most} MiB. Ask for less.")
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextmanager
def _named() -> Iterator[None]:
    """The adapter takes a lost connection for a late one, knows no name for what is not HTTP, and quotes the answer."""
    try:
        yield
    except httpx2.UnsupportedProtocol as error:  # a number in a form that is read in more than one way
        raise AddressRefused(NO_ADDRESS) from error
    except (httpx2.TransportError, aiohttp.ClientError) as error:
        cause = error if isinstance(error, aiohttp.ClientError) else error.__cause__
        if isinstance(cause, TimeoutError):
            raise
        if isinstance(cause, aiohttp.ClientConnectorError):
            raise httpx2.ConnectError(str(cause)) from cause
        kind = httpx2.ReadError if isinstance(cause, aiohttp.ClientPayloadError) else httpx2.RemoteProtocolError
        raise kind(type(cause).__name__) from cause


@functools.cache
def _tls() -> ssl.SSLContext:
    """Read once: the list of authorities takes a twentieth of a second."""
    return httpx2.create_ssl_context(trust_env=False)
