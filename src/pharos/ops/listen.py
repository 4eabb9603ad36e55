"""The address the web process listens on: whether it can be had, and how this machine reaches it."""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil

from pharos.infra.errors import Conflict, Invalid
from pharos.infra.settings import Settings

EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
"""Hosts that stand for all addresses, and the loopback address that answers for them."""


def local_url(settings: Settings) -> str:
    """Where this machine reaches its own web process: `http://127.0.0.1:8000`, `http://[::1]:8000`."""
    host = EVERY_ADDRESS.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def refuse_busy_port(settings: Settings) -> None:
    """Raise `Conflict` naming who holds the port and the next free one, `Invalid` when the host is not ours."""
    host, port = settings.host, settings.port
    if _is_free(host, port):
        return
    free = next((other for other in range(port + 1, min(port + 100, 65536)) if _is_free(host, other)), None)
    hint = f" Port {free} is free: PHAROS_PORT={free} pharos up." if free else ""
    raise Conflict(f"Port {port} is in use by {_holder(port)}.{hint}", code="port_in_use", port=port)


def _is_free(host: str, port: int) -> bool:
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in addresses:
            _bind(family, address)
    except OSError as error:  # a name that means nothing is one too
        if error.errno == errno.EADDRINUSE:
            return False
        raise Invalid(
            f"Pharos cannot listen on PHAROS_HOST={host}, port {port}: {error.strerror}. Use an address of this "
            "machine, 0.0.0.0 for all of them, and a port from 1024 on.",
            code="bad_host",
        ) from error
    return True


def _bind(family: int, address: object) -> None:
    """Take the address for a moment, as the web process will: an IPv6 address stands for itself alone."""
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)  # type: ignore[arg-type]


def _holder(port: int) -> str:
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            with contextlib.suppress(psutil.Error):
                return f"process {connection.pid} ({' '.join(psutil.Process(connection.pid).cmdline()[:4])})"
    return "another process"
