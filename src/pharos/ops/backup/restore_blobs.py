"""Bring back the bytes of documents: what is missing is added, what is damaged is moved aside first.

Blobs are named by their content and never change, so adding them to the live ones harms nobody, whatever happens next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg

from pharos.infra.blobs import ASIDE, BlobStore
from pharos.infra.errors import Conflict
from pharos.infra.ids import TenantId
from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import BLOBS_FOLDER
from pharos.ops.backup.named_blobs import named_blobs


@dataclass(frozen=True)
class BlobChanges:
    """The blobs of a backup against the live ones. `missing` and `damaged`: `<tenant>/ab/cd/<sha256>`; `bytes` are
    those to be written."""

    present: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    bytes: int


def compare_blobs(settings: Settings, folder: Path) -> BlobChanges:
    """Which blobs of a backup are missing here or no longer what their name says; reads every live one of them."""
    present, size = 0, 0
    missing, damaged = [], []
    for source, name in _blobs_of(folder):
        live = settings.blob_root / name
        if not live.exists():
            missing.append(name)
        elif _sha256(live) != live.name:
            damaged.append(name)
        else:
            present += 1
            continue
        size += source.stat().st_size
    return BlobChanges(present, tuple(missing), tuple(damaged), size)


def bytes_missing(settings: Settings, folder: Path) -> int:
    """The size of a backup's blobs that are not here; looks at names alone, so damaged ones are not among them."""
    return sum(source.stat().st_size for source, name in _blobs_of(folder) if not (settings.blob_root / name).exists())


def add_blobs(settings: Settings, folder: Path, changes: BlobChanges, *, stamp: str) -> None:
    """Add what is missing, put what `changes` calls damaged into `aside-<stamp>` beside the others and add it anew.

    The blobs that are there are kept from the sweep for another day. Raises `StorageFull`,
    and `Conflict` when a blob of the backup is not what its name says; what was added by then stays and harms nobody.
    """
    store = BlobStore(settings.blob_root)
    for name in changes.damaged:
        aside = settings.blob_root / f"{ASIDE}{stamp}" / name
        aside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):  # swept since we looked
            (settings.blob_root / name).rename(aside)
    new = []
    for source, name in _blobs_of(folder):
        tenant_id = TenantId(UUID(name.split("/")[0]))
        if not store.touch(tenant_id, source.name):
            new.append((tenant_id, source))
    for kept, (_, source) in zip(store.write_files(new), new, strict=True):
        if kept.sha256 != source.name:
            raise Conflict(
                f"{source} is not what its name says. Take another backup: `pharos restore --list`.",
                code="damaged_blob",
            )


def bring_named(settings: Settings, url: str, *, name: str) -> tuple[str, ...]:
    """Make sure that every blob which the database at `url` (the backup role's) names is there; those that a wipe set
    aside are put back. Returns these, `<tenant>/ab/cd/<sha256>`, in order of their names.

    Raises `Conflict` naming those that are nowhere, before any is put back, and `StorageFull`.
    """
    store = BlobStore(settings.blob_root)
    with psycopg.connect(url) as connection:
        named = named_blobs(connection)
    missing = [blob.relative for blob in named if not (store.root / blob.relative).exists()]
    asides = {
        one: next((file for file in sorted(store.root.glob(f"{ASIDE}*/{one}")) if _sha256(file) == file.name), None)
        for one in missing
    }
    if gone := [one for one, aside in asides.items() if aside is None]:
        raise Conflict(
            f"{name} names {len(gone)} uploaded files that are gone: {', '.join(gone[:5])}"
            f"{' …' if len(gone) > 5 else ''}. Nothing was changed. Add them from a backup that has them: "
            "`pharos restore NAME --uploads-only`.",
            code="missing_blobs",
            blobs=gone,
        )
    for one, aside in asides.items():
        assert aside is not None
        # copied: what is live now may be swapped back again, and the sweep removes the folder when its time is over
        store.write_file(TenantId(UUID(one.split("/")[0])), aside, max_bytes=aside.stat().st_size)
    return tuple(missing)


def _blobs_of(folder: Path) -> Iterator[tuple[Path, str]]:
    root = folder / BLOBS_FOLDER
    for source in sorted(root.glob("*/??/??/*")):
        yield source, source.relative_to(root).as_posix()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
