"""Which backups this installation made. Others were brought here by somebody, who removes them."""

from __future__ import annotations

from collections.abc import Sequence

from pharos.infra.settings import Settings
from pharos.ops.backup.store import StoredBackup, is_made_here

UNREADABLE = frozenset({"no_manifest", "bad_manifest", "newer_backup"})
"""Why a manifest says nothing: damaged, of a newer Pharos, or still to come, for a copy brings it last."""


def is_own(settings: Settings, backup: StoredBackup) -> bool:
    """Whether its manifest can be read and names this installation, or a row alone tells of it.

    False for one whose manifest cannot be read: whose it is, nobody knows, so nothing may remove it.
    """
    return not is_unreadable(backup) and is_made_here(settings, backup)


def is_unreadable(backup: StoredBackup) -> bool:
    """Whether it is a folder without a manifest that this Pharos reads."""
    return backup.folder is not None and backup.error_code in UNREADABLE


def own_backups(settings: Settings, backups: Sequence[StoredBackup]) -> list[StoredBackup]:
    """Those that count here. One that cannot be read does, as a failed one: it may be what became of ours."""
    return [backup for backup in backups if is_unreadable(backup) or is_own(settings, backup)]
