"""Whether a backup can be opened once this machine is lost: to whom its escrow was sealed when it was made."""

from __future__ import annotations

from collections.abc import Sequence

from pharos.infra.settings import Settings
from pharos.ops.backup.escrow import offline_warning, offline_words
from pharos.ops.backup.store import FAILED, StoredBackup, newest_good


def opens_offline(settings: Settings, backup: StoredBackup) -> bool:
    """Whether an offline identity that is set now opens it; where none is set, whether any does."""
    now = set(offline_words(settings))
    return bool(now & set(backup.sealed_to)) if now else bool(backup.sealed_to)


def sealed_elsewise(settings: Settings, backups: Sequence[StoredBackup]) -> str | None:
    """What to tell an operator when the newest backup, or the newest copy elsewhere, was made for another recipient
    than is set now or for none, and what to run; None when all is well, or no recipient is set: that is told first.
    """
    if not offline_words(settings):
        return None
    there = [backup for backup in backups if backup.folder is not None and backup.state != FAILED]
    newest, good = max(there, key=lambda one: one.made_at, default=None), newest_good(there)
    copies = [backup for backup in there if settings.offsite and backup.offsite_at is not None]
    copied = max(copies, key=lambda one: one.made_at, default=None)
    looked_at = {one.name: one for one in (newest, good, copied) if one is not None}
    closed = sorted(name for name, one in looked_at.items() if not opens_offline(settings, one))
    if newest is None or not closed:
        return None
    steps = ["`pharos backup now`"] if newest.name in closed else []
    steps += ["`pharos backup verify`"] if newest.name in closed or not newest.is_good else []
    steps += ["`pharos backup push`"] if settings.offsite else []
    copy = f" {copied.name} is the newest copy elsewhere." if copied is not None and copied.name in closed else ""
    return (
        f"If this machine is lost, the identity of PHAROS_BACKUP_RECIPIENT does not open {' and '.join(closed)}: made "
        f"while none or another one was set.{copy} Make one that it opens: {', then '.join(steps)}."
    )


def recipient_warning(settings: Settings, backups: Sequence[StoredBackup]) -> str | None:
    """The same, and before it that no recipient is set at all."""
    return offline_warning(settings) or sealed_elsewise(settings, backups)
