"""A connection that fails has the name of how it failed, on the loop of the web process too."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
import uvloop
from aiohttp import AddrInfoType
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pharos.infra.errors import Unavailable
from pharos.infra.guarded_client import GuardedTransport, guarded_client, open_socket
from pharos.providers.contract import ChatMessage, ChatRequest
from pharos.providers.openai import OpenAIChat

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RESET = b"reset"
RESETS_AT_CLOSE = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def one_answer(answer: bytes | None) -> Iterator[int]:
    """The port of somebody who answers one request with these bytes and closes; with None says nothing."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            if answer is None:
                connection.recv(65536)  # until the client leaves
                return
            connection.sendall(answer.removesuffix(RESET))
            if answer.endswith(RESET):
                connection.setsockopt(*RESETS_AT_CLOSE)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield listening.getsockname()[1]
        finally:
            serving.join(timeout=10)


async def ask(url: str) -> bytes:
    async with guarded_client(allow_private=True, timeout_seconds=0.5) as client:
        return (await client.post(url)).content


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


@pytest.mark.parametrize(
    ("answer", "scheme", "failure"),
    [
        pytest.param(None, "https", httpx2.ConnectTimeout, id="no handshake"),
        pytest.param(b"hello", "https", httpx2.ConnectError, id="another protocol"),
        pytest.param(None, "http", httpx2.ReadTimeout, id="no answer"),
        pytest.param(HEAD + b"5\r\nhello\r\n", "http", httpx2.ReadError, id="cut"),
        pytest.param(HEAD + b"5\r\nhello\r\n" + RESET, "http", httpx2.ReadError, id="reset"),
        pytest.param(HEAD + b"hello\r\n", "http", httpx2.RemoteProtocolError, id="no length"),
        pytest.param(b"", "http", httpx2.RemoteProtocolError, id="closed"),
        pytest.param(RESET, "http", httpx2.RemoteProtocolError, id="reset before an answer"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", "http", httpx2.RemoteProtocolError, id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "http", httpx2.RemoteProtocolError, id="long header"),
    ],
)
def test_each_failure_has_its_name(
    loop: asyncio.Runner, answer: bytes | None, scheme: str, failure: type[Exception]
) -> None:
    with one_answer(answer) as port, pytest.raises(failure) as raised:
        loop.run(ask(f"{scheme}://127.0.0.1:{port}/"))
    assert type(raised.value) is failure
    assert not re.search("hello|SSH", str(raised.value)), "what was answered is repeated to nobody"


def test_a_request_that_nobody_takes_is_left_in_time_and_at_once(loop: asyncio.Runner) -> None:
    body, taken, left = b"x" * 900_000, 0, threading.Event()

    def serve() -> None:
        nonlocal taken
        connection, _ = listening.accept()
        with connection, suppress(ConnectionError):
            left.wait(10)
            while piece := connection.recv(65536):
                taken += len(piece)

    def narrow(address: AddrInfoType) -> socket.socket:
        made = open_socket(address)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return made

    async def leave(port: int) -> None:
        transport = GuardedTransport(allow_private=True, open_socket=narrow)
        async with guarded_client(allow_private=True, timeout_seconds=0.2, transport=transport) as client:
            with pytest.raises(httpx2.WriteTimeout):
                await client.post(f"http://127.0.0.1:{port}/", content=body)
            left.set()
            await asyncio.to_thread(serving.join, 10)

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        loop.run(leave(listening.getsockname()[1]))
    assert taken < len(body), "what was left goes on being sent"


def test_an_answer_that_came_unasked_is_nobodys(loop: asyncio.Runner) -> None:
    came = threading.Event()
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in (1, 2)]

    def serve() -> None:
        first, _ = listening.accept()
        with first:
            first.recv(65536)
            first.sendall(answers[0])
            came.wait(10)
            first.sendall(answers[0])
            unasked.set()
            second, _ = listening.accept()
            with second:
                second.recv(65536)
                second.sendall(answers[1])

    async def ask_twice(url: str) -> list[bytes]:
        async with guarded_client(allow_private=True, timeout_seconds=5) as client:
            heard = [(await client.post(url)).content]
            came.set()
            await asyncio.to_thread(unasked.wait, 10)
            for _ in range(3):
                await asyncio.sleep(0)  # the loop reads what has come
            return [*heard, (await client.post(url)).content]

    unasked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=serve)
        serving.start()
        assert loop.run(ask_twice(f"http://127.0.0.1:{listening.getsockname()[1]}/")) == [b"1", b"2"]
        serving.join(10)


def test_nobody_is_asked_whose_certificate_no_authority_signed(loop: asyncio.Runner, tmp_path: Path) -> None:
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection, suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
                heard.append(secure.recv(65536))

    async def ask_as_a_model(url: str) -> None:
        chat = OpenAIChat(name="lamp", base_url=url, key="k", allows_private=True)
        with pytest.raises(Unavailable) as refused:
            _ = [piece async for piece in chat.stream(ChatRequest((ChatMessage("user", "Hello?"),)))]
        await chat.close()
        assert refused.value.code == "provider_unreachable"

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/"
        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            loop.run(ask(url))
        loop.run(ask_as_a_model(url))
        serving.join(10)
    assert b"".join(heard) == b""


def make_certificate(folder: Path) -> Path:
    """Of this address, with its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lamp")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "lamp.pem").write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return folder / "lamp.pem"


def test_where_nobody_listens_no_connection_is_made(loop: asyncio.Runner) -> None:
    with one_answer(b"") as port, socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(httpx2.ConnectError):
        loop.run(ask(f"http://127.0.0.1:{port}/"))
