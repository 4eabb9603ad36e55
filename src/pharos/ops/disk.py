"""Room on the disks that Pharos writes to, the next backup's included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Invalid, Unavailable
from pharos.infra.settings import Settings
from pharos.ops.backup.offsite import target_of
from pharos.ops.backup.store import StoredBackup, list_backups

LOW_SHARE = 0.15
"""Of a disk free, below which somebody should look (F-25)."""
FULL_BYTES = 512 * 2**20
"""Free, below which uploads and the database itself may fail at any moment."""
GROWTH = 1.2
"""Of the next backup against the last one."""


@dataclass(frozen=True)
class DiskSpace:
    """One disk: what of ours lies on it, and its bytes. `wanted_bytes` is what the next backup takes there, or 0."""

    holds: tuple[str, ...]
    path: Path
    total_bytes: int
    free_bytes: int
    wanted_bytes: int = 0

    @property
    def is_low(self) -> bool:
        return self.free_bytes < self.total_bytes * LOW_SHARE or self.free_bytes < self.wanted_bytes

    @property
    def is_full(self) -> bool:
        return self.free_bytes < FULL_BYTES

    @property
    def free_share(self) -> float:
        return self.free_bytes / max(self.total_bytes, 1)

    def describe(self) -> str:
        said = f"{', '.join(self.holds)}: {self.free_bytes / 2**30:.1f} GiB free ({self.free_share:.0%}) at {self.path}"
        wanted = self.wanted_bytes / 2**30
        size = f"{wanted:.1f} GiB" if wanted >= 0.1 else "less than 0.1 GiB"
        return f"{said}, the next backup takes {size}" if wanted else said


def find_disks(settings: Settings, *, wanted_bytes: int | None = None) -> list[DiskSpace]:
    """The disks of data, uploads, database and backups, each once.

    `wanted_bytes` is what the next backup takes where the caller knows; else it is looked up, which reads sizes of all
    uploads and asks the database when there is no backup yet.
    """
    places = {**_data_places(settings), "backups": settings.backup_root}
    by_device: dict[int, list[str]] = {}
    for name, place in places.items():
        by_device.setdefault(existing(place).stat().st_dev, []).append(name)
    disks = []
    for names in by_device.values():
        path = existing(places[names[0]])
        usage = shutil.disk_usage(path)
        wanted = 0
        if "backups" in names:
            wanted = next_backup_bytes(settings) if wanted_bytes is None else wanted_bytes
        disks.append(DiskSpace(tuple(names), path, usage.total, usage.free, wanted))
    return disks


def next_backup_bytes(settings: Settings) -> int:
    """What the next backup will take, from the newest one; without one from what is there to back up."""
    known = bytes_after(list_backups(settings))
    if known is not None:
        return known
    return int((_database_bytes(settings) + _bytes_below(settings.blob_root)) * GROWTH)


def bytes_after(backups: Sequence[StoredBackup]) -> int | None:
    """What the backup after these, the newest first, will take; None when there is none to tell by."""
    newest = next((backup for backup in backups if backup.folder is not None and backup.bytes), None)
    return int(newest.bytes * GROWTH) if newest is not None else None


def existing(place: Path) -> Path:
    """The folder itself, or the nearest one above it that is there already."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def is_same_disk(settings: Settings) -> bool:
    """Whether backups lie on a disk that also holds what they are backups of: when it breaks, both are gone."""
    held = {existing(place).stat().st_dev for place in _data_places(settings).values()}
    return existing(settings.backup_root).stat().st_dev in held


def is_offsite_on_same_disk(settings: Settings) -> bool:
    """Whether `PHAROS_OFFSITE` is a directory on a disk that also holds data; so is one whose disk is not mounted."""
    try:
        target = target_of(settings)
    except Invalid:
        return False  # a copy fails then, which is loud
    if target is None or target.directory is None:
        return False
    held = {existing(path).stat().st_dev for path in _data_places(settings).values()}
    try:
        return existing(target.directory).stat().st_dev in held
    except PermissionError:
        return False  # here, too


def _data_places(settings: Settings) -> dict[str, Path]:
    """Where what must not be lost lies: the database too, where its server cannot reach the data directory and it lies
    on another disk."""
    places = {"data": settings.data_dir, "uploads": settings.blob_root}
    database = (settings.data_dir / "postgres").resolve()
    is_ours = settings.database_url is None and database.exists()
    if is_ours and database.stat().st_dev != existing(settings.data_dir).stat().st_dev:
        places["database"] = database
    return places


def _database_bytes(settings: Settings) -> int:
    """0 when it does not answer: a full disk is looked at just then."""
    try:
        with psycopg.connect(connection_urls(settings).app, connect_timeout=3) as connection:
            found = connection.execute("select pg_database_size(current_database())").fetchone()
    except (psycopg.OperationalError, Unavailable):
        return 0
    return int(found[0]) if found else 0


def _bytes_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).stat().st_size
            except FileNotFoundError:
                continue  # an upload that ended meanwhile
    return total
