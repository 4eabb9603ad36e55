"""A connection that fails has the name of how it failed, on the loop of the web process too."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
import uvloop

from pharos.infra.guarded_client import guarded_client

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


def test_where_nobody_listens_no_connection_is_made(loop: asyncio.Runner) -> None:
    with one_answer(b"") as port, socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(httpx2.ConnectError):
        loop.run(ask(f"http://127.0.0.1:{port}/"))
