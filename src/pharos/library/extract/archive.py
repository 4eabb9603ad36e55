"""Refuse ZIP containers that unpack to more than they should: by what they declare, then by what they really hold."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from pharos.library.extract.extracted import Limits, unreadable

CHUNK_BYTES = 1024 * 1024
LOCAL_HEADER = struct.Struct("<4s5H3I2H")


def check_archive(path: Path, limits: Limits) -> None:
    """Raise `UnreadableFile` for a bomb, a password or a broken directory.

    Sizes in a directory can lie, so every entry is also unpacked into nothing and counted; that costs about 5 ms a
    megabyte unpacked. Entries that share the same bytes count each time, as a parser would unpack them each time.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.flag_bits & 1 for entry in entries) or _is_protected(archive):
                raise unreadable("encrypted_file")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, zlib.error, EOFError) as error:
        raise unreadable("damaged_file") from error
    packed = path.stat().st_size
    allowed = min(limits.unpacked_bytes, max(limits.unpacked_bytes // 16, packed * limits.unpacked_ratio))
    if len(entries) > limits.entries or sum(entry.file_size for entry in entries) > allowed:
        raise unreadable("bomb_file")
    with path.open("rb") as file:
        for entry in entries:
            allowed -= _unpacked_bytes(file, entry, allowed)
            if allowed < 0:
                raise unreadable("bomb_file")


def _is_protected(archive: zipfile.ZipFile) -> bool:
    """OpenDocument encrypts the parts and says so in its manifest; a book with rights management names its licence."""
    names = set(archive.namelist())
    if "META-INF/rights.xml" in names or "META-INF/sinf.xml" in names:
        return True
    if "META-INF/manifest.xml" not in names:
        return False
    with archive.open("META-INF/manifest.xml") as manifest:
        return b"encryption-data" in manifest.read(CHUNK_BYTES)


def _unpacked_bytes(file: BinaryIO, entry: zipfile.ZipInfo, allowed: int) -> int:
    """Bytes an entry unpacks to, counted until they exceed `allowed`; what cannot be unpacked counts as nothing."""
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        return entry.compress_size
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size:
        raise unreadable("damaged_file")
    name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)[-2:]
    file.seek(name_bytes + extra_bytes, 1)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    while not unpacker.eof and total <= allowed and (packed := unpacker.unconsumed_tail or file.read(CHUNK_BYTES)):
        try:
            total += len(unpacker.decompress(packed, CHUNK_BYTES))
        except zlib.error:
            break
    return total
