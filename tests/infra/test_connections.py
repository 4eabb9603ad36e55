"""Connections of HTTP clients: nothing is lost and nobody waits for ever, on the loop of the web process too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpcore2
import pytest
import uvloop

from pharos.infra.connections import MOST_UNREAD_BYTES, Network

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Scenario = Callable[[], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    async def bounded(scenario: Scenario) -> None:
        async with asyncio.timeout(10):
            await scenario()

    def run(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded(scenario))

    return run


@asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[httpcore2.AsyncNetworkStream]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connection = await Network().connect_tcp("127.0.0.1", server.sockets[0].getsockname()[1], timeout=5)
        yield connection
        await connection.aclose()


def test_all_that_was_sent_is_read_in_order_however_late_and_then_the_end(run: Callable[[Scenario], None]) -> None:
    sent = bytes(range(256)) * (MOST_UNREAD_BYTES // 64)

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async def scenario() -> None:
        async with connected(serve) as connection:
            read = await connection.read(1, timeout=5)
            while not connection.is_paused:  # type: ignore[attr-defined]  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            while piece := await connection.read(10_000, timeout=5):
                read += piece
            assert read == sent
            assert connection.get_extra_info("is_readable")

    run(scenario)


def test_a_silent_other_side_is_left_in_time_and_can_be_read_again(run: Callable[[Scenario], None]) -> None:
    speak = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await speak.wait()
        writer.write(b"late")
        writer.close()

    async def scenario() -> None:
        async with connected(serve) as connection:
            with pytest.raises(httpcore2.ReadTimeout):
                await connection.read(100, timeout=0.01)
            assert not connection.get_extra_info("is_readable")
            speak.set()
            assert await connection.read(100, timeout=5) == b"late"

    run(scenario)


def test_who_reads_nothing_is_not_written_to_for_ever(run: Callable[[Scenario], None]) -> None:
    done = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async def scenario() -> None:
        async with connected(serve) as connection:
            with pytest.raises(httpcore2.WriteTimeout):
                await connection.write(b"x" * 50_000_000, timeout=0.05)
            done.set()

    run(scenario)


def test_a_closed_connection_is_an_error_to_its_reader_and_to_its_writer(run: Callable[[Scenario], None]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def scenario() -> None:
        async with connected(serve) as connection:
            reading = asyncio.create_task(connection.read(100))
            await asyncio.sleep(0)
            await connection.aclose()
            with pytest.raises(httpcore2.ReadError):
                await reading
            with pytest.raises(httpcore2.WriteError):
                await connection.write(b"x")

    run(scenario)


def test_nobody_there_is_a_connect_error(run: Callable[[Scenario], None]) -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(httpcore2.ConnectError):
            await Network().connect_tcp("127.0.0.1", port, timeout=5)

    run(scenario)
