"""Nobody's address reaches what only this machine can reach: a canary listens, and every road but one leads to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import AddrInfoType
from tests.provider_server import provider_server

from pharos.infra.address_guard import (
    AddressRefused,
    check_address,
    refuse_url,
    resolve_name,
)
from pharos.infra.errors import Unavailable
from pharos.infra.guarded_client import GuardedTransport, ReplyTooLong, guarded_client
from pharos.providers.anthropic import AnthropicChat
from pharos.providers.contract import ChatMessage, ChatRequest, VectorRequest
from pharos.providers.openai import OpenAIChat, OpenAIVectors

PUBLIC = "93.184.215.14"
PUBLIC_6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
NAMES: dict[str, list[str]] = {
    "provider.example": [PUBLIC],
    "loopback.example": ["127.0.0.1"],
    "loopback6.example": ["::1"],
    "first-is-public.example": [PUBLIC, "127.0.0.1"],
    "last-is-public.example": ["10.0.0.8", PUBLIC],
    "public-and-mapped.example": [PUBLIC, "::ffff:127.0.0.1"],
    "public-and-metadata.example": [PUBLIC_6, "169.254.169.254"],
    "metadata.example": ["169.254.169.254"],
    "printer.example": ["192.168.1.9"],
    "scoped.example": ["fe80::1%1"],
    "localhost": ["127.0.0.1"],
    "localtest.me": ["127.0.0.1"],
}


def listed(text: str) -> list[str]:
    return text.split()


OURS = listed("""
http://127.0.0.1:PORT/  http://127.0.0.2:PORT/  http://127.255.255.254:PORT/  https://127.0.0.1:PORT/
http://localhost:PORT/  http://LOCALHOST:PORT/  http://localhost.:PORT/  http://localtest.me:PORT/
http://2130706433:PORT/  http://0x7f000001:PORT/  http://017700000001:PORT/  http://0177.0.0.1:PORT/
http://0x7f.0.0.1:PORT/  http://0x7f.1:PORT/  http://127.1:PORT/  http://127.0.1:PORT/
http://0177.0x0.0.01:PORT/  http://[::1]:PORT/  http://[0:0:0:0:0:0:0:1]:PORT/  http://[::ffff:127.0.0.1]:PORT/
http://[::ffff:7f00:1]:PORT/  http://[::127.0.0.1]:PORT/  http://[64:ff9b::7f00:1]:PORT/
http://[64:ff9b:1::7f00:1]:PORT/  http://[2002:7f00:1::]:PORT/  http://[2001:0:5ef5:79fb:0:0:80ff:fffe]:PORT/
http://10.0.0.1:PORT/  http://10.255.255.255/  http://172.16.0.1:PORT/  http://172.31.255.255:PORT/
http://192.168.0.1:PORT/  http://192.168.255.255/  http://100.64.0.1:PORT/  http://100.127.255.254:PORT/
http://[fc00::1]:PORT/  http://[fd12:3456::1]:PORT/  http://[::ffff:10.0.0.1]:PORT/
http://[::ffff:c0a8:101]:PORT/  http://0x0a000001:PORT/  http://3232235777:PORT/  http://0300.0250.1.1:PORT/
http://loopback.example:PORT/  http://loopback6.example:PORT/  http://first-is-public.example:PORT/
http://last-is-public.example:PORT/  http://public-and-mapped.example:PORT/  http://printer.example:PORT/
http://loopback.example.:PORT/  http://LoopBack.Example:PORT/  http://１２７.０.０.１:PORT/  http://①②⑦.⓪.⓪.①:PORT/
http://127。0。0。1:PORT/  http://127%2e0%2e0%2e1:PORT/  http://ⓛocalhost:PORT/
""")
"""Of this machine or of a private network, written in every way; PORT is the canary's."""

