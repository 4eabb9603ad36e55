"""Requests to addresses that somebody typed in: none of them may reach what only this machine can reach.

The guard sits where connections are made. A name is resolved once, every address it has is checked, and the connection
goes to one of the checked ones; the name is never looked up again, and TLS and `Host` still carry it. What a check
before the request would miss, a second lookup or a redirect, is a connection like any other here.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import httpcore2
import httpx2

from pharos.infra.connections import Network
from pharos.infra.errors import Invalid, Unavailable
from pharos.infra.logs import get_logger

log = get_logger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""The longest answer that is read: 512 vectors of 3072 numbers, or a streamed answer of 60,000 tokens."""
CONNECT_SECONDS = 5.0
KEEP_IDLE_SECONDS = 30.0

UNKNOWN_NAME = (OSError, UnicodeError)
"""What asking for a name raises; the second one for a name in no form that names have."""
CARRIED_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "anthropic-version", "authorization", "connection", "content-length",
        "content-type", "host", "transfer-encoding", "user-agent", "x-api-key",
    }
)  # fmt: skip
"""What a request to a provider carries; SDKs add what they find in the environment, which is the operator's."""

NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
            "::/128", "fe80::/10", "fec0::/10", "ff00::/8",
            # Where clouds tell a machine its secrets, beyond 169.254.169.254: Alibaba, Oracle, Azure, AWS, Google.
            "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::/32",
        ),
    )
)  # fmt: skip
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7"),
    )
)
METADATA_HOSTS = frozenset(
    {
        "metadata", "metadata.google.internal", "metadata.goog", "metadata.azure.com", "metadata.azure.internal",
        "metadata.platformequinix.com", "metadata.packet.net", "instance-data", "instance-data.ec2.internal",
        "rancher-metadata", "metadata.tencentyun.com",
    }
)  # fmt: skip
OURS = "it belongs to this machine or to a private network"
NOBODY = "no provider can have it"
SECRETS = "it tells this machine's secrets"
OTHER_SERVICES = frozenset(
    {2049, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5900, 6000, 6379, 6667, 10250, 11211, 27017}
)
"""Where something else listens that could take a request for orders; below 1024 only 80 and 443 are allowed."""


class AddressRefused(Invalid):
    """An address that nobody outside may have us call."""

    code = "provider_address_refused"


class ReplyTooLong(Unavailable):
    """More bytes than any honest answer has; the rest was not read."""

    code = "provider_answer_bad"


