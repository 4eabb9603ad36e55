"""What a backup says of itself: versions, counts, fingerprints and the hash of every file.

The bytes of `manifest.json` are what `manifest.sig` signs, so they are read as they lie there and never written again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pharos.infra.errors import Invalid, NotFound

FORMAT = 1
MANIFEST, SIGNATURE, ESCROW, VERIFIED = "manifest.json", "manifest.sig", "escrow.age", "verified.json"
DATABASE_FOLDER, BLOBS_FOLDER = "database", "blobs"
UNLISTED = (MANIFEST, SIGNATURE, VERIFIED)
"""Files of a backup that its manifest does not name."""


@dataclass(frozen=True)
class TableState:
    """`fingerprint`: the sum of a 64-bit hash of each row, in decimal; the order of rows does not matter."""

    rows: int
    fingerprint: str


@dataclass(frozen=True)
class BlobState:
    """`merkle_root`: see `merkle_root`."""

    count: int
    bytes: int
    merkle_root: str


@dataclass(frozen=True)
class FileState:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`tables` and `tenants` count the rows of the dump's own snapshot; `files` are paths below the backup's folder,
    with slashes. `keys` are ids of the encryption keys that the snapshot's secrets need, the current one first;
    `spaces` are the vector spaces in the dump: model, dimension, table and state. `sealed_to` are the public halves of
    the offline identities that open the escrow, `age1…`; without one only the machine that made it does.
    """

    name: str
    made_at: datetime
    version: str
    schema: str
    server_version: str
    vector_version: str
    collation_version: str
    database: str
    installation_id: str
    tables: dict[str, TableState]
    tenants: dict[str, dict[str, int]]
    blobs: BlobState
    keys: list[str]
    files: dict[str, FileState]
    not_inside: list[str]
    seconds: float
    signed_by: str
    spaces: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sealed_to: list[str] = dataclasses.field(default_factory=list)
    format: int = FORMAT

    @property
    def documents(self) -> int:
        state = self.tables.get("documents")
        return state.rows if state is not None else 0

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def manifest_bytes(manifest: Manifest) -> bytes:
    """The text that is written and signed: UTF-8 JSON with sorted names."""
    text = json.dumps(dataclasses.asdict(manifest), default=datetime.isoformat, sort_keys=True, indent=1)
    return text.encode() + b"\n"


def write_manifest(folder: Path, manifest: Manifest) -> bytes:
    """Write `manifest.json` (0600, flushed) and return its bytes, for the signature."""
    content = manifest_bytes(manifest)
    write_private(folder / MANIFEST, content)
    return content


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup; its signature is not looked at.

    Raises `NotFound` (`no_manifest`) when there is none, `Invalid` when it is damaged (`bad_manifest`) or of a newer
    format (`newer_backup`).
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"{folder} holds no {MANIFEST}, so it is no complete backup. `pharos backup list` shows those that are.",
            code="no_manifest",
        ) from error
    return parse_manifest(content, where=str(folder / MANIFEST))


def parse_manifest(content: bytes, *, where: str) -> Manifest:
    """The same from bytes; `where` is named in errors."""
    try:
        found: dict[str, Any] = json.loads(content)
        if found["format"] > FORMAT:
            raise Invalid(
                f"{where} is of format {found['format']}; this version reads up to {FORMAT}. Update Pharos to "
                f"{found.get('version', 'the version that made it')} or newer and try again.",
                code="newer_backup",
            )
        return Manifest(
            **{
                **found,
                "made_at": datetime.fromisoformat(found["made_at"]),
                "tables": {name: TableState(**state) for name, state in found["tables"].items()},
                "blobs": BlobState(**found["blobs"]),
                "files": {path: FileState(**state) for path, state in found["files"].items()},
                "sealed_to": [str(recipient) for recipient in found.get("sealed_to", [])],
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(
            f"{where} is damaged ({type(error).__name__}). Take another backup: `pharos backup list` shows them.",
            code="bad_manifest",
        ) from error


def merkle_root(hashes: Iterable[str]) -> str:
    """The root over `<tenant>/<sha256>` of all blobs, sorted: pairs of SHA-256 are hashed until one is left.

    An odd one is carried up as it is; leaves and nodes are told apart by a first byte, as RFC 6962 does.
    """
    level = [hashlib.sha256(b"\x00" + name.encode()).digest() for name in sorted(hashes)]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        paired = [
            hashlib.sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = paired + ([level[-1]] if len(level) % 2 else [])
    return level[0].hex()


def write_private(file: Path, content: bytes) -> None:
    """Write a file of mode 0600 and flush it to the disk."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
