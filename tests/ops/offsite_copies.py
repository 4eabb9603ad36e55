"""Backups as far as copying goes, and an installation that copied one."""

from __future__ import annotations

import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyrage import x25519  # type: ignore[import-untyped]

from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import BlobState, FileState, Manifest, write_manifest

NAME = "pharos-20260102-030000"
OFFLINE = x25519.Identity.generate()
"""The operator's offline identity."""
needs_programs = pytest.mark.skipif(
    shutil.which("restic") is None or shutil.which("rsync") is None,
    reason="restic and rsync are not installed: apt install restic rsync",
)


def make_folder(root: Path, name: str = NAME, *, words: bytes = b"words") -> Path:
    """A backup as far as copying goes: files, and a manifest that names them with their hashes."""
    folder = root / name
    contents = {
        "database/toc.dat": os.urandom(3000),
        "database/1.dat.gz": os.urandom(40_000),
        "blobs/t/ab/cd/abcd": words * 9000,
        "escrow.age": os.urandom(500),
    }
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    files = {path: FileState(len(text), hashlib.sha256(text).hexdigest()) for path, text in contents.items()}
    write_manifest(folder, make_manifest(name, files))
    (folder / "manifest.sig").write_bytes(b"signed\n")
    return folder


def make_manifest(name: str, files: dict[str, FileState]) -> Manifest:
    return Manifest(
        name=name,
        made_at=datetime.strptime(name, "pharos-%Y%m%d-%H%M%S").replace(tzinfo=UTC),
        version="1",
        schema="0003",
        server_version="18.4",
        vector_version="0.8.5",
        collation_version="",
        database="pharos",
        installation_id="",
        tables={},
        tenants={},
        blobs=BlobState(1, 10, ""),
        keys=[],
        files=files,
        not_inside=[],
        seconds=1.0,
        signed_by="",
    )


def settings_in(world: Path) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=world / "data",
        backup_dir=world / "backups",
        backup_recipient=str(OFFLINE.to_public()),
        offsite=f"restic:{world / 'elsewhere' / 'repository'}",
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
