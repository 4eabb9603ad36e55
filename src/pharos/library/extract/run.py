"""Choose the reader, run it within its limits, and turn every way it can fail into words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import zipfile
from pathlib import Path

from pharos.infra.logs import get_logger
from pharos.library.extract import extracted as words
from pharos.library.extract.extracted import Extracted, UnreadableFile
from pharos.library.extract.markup import html_text, mail_text
from pharos.library.extract.plain import decode, read_plain
from pharos.library.extract.sniff import TEXT_TYPES, UNKNOWN, sniff_file

log = get_logger(__name__)

WALL_SECONDS = 90.0
MAX_UNPACKED_BYTES = 512 * 1024**2
MAX_ENTRIES = 20_000
MAX_RATIO = 200
"""An office file that inflates more than 200-fold is made to; the largest seen in honest files is about 60."""

# Nothing of ours reaches the parser: no secrets, no proxies, no home.
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}
REASONS = {
    "encrypted": words.ENCRYPTED,
    "bomb": words.BOMB,
    "too_costly": words.TOO_COSTLY,
    "unsupported": words.UNKNOWN_FORMAT,
    "damaged": words.DAMAGED,
}
NEVER_TEXT = {UNKNOWN, "application/x-executable", "application/gzip", "application/vnd.rar"}
ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")
"""The stream that Office puts into an OLE container when a document gets a password."""


async def extract_document(path: Path, *, name: str) -> Extracted:
    """The text of a stored file. Raises `UnreadableFile` with a sentence for the person who uploaded it."""
    media_type = await asyncio.to_thread(sniff_file, path, name=name)
    if media_type in TEXT_TYPES:
        return read_plain(await asyncio.to_thread(path.read_bytes), media_type=media_type)
    if media_type == "message/rfc822":
        text = await asyncio.to_thread(lambda: mail_text(path.read_bytes()))
        return _checked(Extracted(text=text, media_type=media_type))
    if media_type == UNKNOWN or media_type.startswith(
        ("application/x-exec", "application/gzip", "application/vnd.rar")
    ):
        raise UnreadableFile(words.UNKNOWN_FORMAT, code="unknown_format")
    if media_type == "application/x-ole-storage" and ENCRYPTED_OFFICE in await asyncio.to_thread(path.read_bytes):
        raise UnreadableFile(words.ENCRYPTED, code="encrypted_file")
    if zipfile.is_zipfile(path):
        await asyncio.to_thread(_refuse_bomb, path)
    answer = await _run_child(path, media_type)
    if "error" in answer and media_type != "text/html":
        word = str(answer["error"])
        log.info("document.unreadable", reason=word, media_type=media_type)
        raise UnreadableFile(REASONS.get(word, words.DAMAGED), code=f"{word}_file")
    text = str(answer.get("text", ""))
    if media_type == "text/html" and not text.strip():
        # The parser answers 30,000 nested tags with an empty text and no error.
        text = await asyncio.to_thread(lambda: html_text(decode(path.read_bytes())[0]))
    starts = answer.get("page_starts")
    return _checked(
        Extracted(text=text, media_type=media_type, page_starts=list(starts) if isinstance(starts, list) else [])
    )


def _checked(extracted: Extracted) -> Extracted:
    text = extracted.text.replace("\x00", "\ufffd")
    has_words = any(character.isalnum() for character in text)
    is_paged = extracted.media_type == "application/pdf" or extracted.media_type.startswith("image/")
    missing = words.NO_TEXT_LAYER if is_paged else words.NO_TEXT
    if not has_words and is_paged:
        raise UnreadableFile(missing, code="no_text_layer")
    warnings = extracted.warnings if has_words else [*extracted.warnings, missing]
    starts = extracted.page_starts if len(extracted.page_starts) > 0 else []
    return Extracted(text=text, media_type=extracted.media_type, page_starts=starts, warnings=warnings)


def _refuse_bomb(path: Path) -> None:
    """Read the directory of a ZIP before anything is unpacked; the child's limits are the second line."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UnreadableFile(words.DAMAGED, code="damaged_file") from error
    if any(entry.flag_bits & 1 for entry in entries):
        raise UnreadableFile(words.ENCRYPTED, code="encrypted_file")
    unpacked = sum(entry.file_size for entry in entries)
    packed = max(1, path.stat().st_size)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_UNPACKED_BYTES or unpacked > packed * MAX_RATIO:
        raise UnreadableFile(words.BOMB, code="bomb_file")


async def _run_child(path: Path, media_type: str) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "pharos.library.extract.child", str(path), media_type,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), WALL_SECONDS)
    except TimeoutError:
        return {"error": "too_costly", "said": "time"}
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        # Killed by a limit, by the kernel for memory, or crashed: the worker goes on.
        return {"error": "too_costly", "said": f"exit {process.returncode}"}
    answer: dict[str, object] = json.loads(output)
    return answer
