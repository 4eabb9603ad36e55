"""Backups as their folders show them, without a server."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pharos.infra.errors import PharosError
from pharos.infra.settings import Settings
from pharos.ops.backup.escrow import offline_recipients
from pharos.ops.backup.manifest import BlobState, FileState, Manifest, TableState, write_manifest
from pharos.ops.backup.store import record_offsite, record_verification, record_written


def make_folder(
    settings: Settings,
    *,
    made_at: datetime,
    documents: int = 3,
    size_bytes: int = 1_000_000,
    seconds: float = 2.0,
    verified: bool = True,
    offsite: bool = False,
    sealed: bool = True,
    installation_id: str = "",
    error: PharosError | None = None,
) -> Path:
    """A backup's folder with a manifest, one empty file, and its row: enough for whatever lists backups."""
    name = f"pharos-{made_at:%Y%m%d-%H%M%S}"
    folder = settings.backup_root / name
    (folder / "database").mkdir(parents=True, mode=0o700)
    with (folder / "database" / "toc.dat").open("wb") as file:
        file.truncate(size_bytes)
    manifest = Manifest(
        name=name,
        made_at=made_at,
        version="0",
        schema="0003",
        server_version="18.4",
        vector_version="0.8.5",
        collation_version="",
        database="pharos",
        installation_id=installation_id,
        tables={"documents": TableState(documents, "0")},
        tenants={},
        blobs=BlobState(documents, size_bytes, ""),
        keys=[],
        files={"database/toc.dat": FileState(size_bytes, "")},
        not_inside=[],
        seconds=seconds,
        signed_by="",
        sealed_to=[str(recipient) for recipient in offline_recipients(settings)] if sealed else [],
    )
    write_manifest(folder, manifest)
    record_written(settings, folder)
    if verified or error is not None:
        record_verification(settings, folder, seconds=seconds, error=error)
    if offsite:
        record_offsite(settings, folder)
    return folder