async def resolve_name(host: str, port: int) -> list[str]:
    """Every address this machine's resolver gives for a name. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def refuse_url(url: str | httpx2.URL) -> None:
    """Raise `AddressRefused` for what the text of a base address alone shows.

    That is scheme, port, name and password, metadata names, and a query: SDKs hang their paths behind it, and the path
    would be the asker's own.
    """
    if any(mark in str(url) for mark in "?#"):
        raise AddressRefused(
            "A provider's address ends with its path, without ? or #. Leave out what comes from there."
        )
    _refuse_request(url)


def _refuse_request(url: str | httpx2.URL) -> None:
    try:
        url = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise AddressRefused("This is not an address. Give one like https://host/v1.") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise AddressRefused("A provider's address begins with https:// or http:// and names a host.")
    if url.userinfo:
        raise AddressRefused("A provider's address holds no name or password. Enter the key in its own field.")
    if _host_name(url.host) in METADATA_HOSTS:
        raise _refused(SECRETS)
    port = url.port or (443 if url.scheme == "https" else 80)
    if port in OTHER_SERVICES or port > 65535 or (port < 1024 and port not in {80, 443}):
        raise AddressRefused(f"Port {port} belongs to another kind of service. Use 80, 443 or one from 1024 on.")


def why_refused(address: Address, *, allow_private: bool) -> str | None:
    """Why nobody may be connected to this address, or None; what it carries inside is looked at as well.

    >>> why_refused(ipaddress.ip_address("::ffff:127.0.0.1"), allow_private=False)
    'it belongs to this machine or to a private network'
    """
    carried: list[Address] = list(_carried(address))
    if any(one in network for network in NEVER for one in (address, *carried)):
        return NOBODY
    for one in carried or [address]:
        if any(one in network for network in PRIVATE):
            if not allow_private:
                return OURS
        elif not one.is_global:
            return NOBODY
    return None


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """Sends requests to allowed addresses only and reads no endless answers.

    `allow_private` opens loopback and private networks; metadata and link-local addresses stay closed. `resolve` and
    `network` are the world: the resolver and what opens connections.
    """

    def __init__(
        self,
        *,
        allow_private: bool,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        resolve: Resolve = resolve_name,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        super().__init__(verify=_tls(), trust_env=False)
        if not isinstance(getattr(self, "_pool", None), httpcore2.AsyncConnectionPool):
            msg = "httpx2 keeps its connections elsewhere now: the guard would not be asked"
            raise TypeError(msg)
        self._max_reply_bytes = max_reply_bytes
        backend = _GuardedNetwork(allow_private=allow_private, resolve=resolve, network=network)
        self._pool = httpcore2.AsyncConnectionPool(ssl_context=_tls(), max_connections=None, network_backend=backend)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        _refuse_request(request.url)
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        if response.headers.get("content-encoding", "identity") != "identity":
            # A thousand times its size may come out of it; counting what arrives would not see that.
            await response.aclose()
            raise ReplyTooLong("The provider's answer is packed, which nobody asked for. Check its address.")
        response.stream = _Bounded(response.stream, self._max_reply_bytes)
        return response


def guarded_client(
    *, allow_private: bool, timeout_seconds: float, transport: GuardedTransport | None = None
) -> httpx2.AsyncClient:
    """A client for SDKs. It follows no redirect: a key belongs to the address it was entered for."""
    return httpx2.AsyncClient(
        transport=transport or GuardedTransport(allow_private=allow_private),
        timeout=httpx2.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)),
        trust_env=False,
        follow_redirects=False,
        event_hooks={"request": [_carry_little]},
    )


async def check_address(url: str, *, allow_private: bool, resolve: Resolve = resolve_name) -> None:
    """What a call of `url` would meet now, for a form that is about to store it.

    Raises `AddressRefused`, or `Unavailable` for a name that nobody knows. Says nothing about later: each call asks
    again.
    """
    refuse_url(url)
    parts = httpx2.URL(url)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await _allowed_addresses(parts.host, parts.port or 443, allow_private=allow_private, resolve=resolve)
    except UNKNOWN_NAME as error:
        raise Unavailable(
            f"No address is known for {parts.host}. Check how it is spelt, and that this machine has a name "
            "server and a way out. Unasked, with `--no-ping` in the terminal, it is saved all the same.",
            code="provider_unreachable",
        ) from error


async def _carry_little(request: httpx2.Request) -> None:
    for name in set(request.headers) - CARRIED_HEADERS:
        del request.headers[name]
    request.headers["accept-encoding"] = "identity"


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    def __init__(self, *, allow_private: bool, resolve: Resolve, network: httpcore2.AsyncNetworkBackend | None) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._network = network or Network()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        ends_at = time.monotonic() + (CONNECT_SECONDS if timeout is None else timeout)
        try:
            async with asyncio.timeout(ends_at - time.monotonic()):
                addresses = await _allowed_addresses(
                    host, port, allow_private=self._allow_private, resolve=self._resolve
                )
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from error
        except UNKNOWN_NAME as error:
            raise httpcore2.ConnectError("the name is not known") from error
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(
                    address, port, ends_at - time.monotonic(), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                log.info("provider.address_failed", error=type(error).__name__, left=len(addresses) - 1)
        return await self._network.connect_tcp(
            addresses[-1], port, ends_at - time.monotonic(), local_address, socket_options
        )

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise _refused("it is a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise ReplyTooLong(f"The provider's answer is longer than {self._most // 1024**2} MiB. Ask for less.")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _allowed_addresses(host: str, port: int, *, allow_private: bool, resolve: Resolve) -> Sequence[str]:
    """The addresses of a name, all of them checked: one that is refused refuses the name."""
    if _host_name(host) in METADATA_HOSTS:
        raise _refused(SECRETS)
    addresses = await resolve(host, port)
    if not addresses:
        raise OSError("no address")
    for address in addresses:
        if reason := why_refused(ipaddress.ip_address(address), allow_private=allow_private):
            log.warning("provider.address_refused", reason=reason)
            raise _refused(reason)
    return addresses


def _carried(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 one stands for: mapped, compatible, NAT64, 6to4, Teredo."""
    if address.version == 4:
        return
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or (number >> 32 == 0 and number > 1):
        yield last
    if number >> 96 == 0x0064FF9B or number >> 80 == 0x0064FF9B0001:
        yield last
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


@functools.cache
def _tls() -> ssl.SSLContext:
    """Read once: the list of authorities takes a twentieth of a second."""
    return httpx2.create_ssl_context(trust_env=False)


def _host_name(host: str) -> str:
    return host.rstrip(".").lower()


def _refused(reason: str) -> AddressRefused:
    way = (
        ", or let the operator allow it: `pharos config set PHAROS_ALLOW_PRIVATE_PROVIDERS true`, then `pharos restart`"
        if reason == OURS
        else ""
    )
    return AddressRefused(f"This address is refused: {reason}. Give a public one{way}.")
