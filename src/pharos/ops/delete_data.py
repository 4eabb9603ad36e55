"""What `pharos down --delete-data` removes, and what becomes of the backups, which it keeps unless told otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path

from pharos.infra import embedded_postgres
from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings
from pharos.infra.terminal import count_text
from pharos.ops.backup.escrow import offline_recipients
from pharos.ops.backup.store import NAME, StoredBackup, list_backups

DATA_FOLDERS = ("outbox", "secrets", "logs", "audit", "tmp", "run", "spool")
"""What lies in a data directory beside the database, the uploads and the backups."""


def backups_here(settings: Settings) -> list[StoredBackup]:
    """Those that have a folder, newest first."""
    return [backup for backup in list_backups(settings) if backup.folder is not None]


def refuse_backups_inside(settings: Settings) -> None:
    """Raise `Conflict` when backups lie inside a folder that is removed, where they cannot be kept."""
    root = settings.backup_root.resolve()
    around = next((one for one in _removed(settings) if root.is_relative_to(one.resolve())), None)
    if around is not None and (found := backups_here(settings)):
        raise Conflict(
            f"{count_text(len(found), 'backup')} lie in {settings.backup_root}, inside {around}, which would be "
            "removed. Nothing was changed. Move them elsewhere and set PHAROS_BACKUP_DIR to that place, or add "
            "--delete-backups.",
            code="backups_inside",
        )


def fate_of_backups(settings: Settings, backups: Sequence[StoredBackup], *, with_backups: bool) -> list[str]:
    """What an operator must know of the backups before saying yes, as sentences; none where there is no backup."""
    if not backups:
        return []
    which = f"{count_text(len(backups), 'backup')} in {settings.backup_root}"
    newest = f"the newest of {backups[0].made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if with_backups:
        return [f"Deleted too: {which}, {newest}. Copies elsewhere are left alone."]
    opens = "with the offline identity, if it was set when they were made, and --signed-by names the signing key"
    if not offline_recipients(settings):
        opens = (
            "with a copy of secrets/drill_identity from the data directory, for no offline identity is set "
            "(PHAROS_BACKUP_RECIPIENT): without that copy nobody can restore them"
        )
    return [f"Kept: {which}, {newest}.", f"The keys on this machine go: they are restored {opens}."]


def delete_data(settings: Settings, *, with_backups: bool) -> list[str]:
    """Remove what Pharos keeps, and the directory when nothing else lies in it; returns the names of what else does.

    Backups stay unless `with_backups`; where there is none, their folder in the data directory goes too.
    """
    data_dir, root = settings.data_dir, settings.backup_root
    keeps = bool(backups_here(settings)) and not with_backups
    if not keeps and (with_backups or root.is_relative_to(data_dir)):
        _delete_backups(root)
    embedded_postgres.delete(data_dir)
    for folder in _removed(settings):
        if folder.exists():
            shutil.rmtree(folder)
    kept = root.relative_to(data_dir).parts[0] if keeps and root.is_relative_to(data_dir) else None
    left = sorted(path.name for path in data_dir.iterdir())
    if not left:
        data_dir.rmdir()
    return [name for name in left if name != kept]


def _removed(settings: Settings) -> list[Path]:
    """The folders that go whatever lies in them; the database's goes by itself."""
    return [settings.blob_root, *(settings.data_dir / name for name in DATA_FOLDERS)]


def _delete_backups(root: Path) -> None:
    """Backups, those that are half made and the drills' logs; the folder too when nothing else lies in it."""
    if not root.exists():
        return
    for path in list(root.iterdir()):
        if path.is_dir() and (path.name == "drills" or NAME.fullmatch(path.name) or _is_half_made(path)):
            shutil.rmtree(path)
    if not any(root.iterdir()):
        root.rmdir()


def _is_half_made(path: Path) -> bool:
    return path.name.startswith(".") and NAME.search(path.name) is not None