NEVER = listed("""
http://0.0.0.0:PORT/  http://0:PORT/  http://0x0:PORT/  http://[::]:PORT/  http://[::ffff:0.0.0.0]:PORT/
http://169.254.169.254/latest/meta-data/  http://169.254.170.2/v2/credentials  http://169.254.0.1:PORT/
http://2852039166/  http://0xa9fea9fe/  http://0251.0376.0251.0376/  http://[::ffff:169.254.169.254]/
http://[::ffff:a9fe:a9fe]/  http://[64:ff9b::a9fe:a9fe]/  http://[2002:a9fe:a9fe::]/  http://[fd00:ec2::254]/
http://[fe80::1]:PORT/  http://[fec0::1]:PORT/  http://scoped.example:PORT/  http://100.100.100.200/
http://192.0.0.192/  http://168.63.129.16/  http://224.0.0.1:PORT/  http://239.255.255.250:PORT/
http://[ff02::1]:PORT/  http://240.0.0.1:PORT/  http://255.255.255.255:PORT/  http://192.0.2.1:PORT/
http://198.18.0.1:PORT/  http://[2001:db8::1]:PORT/  http://[100::1]:PORT/
http://metadata.google.internal/computeMetadata/v1/  http://METADATA.google.internal./  http://metadata/
http://instance-data/latest/  http://metadata.example/  http://public-and-metadata.example/
""")
"""Nobody's provider, whatever the operator allows."""

CROOKED = listed("""
file:///etc/passwd  gopher://127.0.0.1:PORT/_x  ftp://127.0.0.1:PORT/  dict://127.0.0.1:PORT/
ldap://127.0.0.1:PORT/  ws://127.0.0.1:PORT/  unix:///run/postgres  //127.0.0.1:PORT/  127.0.0.1:PORT/
http:///path  http://  http://provider.example@127.0.0.1:PORT/  http://provider.example:80@127.0.0.1:PORT/
http://user:password@provider.example/  http://127.0.0.1:PORT\\@provider.example/  http://provider.example:22/
http://provider.example:25/  http://provider.example:6379/  http://provider.example:5432/
http://provider.example:11211/  http://provider.example:99999/
""")
"""Refused by their text alone."""


@dataclass
class Canary:
    """Listens on all addresses of this machine; `hits` are connections."""

    port: int = 0
    hits: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        await reader.read(4096)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret")
        writer.close()


class Detour(socket.socket):
    """Leads to `port` of this machine wherever it is sent."""

    port = 0

    def connect(self, _address: Any) -> None:
        super().connect(("127.0.0.1" if self.family == socket.AF_INET else "::1", self.port))


@dataclass
class Roads:
    """Makes real connections, each to the canary unless its address is in `leads_to`; nothing leaves the machine."""

    canary: Canary
    leads_to: dict[str, int] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    closed: str | None = None

    def open_socket(self, address: AddrInfoType) -> socket.socket:
        host = str(address[-1][0])
        if host == self.closed:
            raise OSError("no way there")
        self.taken.append(host)
        detour = Detour(*address[:3])
        detour.port = self.leads_to.get(host, self.canary.port)
        return detour


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    canary = Canary()
    server = await asyncio.start_server(canary.answer, "0.0.0.0", 0)
    canary.port = server.sockets[0].getsockname()[1]
    both = await asyncio.start_server(canary.answer, "::1", canary.port)
    async with server, both:
        yield canary


async def resolve(host: str, port: int) -> Sequence[str]:
    """The names of this file; forms of numbers go to the resolver of this machine, which reads them without asking."""
    known = NAMES.get(host.lower().rstrip("."))
    return known if known is not None else await resolve_name(host, port)


def guarded(roads: Roads, *, allow_private: bool = False) -> httpx2.AsyncClient:
    transport = GuardedTransport(allow_private=allow_private, resolve=resolve, open_socket=roads.open_socket)
    return guarded_client(allow_private=allow_private, timeout_seconds=5, transport=transport)


async def answers(urls: list[str], roads: Roads, *, allow_private: bool = False) -> dict[str, str]:
    """What became of a request to each address: the code of its refusal, or another error's name."""
    found = {}
    async with guarded(roads, allow_private=allow_private) as client:
        for url in urls:
            try:
                found[url] = (await client.get(url.replace("PORT", str(roads.canary.port)))).text
            except AddressRefused as error:
                found[url] = error.code
            except (httpx2.InvalidURL, httpx2.ConnectError) as error:
                found[url] = type(error).__name__
    return found


async def test_no_connection_is_made_to_what_a_provider_cannot_be(canary: Canary) -> None:
    cases, roads = [*OURS, *NEVER, *CROOKED], Roads(canary)
    assert len(set(cases)) >= 110
    found = await answers(cases, roads)
    assert (canary.hits, roads.taken) == (0, [])
    others = {url: word for url, word in found.items() if word != "provider_address_refused"}
    assert set(others.values()) <= {"InvalidURL", "ConnectError"}, others
    unread = [url for url, word in others.items() if word == "ConnectError"]
    assert all(not url.isascii() or "%" in url for url in unread), f"unknown to the resolver, not refused: {unread}"


