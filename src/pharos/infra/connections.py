"""Connections of an HTTP client, as plain protocols of the event loop.

httpcore2's own ask the kernel twice for every piece that comes, to listen and to listen no more, and make a cancel
scope around each wait; of an answer that comes word by word that is a large part of the cost.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore2

MOST_UNREAD_BYTES = 256 * 1024
"""Beyond it the other side waits until somebody reads."""


class Network(httpcore2.AsyncNetworkBackend):
    """Opens connections over TCP. Raises httpcore2's `ConnectError` and `ConnectTimeout`."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        local = (local_address, 0) if local_address is not None else None
        try:
            async with asyncio.timeout(timeout):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, host, port, local_addr=local)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        try:
            for option in socket_options or ():
                connection.get_extra_info("socket").setsockopt(*option)
        except OSError as error:
            await connection.aclose()
            raise httpcore2.ConnectError(str(error)) from error
        return connection

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Connection(asyncio.Protocol, httpcore2.AsyncNetworkStream):
    """One reader and one writer at a time. The loop listens all the time, so it knows when the other side has gone."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._lost_by: Exception | None = None
        self._unread = bytearray()
        self._is_over = False
        self._is_lost = False
        self._is_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._can_write = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has come, at most `max_bytes`; empty at the end. Raises `ReadError` and `ReadTimeout`."""
        if not self._unread and not self._is_over:
            self._reader = asyncio.get_running_loop().create_future()
            await _until(self._reader, timeout, httpcore2.ReadTimeout("nothing came in time"))
        if not self._unread:
            if self._is_lost:
                raise httpcore2.ReadError("the connection was lost") from self._lost_by
            return b""
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if self._is_paused and not self._unread and not self._is_over:
            self._is_paused = False
            transport = self._open_transport(httpcore2.ReadError)
            if not transport.is_closing():
                transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Returns as soon as there is room for more. Raises `WriteError` and `WriteTimeout`."""
        if not buffer:
            return
        transport = self._open_transport(httpcore2.WriteError)
        if not transport.is_closing():
            transport.write(buffer)
            if not self._can_write:
                self._writer = asyncio.get_running_loop().create_future()
                await _until(self._writer, timeout, httpcore2.WriteTimeout("it was not taken in time"))
        if transport.is_closing():
            raise httpcore2.WriteError("the connection was lost") from self._lost_by

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """The same connection, encrypted. Raises `ConnectError` and `ConnectTimeout`; it is closed then."""
        transport = self._open_transport(httpcore2.ConnectError)
        try:
            async with asyncio.timeout(timeout):
                loop = asyncio.get_running_loop()
                self._transport = await loop.start_tls(transport, self, ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        except OSError as error:  # those of TLS are among them
            raise httpcore2.ConnectError(str(error)) from error
        return self

    async def aclose(self) -> None:
        self._is_over = self._is_lost = True
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # what httpcore2 asks of an idle connection: then the other side has closed it
            return bool(self._unread) or self._is_over
        if self._transport is None:
            return None
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._transport.get_extra_info(names.get(info, info))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > MOST_UNREAD_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        _settle(self._reader)

    def eof_received(self) -> None:
        self._is_over = True
        _settle(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._is_lost = self._is_lost or exc is not None
        self._lost_by = exc
        self._wake()

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        _settle(self._writer)

    def _wake(self) -> None:
        _settle(self._reader)
        _settle(self._writer)

    def _open_transport(self, failure: type[Exception]) -> asyncio.Transport:
        if self._transport is None:
            raise failure("the connection is not open")
        return self._transport


async def _until(told: asyncio.Future[None], seconds: float | None, late: Exception) -> None:
    """Wait without `asyncio.timeout`, which costs more than the rest of reading a word."""
    if seconds is None:
        await told
        return
    timer = asyncio.get_running_loop().call_later(seconds, _fail, told, late)
    try:
        await told
    finally:
        timer.cancel()


def _settle(told: asyncio.Future[None] | None) -> None:
    if told is not None and not told.done():
        told.set_result(None)


def _fail(told: asyncio.Future[None], late: Exception) -> None:
    if not told.done():
        told.set_exception(late)
