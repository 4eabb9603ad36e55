"""Which addresses that somebody typed in may be called: none that only this machine can reach.

`guarded_client.py` asks where connections are made. A check before, for a form, spares a person a call that would fail.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence

import httpx2

from pharos.infra.errors import Invalid, Unavailable
from pharos.infra.logs import get_logger

log = get_logger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

CONNECT_SECONDS = 5.0

UNKNOWN_NAME = (OSError, UnicodeError)
"""What asking for a name raises; the second one for a name in no form that names have."""

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
NO_ADDRESS = "This is not an address. Give one like https://host/v1."
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
    refuse_request(url)


def refuse_request(url: str | httpx2.URL) -> None:
    """Raise `AddressRefused` for what the text of an address shows: scheme, port, name and password, metadata names."""
    try:
        url = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise AddressRefused(NO_ADDRESS) from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise AddressRefused("A provider's address begins with https:// or http:// and names a host.")
    if url.userinfo:
        raise AddressRefused("A provider's address holds no name or password. Enter the key in its own field.")
    if _host_name(url.host) in METADATA_HOSTS:
        raise _refused(SECRETS)
    _refuse_port(url.port or (443 if url.scheme == "https" else 80))


def refuse_address(address: str, port: int, *, allow_private: bool) -> None:
    """Raise `AddressRefused` for a number, as the resolver gives it, that nobody may be connected to."""
    _refuse_port(port)
    if reason := why_refused(ipaddress.ip_address(address), allow_private=allow_private):
        log.warning("provider.address_refused", reason=reason)
        raise _refused(reason)


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


async def check_address(url: str, *, allow_private: bool, resolve: Resolve = resolve_name) -> None:
    """What a call of `url` would meet now, for a form that is about to store it.

    Raises `AddressRefused`, or `Unavailable` for a name that nobody knows. Says nothing about later: each call asks
    again.
    """
    refuse_url(url)
    parts = httpx2.URL(url)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await allowed_addresses(parts.host, parts.port or 443, allow_private=allow_private, resolve=resolve)
    except UNKNOWN_NAME as error:
        raise Unavailable(
            f"No address is known for {parts.host}. Check how it is spelt, and that this machine has a name "
            "server and a way out. Unasked, with `--no-ping` in the terminal, it is saved all the same.",
            code="provider_unreachable",
        ) from error


async def allowed_addresses(host: str, port: int, *, allow_private: bool, resolve: Resolve) -> Sequence[str]:
    """The addresses of a name, all of them checked: one that is refused refuses the name.

    Raises `AddressRefused` and what is `UNKNOWN_NAME`.
    """
    if _host_name(host) in METADATA_HOSTS:
        raise _refused(SECRETS)
    addresses = await resolve(host, port)
    if not addresses:
        raise OSError("no address")
    for address in addresses:
        refuse_address(address, port, allow_private=allow_private)
    return addresses


def _refuse_port(port: int) -> None:
    if port in OTHER_SERVICES or port > 65535 or (port < 1024 and port not in {80, 443}):
        raise AddressRefused(f"Port {port} belongs to another kind of service. Use 80, 443 or one from 1024 on.")


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


def _host_name(host: str) -> str:
    return host.rstrip(".").lower()


def _refused(reason: str) -> AddressRefused:
    way = (
        ", or let the operator allow it: `pharos config set PHAROS_ALLOW_PRIVATE_PROVIDERS true`, then `pharos restart`"
        if reason == OURS
        else ""
    )
    return AddressRefused(f"This address is refused: {reason}. Give a public one{way}.")