@pytest.mark.parametrize(
    "url", ["http://10.0.0.5/admin/export?x=", "http://10.0.0.5/?", "https://provider.example/v1#"]
)
async def test_a_base_address_has_no_query_behind_which_the_sdks_path_would_vanish(url: str) -> None:
    with pytest.raises(AddressRefused):
        refuse_url(url)
    with pytest.raises(AddressRefused):
        await check_address(url, allow_private=True, resolve=resolve)
    with pytest.raises(AddressRefused):
        OpenAIChat(name="m", base_url=url, key="k", allows_private=True)


async def test_the_operators_setting_is_named_where_it_can_help_and_nowhere_else() -> None:
    for url, helps in (("http://10.0.0.5/v1", True), ("http://169.254.169.254/v1", False), ("http://metadata/", False)):
        with pytest.raises(AddressRefused) as refused:
            await check_address(url, allow_private=False, resolve=resolve)
        assert ("`pharos config set PHAROS_ALLOW_PRIVATE_PROVIDERS true`" in refused.value.message) is helps


async def test_metadata_and_link_local_stay_closed_where_private_providers_are_allowed(canary: Canary) -> None:
    roads = Roads(canary)
    found = await answers(NEVER, roads, allow_private=True)
    assert (canary.hits, roads.taken) == (0, [])
    assert set(found.values()) <= {"provider_address_refused", "InvalidURL"}, found


async def test_with_the_guard_off_these_addresses_do_reach_this_machine(canary: Canary) -> None:
    elsewhere = ("https", "localtest", "localhost.:", "::127", "64:ff9b", "2002:", "2001:")
    forms = [url for url in OURS[:26] if not any(part in url for part in elsewhere)]
    forms += ["http://0.0.0.0:PORT/", "http://0:PORT/", "http://[::ffff:0.0.0.0]:PORT/"]
    reached = 0
    async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
        for url in forms:
            try:
                await client.get(url.replace("PORT", str(canary.port)))
                reached += 1
            except (httpx2.TransportError, httpx2.InvalidURL):
                continue
    assert reached == canary.hits
    assert reached >= 15, "the canary hears nothing, so its silence proves nothing"


async def test_what_the_operator_allows_is_reached(canary: Canary) -> None:
    async with guarded(Roads(canary), allow_private=True) as client:
        for host in ("127.0.0.1", "localhost", "[::1]", "192.168.1.9", "[fd12:3456::1]", "printer.example"):
            assert (await client.get(f"http://{host}:{canary.port}/")).text == "secret"
    assert canary.hits == 6


async def test_a_name_that_changes_between_check_and_call_is_looked_up_once_and_pinned(canary: Canary) -> None:
    """A check before the call would pass, and the call would then ask again: the control at the end shows it."""
    asked = 0

    async def rebind(_host: str, _port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return [PUBLIC] if asked % 2 else ["127.0.0.1"]

    with provider_server() as provider:
        roads = Roads(canary, {PUBLIC: provider.port})
        transport = GuardedTransport(allow_private=False, resolve=rebind, open_socket=roads.open_socket)
        # Else the open connection is used again and nothing is looked up.
        one_each = {"Connection": "close"}
        async with guarded_client(allow_private=False, timeout_seconds=5, transport=transport) as client:
            for number in range(1, 9):
                if number % 2:
                    answer = await client.get("http://rebind.example/v1/models", headers=one_each)
                    assert answer.status_code == 200
                else:
                    with pytest.raises(AddressRefused):
                        await client.get("http://rebind.example/v1/models", headers=one_each)
                assert asked == number
        assert canary.hits == 0
        assert provider.asked[0].headers["host"] == "rebind.example"
    await check_address("http://rebind.example/", allow_private=False, resolve=rebind)
    (seen,) = await rebind("rebind.example", 80)
    async with httpx2.AsyncClient(trust_env=False) as naive:
        await naive.get(f"http://{seen}:{canary.port}/")
    assert canary.hits == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:PORT/",
        "http://169.254.169.254/latest/",
        "http://printer.example/",
        "//[::1]:PORT/",
        "file:///e",
    ],
)
async def test_a_redirect_is_checked_like_any_other_address(target: str, canary: Canary) -> None:
    with provider_server() as provider:
        provider.models_fault, provider.redirect_to = "redirect", target.replace("PORT", str(canary.port))
        roads = Roads(canary, {PUBLIC: provider.port})
        async with guarded(roads) as client:
            answer = await client.get("http://provider.example/v1/models")
            assert answer.status_code == 307, "a client for providers stays where its key belongs"
            with pytest.raises((AddressRefused, httpx2.UnsupportedProtocol)):
                await client.get("http://provider.example/v1/models", follow_redirects=True)
        assert (canary.hits, set(roads.taken)) == (0, {PUBLIC})


