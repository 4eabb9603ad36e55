"""Choose the reader, run it within its limits, and turn every way it can fail into words."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pharos.infra.logs import get_logger
from pharos.library.extract.extracted import NO_TEXT, REASONS, Extracted, Limits, unreadable
from pharos.library.extract.plain import read_plain
from pharos.library.extract.sniff import EMPTY, OLE, OLE_ENCRYPTED, TEXT_TYPES, UNKNOWN, mislabelled, sniff_file

log = get_logger(__name__)

# Nothing of ours reaches the parser: no secrets, no proxies, no home.
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}
DEFAULT_LIMITS = Limits()
MAX_IDLE = 2
"""Children kept for the next file; each holds about 45 MB, most of it shared code."""
NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
REFUSED = {EMPTY: "empty_file", OLE_ENCRYPTED: "encrypted_file", OLE: "unknown_format", UNKNOWN: "unknown_format"}
NEVER_TEXT = re.compile(r"application/(x-exec|gzip|zip|x-7z|vnd\.rar)|audio/|video/")


class _Child:
    """One process of `child.py` and the line to it. It serves one file at a time."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        self.line.setblocking(False)
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-I", "-m", "pharos.library.extract.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises `ConnectionError` when the process is gone."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.line, json.dumps(request).encode() + b"\n")
        answer = await self._receive(int.from_bytes(await self._receive(8), "big"))
        said: dict[str, Any] = await asyncio.to_thread(json.loads, answer)
        return said

    async def _receive(self, size: int) -> bytearray:
        received = bytearray()
        while len(received) < size:
            part = await asyncio.get_running_loop().sock_recv(self.line, min(size - len(received), 1 << 20))
            if not part:
                raise ConnectionResetError
            received += part
        return received

    def kill(self) -> None:
        """End it and its fork: they are one process group."""
        self.line.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_idle: list[_Child] = []


@atexit.register
def _kill_idle() -> None:
    while _idle:
        _idle.pop().kill()


async def extract_document(path: Path, *, name: str, limits: Limits = DEFAULT_LIMITS) -> Extracted:
    """The text of a stored file. Raises `UnreadableFile` with a sentence for the person who uploaded it.

    Plain text is decoded here; everything else is read in a child, which a cancellation kills.
    """
    extracted = await asyncio.to_thread(_read_here, path, name, limits)
    if isinstance(extracted, str):
        extracted = await _read_in_child(path, extracted, limits)
    return _checked(extracted, name=name)


def _read_here(path: Path, name: str, limits: Limits) -> Extracted | str:
    """The text of a text file, else the media type for a child to read."""
    media_type = sniff_file(path, name=name)
    if path.stat().st_size > limits.file_bytes:
        raise unreadable("too_large_file")
    if media_type in REFUSED:
        raise unreadable(REFUSED[media_type])
    if NEVER_TEXT.match(media_type):
        raise unreadable("unknown_format")
    if media_type.startswith("image/"):
        raise unreadable("no_text_layer")
    if media_type not in TEXT_TYPES:
        return media_type
    extracted = read_plain(path, media_type=media_type)
    if len(extracted.text) > limits.text_characters:
        raise unreadable("too_much_text")
    return extracted


def _checked(extracted: Extracted, *, name: str) -> Extracted:
    warnings = list(extracted.warnings)
    if (suffix := mislabelled(extracted.media_type, name=name)) is not None:
        warnings.append(f"The name ends in {suffix}, but the content is {extracted.media_type}; it was read as that.")
    if not any(character.isalnum() for character in extracted.text):
        warnings.append(NO_TEXT)
    return dataclasses.replace(extracted, text=NOT_STORABLE.sub("\ufffd", extracted.text), warnings=warnings)


async def _read_in_child(path: Path, media_type: str, limits: Limits) -> Extracted:
    try:
        async with asyncio.timeout(limits.wall_seconds):
            answer = await _ask_a_child(_request(path, media_type, limits))
    except TimeoutError:
        answer = {"error": "too_costly_file"}
    if "error" in answer:
        code = str(answer["error"])
        log.info("document.unreadable", code=code, media_type=media_type)
        raise unreadable(code if code in REASONS else "damaged_file")
    return Extracted(**answer)


def _request(path: Path, media_type: str, limits: Limits) -> dict[str, Any]:
    return {"path": str(path.absolute()), "media_type": media_type, "limits": dataclasses.asdict(limits)}


async def _ask_a_child(request: dict[str, Any]) -> dict[str, Any]:
    """A child that was idle may have died since, so its loss is worth a second try with a fresh one."""
    while True:
        was_idle = bool(_idle)
        child = _idle.pop() if _idle else _Child()
        try:
            answer = await child.ask(request)
        except (ConnectionError, json.JSONDecodeError):
            child.kill()
            if not was_idle:
                return {"error": "too_costly_file"}
            continue
        except BaseException:
            child.kill()
            raise
        if len(_idle) < MAX_IDLE:
            _idle.append(child)
        else:
            child.kill()
        return answer
