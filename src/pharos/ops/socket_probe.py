"""Whether `/ws` can be opened from here: the handshake, and that nobody's socket is closed with 1008."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
from urllib.parse import urlsplit

from pharos.infra.errors import Unavailable

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, section 1.3."""
CLOSE_FRAME = 0x88
NOBODY = 1008
SECONDS = 5.0
SEE_PAGE = "See the runbook's page “WebSocket not connecting”."


async def probe_socket(url: str) -> None:
    """Open `/ws` of the server at `url` as nobody. Raises `Unavailable` with what came instead."""
    place = urlsplit(url)
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(place.hostname, port, ssl=place.scheme == "https" or None)
            try:
                await _shake_hands(reader, writer, place.netloc)
                head = await reader.readexactly(2)
                payload = await reader.readexactly(head[1] & 0x7F)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError as error:
        raise Unavailable(f"{url}/ws did not answer within {SECONDS:.0f} seconds. {SEE_PAGE}") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"{url}/ws cannot be reached: {error}. Is the web process up? `pharos status`") from error
    if head[0] != CLOSE_FRAME or int.from_bytes(payload[:2]) != NOBODY:
        raise Unavailable(f"{url}/ws opened and did not ask who comes: another program answers there. {SEE_PAGE}")


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    key = base64.b64encode(secrets.token_bytes(16))
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key.decode()}",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    if status.split(" ")[1:2] != ["101"]:
        raise Unavailable(f"The upgrade of /ws was answered with “{status}” instead of 101. {SEE_PAGE}")
    # RFC 6455 names SHA-1; nothing is kept secret by it.
    expected = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID, usedforsecurity=False).digest()).decode()
    if not any(line.lower().startswith("sec-websocket-accept:") and expected in line for line in headers):
        raise Unavailable(f"The upgrade of /ws was not answered by a WebSocket server. {SEE_PAGE}")