async def test_every_path_of_every_kind_of_provider_is_guarded(canary: Canary) -> None:
    request = ChatRequest(messages=(ChatMessage("user", "Hello?"),))
    for host in ("127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254"):
        url = f"http://{host}:{canary.port}/v1"
        vectors = OpenAIVectors(name="m", base_url=url, key="k")
        with pytest.raises(AddressRefused):
            await vectors.embed(VectorRequest(("x",)))
        await vectors.close()
        for kind in (OpenAIChat, AnthropicChat):
            chat = kind(name="m", base_url=url, key="k")
            with pytest.raises(AddressRefused):
                await chat.list_models()
            with pytest.raises(AddressRefused):
                _ = [piece async for piece in chat.stream(request)]
            await chat.close()
    assert canary.hits == 0


async def test_a_form_is_told_before_anything_is_stored() -> None:
    await check_address("https://provider.example/v1", allow_private=False, resolve=resolve)
    await check_address("http://localhost:11434/v1", allow_private=True, resolve=resolve)
    for url in ("http://first-is-public.example/v1", "http://localhost:11434/v1", "http://[::1"):
        with pytest.raises(AddressRefused) as refused:
            await check_address(url, allow_private=False, resolve=resolve)
        assert refused.value.message.endswith(".")

    async def nobody(_host: str, _port: int) -> Sequence[str]:
        raise OSError

    for url, ask in (("https://provder.example", nobody), (f"https://{'a' * 70}.example", resolve)):
        with pytest.raises(Unavailable, match="spelt"):
            await check_address(url, allow_private=False, resolve=ask)


@pytest.mark.parametrize("url", ["https://api.openai.com/v1", "http://provider.example:8080", "https://bücher.example"])
def test_ordinary_addresses_pass(url: str) -> None:
    refuse_url(url)


async def test_the_second_address_is_tried_where_the_first_does_not_answer(canary: Canary) -> None:
    roads = Roads(canary, closed=PUBLIC_6)

    async def both(_host: str, _port: int) -> Sequence[str]:
        return [PUBLIC_6, PUBLIC]

    transport = GuardedTransport(allow_private=False, resolve=both, open_socket=roads.open_socket)
    async with guarded_client(allow_private=False, timeout_seconds=5, transport=transport) as client:
        assert (await client.get("http://provider.example/")).text == "secret"


async def test_tls_asks_for_the_name_and_not_for_the_pinned_address(canary: Canary, tmp_path: Path) -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    server = await asyncio.start_server(canary.answer, "127.0.0.1", 0, ssl=context)
    async with server:
        roads = Roads(canary, {PUBLIC: server.sockets[0].getsockname()[1]})
        async with guarded(roads) as client:
            with pytest.raises(httpx2.ConnectError):  # it has no certificate to show
                await client.get("https://provider.example/")
    assert (asked, roads.taken) == (["provider.example"], [PUBLIC])


async def test_an_answer_without_end_is_not_read_to_its_end(canary: Canary) -> None:
    with provider_server() as provider:
        provider.models = ["m" * 1000] * 2000
        transport = GuardedTransport(
            allow_private=False,
            resolve=resolve,
            open_socket=Roads(canary, {PUBLIC: provider.port}).open_socket,
            max_reply_bytes=100_000,
        )
        async with guarded_client(allow_private=False, timeout_seconds=5, transport=transport) as client:
            with pytest.raises(ReplyTooLong):
                await client.get("http://provider.example/v1/models")


async def test_a_proxy_of_the_environment_is_no_way_around(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    chat = OpenAIChat(name="m", base_url="http://169.254.169.254/v1", key="k")
    with pytest.raises(AddressRefused):
        await chat.list_models()
    await chat.close()
    assert canary.hits == 0
