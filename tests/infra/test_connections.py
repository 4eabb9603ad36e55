"""Connections of HTTP clients: nothing is lost and nobody waits for ever, on the loop of the web process too."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpcore2
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
async def connected(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[httpcore2.AsyncNetworkStream]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
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
            while not connection._is_paused:  # type: ignore[attr-defined]  # noqa: ASYNC110 - it tells nobody
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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the host `lamp.example`, with its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lamp.example")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("lamp.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "lamp.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return path


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_all_is_read_in_order_over_tls_however_late(run: Callable[[Scenario], None], certificate: Path) -> None:
    sent = bytes(range(256)) * 8192

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async def scenario() -> None:
        async with connected(serve, tls=server_tls(certificate)) as plain:
            connection = await plain.start_tls(client_tls(certificate), "lamp.example", timeout=5)
            read = await connection.read(1, timeout=5)
            while not connection._is_paused:  # type: ignore[attr-defined]  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            while piece := await connection.read(100_000, timeout=5):
                read += piece
            assert read == sent

    run(scenario)


def test_a_certificate_of_another_name_is_a_connect_error(run: Callable[[Scenario], None], certificate: Path) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def scenario() -> None:
        async with connected(serve, tls=server_tls(certificate)) as plain:
            with pytest.raises(httpcore2.ConnectError):
                await plain.start_tls(client_tls(certificate), "other.example", timeout=5)

    run(scenario)


def test_a_handshake_that_nobody_answers_is_left_in_time(run: Callable[[Scenario], None], certificate: Path) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async def scenario() -> None:
        async with connected(serve) as plain:
            with pytest.raises(httpcore2.ConnectTimeout):
                await plain.start_tls(client_tls(certificate), "lamp.example", timeout=0.05)
            await closed.wait()

    run(scenario)
