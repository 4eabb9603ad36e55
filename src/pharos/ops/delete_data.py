"""What `pharos down --delete-data` removes, and what becomes of the backups, which it keeps unless told otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from pharos.infra import embedded_postgres
from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings
from pharos.infra.terminal import count_text
from pharos.ops.backup.own import is_own
from pharos.ops.backup.signing import own_key
from pharos.ops.backup.store import NAME, StoredBackup, list_backups

DATA_FOLDERS = ("outbox", "secrets", "logs", "audit", "tmp", "run", "spool")
"""What lies in a data directory beside the database, the uploads and the backups."""


@dataclass(frozen=True)
class BackupsHere:
    """Those that have a folder, newest first: `goes` is removed with the data; `stays` is not, and `others` of it are
    another installation's, or nobody can read whose."""

    goes: list[StoredBackup]
    stays: list[StoredBackup]
    others: list[StoredBackup]


def backups_here(settings: Settings, *, with_backups: bool) -> BackupsHere:
    """What becomes of each backup. Asked before the secrets go: one of them says which are this installation's."""
    here = [backup for backup in list_backups(settings) if backup.folder is not None]
    others = [backup for backup in here if not is_own(settings, backup)]
    goes = [backup for backup in here if with_backups and backup not in others]
    return BackupsHere(goes, [backup for backup in here if backup not in goes], others)


def refuse_backups_inside(settings: Settings, found: BackupsHere) -> None:
    """Raise `Conflict` when backups that stay lie inside a folder that is removed, where they cannot be kept."""
    root = settings.backup_root.resolve()
    around = next((one for one in _removed(settings) if root.is_relative_to(one.resolve())), None)
    if around is not None and found.stays:
        own = len(found.stays) > len(found.others)
        raise Conflict(
            f"{count_text(len(found.stays), 'backup')} lie in {settings.backup_root}, inside {around}, which would be "
            "removed. Nothing was changed. Move them elsewhere and set PHAROS_BACKUP_DIR to that place"
            f"{', or add --delete-backups' if own else ': another installation made them'}.",
            code="backups_inside",
        )


def fate_of_backups(settings: Settings, found: BackupsHere) -> list[str]:
    """What an operator must know of the backups before saying yes, as sentences; none where there is no backup."""
    said = []
    if found.goes:
        said.append(f"Deleted too: {_which(settings, found.goes)}. Copies elsewhere are left alone.")
    if own := [backup for backup in found.stays if backup not in found.others]:
        said += [f"Kept: {_which(settings, own)}.", *_what_opens(settings, own)]
    if found.others:
        names = ", ".join(backup.name for backup in found.others)
        said.append(
            f"Left alone: {_which(settings, found.others)}, which another installation made or whose manifest cannot "
            f"be read: {names}. Whoever put them there removes their folders."
        )
    return said


def delete_data(settings: Settings, *, with_backups: bool) -> list[str]:
    """Remove what Pharos keeps, and the directory when nothing else lies in it; returns the names of what else does.

    Backups stay unless `with_backups`, those that this installation did not make always; where there is none, their
    folder in the data directory goes too. They go after what they are backups of, and before the secret that says
    whose they are: killed at any moment, it is run again.
    """
    data_dir, root = settings.data_dir, settings.backup_root
    found = backups_here(settings, with_backups=with_backups)
    embedded_postgres.delete(data_dir)
    uploads, *rest = _removed(settings)
    _remove(uploads)
    if with_backups or (root.is_relative_to(data_dir) and not found.stays):
        _delete_backups(root, found.goes)
    for folder in rest:
        _remove(folder)
    left = sorted(path.name for path in data_dir.iterdir()) if data_dir.exists() else []
    if not left and data_dir.exists():
        data_dir.rmdir()
    return [name for name in left if name not in _holding(settings, found.stays)]


def _which(settings: Settings, backups: Sequence[StoredBackup]) -> str:
    newest = f"the newest of {backups[0].made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{count_text(len(backups), 'backup')} in {settings.backup_root}, {newest}"


def _what_opens(settings: Settings, backups: Sequence[StoredBackup]) -> list[str]:
    """How these are restored without the keys of this machine: by what they were sealed to, not by what is set now."""
    key = own_key(settings)
    signer = f" --signed-by {key}" if key is not None else ""
    said = [f"The keys on this machine go: one is restored with `pharos restore PATH --identity FILE{signer}`."]
    if sealed := [backup for backup in backups if backup.sealed_to]:
        identities = ", ".join(sorted({one for backup in sealed for one in backup.sealed_to}))
        said.append(f"For {count_text(len(sealed), 'backup')} FILE is the offline identity of {identities}.")
    if alone := len(backups) - len(sealed):
        said.append(
            f"For {count_text(alone, 'backup')} FILE is a copy of secrets/drill_identity from the data directory, for "
            "no offline identity is known to open them: without that copy nobody can restore them."
        )
    return said


def _removed(settings: Settings) -> list[Path]:
    """The folders that go whatever lies in them, the uploads first; the database's goes by itself."""
    return [settings.blob_root, *(settings.data_dir / name for name in DATA_FOLDERS)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _holding(settings: Settings, backups: Sequence[StoredBackup]) -> set[str]:
    """Under which names of the data directory these lie; none where they lie elsewhere."""
    root, data_dir = settings.backup_root, settings.data_dir
    if not backups or not root.is_relative_to(data_dir):
        return set()
    return set(root.relative_to(data_dir).parts[:1]) or {backup.name for backup in backups}


def _delete_backups(root: Path, backups: Sequence[StoredBackup]) -> None:
    """These, what is half made, what is noted beside a backup and the drills' logs; the folder too when nothing else
    lies in it."""
    if not root.exists():
        return
    names = {"drills", *(backup.name for backup in backups)}
    for path in list(root.iterdir()):
        if path.name in names or _is_half_made(path):
            _remove(path)
    if not any(root.iterdir()):
        root.rmdir()


def _is_half_made(path: Path) -> bool:
    return path.name.startswith(".") and NAME.search(path.name) is not None
