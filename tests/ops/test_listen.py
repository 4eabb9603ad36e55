"""The address to listen on: any of this machine, reached where it is, refused with the reason when it is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pharos.infra.errors import Conflict, Invalid
from pharos.infra.settings import Settings
from pharos.ops.listen import local_url, refuse_busy_port

WITHOUT_IPV6 = not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists()


def settings_for(host: str, port: int = 8000) -> Settings:
    return Settings(_env_file=None, host=host, port=port)


@pytest.mark.parametrize(
    ("host", "url", "base_url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000", "http://localhost:8000"),
        ("localhost", "http://localhost:8000", "http://localhost:8000"),
        ("127.0.0.2", "http://127.0.0.2:8000", "http://127.0.0.2:8000"),
        ("::", "http://[::1]:8000", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000", "http://[::1]:8000"),
        ("fd00::2", "http://[fd00::2]:8000", "http://[fd00::2]:8000"),
    ],
)
def test_each_host_is_reached_where_it_listens(host: str, url: str, base_url: str) -> None:
    assert (local_url(settings_for(host)), settings_for(host).base_url) == (url, base_url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost"]
    + [pytest.param(host, marks=pytest.mark.skipif(WITHOUT_IPV6, reason="no IPv6 here")) for host in ("::1", "::")],
)
def test_a_taken_port_is_found_on_the_address_itself(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(Conflict, match=rf"Port {port} is in use by process \d+"):
            refuse_busy_port(settings_for(host, port))
    refuse_busy_port(settings_for(host, port))


def test_a_port_taken_on_another_address_is_free_here() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.3", 0))
        listener.listen()
        refuse_busy_port(settings_for("127.0.0.2", listener.getsockname()[1]))


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused_with_the_setting(host: str) -> None:
    with pytest.raises(Invalid, match=f"PHAROS_HOST={host}"):
        refuse_busy_port(settings_for(host))
