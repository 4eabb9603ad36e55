"""Which backups may go. What was never restored, or failed, is not relied upon: it goes when it is old, as others do.

Nothing at all is removed while the newest backup is not a good one, or is old: then the older ones are what there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pharos.infra.settings import Settings
from pharos.ops.backup.own import is_unreadable, own_backups
from pharos.ops.backup.store import FAILED, StoredBackup, forget_attempts, newest_good, pulled_file

REMOVING = ".removing-"
STALE_AFTER = timedelta(hours=26)
"""A backup is made each day; one that is later than this is missing, and an alert says so."""


@dataclass(frozen=True)
class Retention:
    """What may be removed, oldest first, and why nothing may; `bytes` is what removing it frees."""

    remove: tuple[StoredBackup, ...]
    kept_because: str | None = None

    @property
    def bytes(self) -> int:
        return sum(backup.bytes for backup in self.remove)


def plan_retention(backups: Sequence[StoredBackup], *, keep_days: int, now: datetime) -> Retention:
    """Backups older than `keep_days`, never the newest good one; none while the newest backup is not good.

    `backups` are the own ones of `list_backups`, removed ones included: a newest one whose folder is gone is no good
    one. The age of one that was fetched from offsite counts from then: whoever fetched it wants to use it. One whose
    manifest cannot be read stays: it may be a copy that is on its way here, or another installation's.
    """
    newest = max(backups, key=lambda one: one.made_at, default=None)
    if newest is None:
        return Retention((), "there is no backup")
    if reason := _not_good(newest, now):
        return Retention((), reason)
    last_good = newest_good(backups)
    too_old = now - timedelta(days=keep_days)
    known = [one for one in backups if one.folder and not is_unreadable(one)]
    old = [one for one in known if _kept_from(one) < too_old and one != last_good]
    return Retention(tuple(sorted(old, key=lambda one: one.made_at)))


def remove_backups(settings: Settings, plan: Retention) -> None:
    """Remove what the plan names, and what a killed removal left. A backup leaves the list whole, by one rename."""
    for leftover in settings.backup_root.glob(f"{REMOVING}*"):
        shutil.rmtree(leftover)
    for backup in plan.remove:
        assert backup.folder is not None
        aside = backup.folder.with_name(f"{REMOVING}{backup.name}")
        backup.folder.rename(aside)
        shutil.rmtree(aside)
        pulled_file(backup.folder).unlink(missing_ok=True)


def _kept_from(backup: StoredBackup) -> datetime:
    return max(backup.made_at, backup.pulled_at or backup.made_at)


def _not_good(newest: StoredBackup, now: datetime) -> str | None:
    if newest.folder is None and newest.state != FAILED:
        return f"the newest, {newest.name}, is gone from the disk"
    if not newest.is_good:
        why = f"failed ({newest.error_code})" if newest.error_code else "was not verified yet"
        return f"the newest, {newest.name}, {why}"
    if now - newest.made_at > STALE_AFTER:
        return f"the newest, {newest.name}, is {_hours(now - newest.made_at)} hours old: later ones are missing"
    return None


def _hours(span: timedelta) -> int:
    return int(span.total_seconds() // 3600)


def prune(settings: Settings, backups: Sequence[StoredBackup], *, now: datetime) -> Retention:
    """Plan and remove at once: what runs after each nightly backup that was verified.

    What is known of attempts that failed goes as old as backups do: one each hour of a bad day would stay listed.
    """
    plan = plan_retention(own_backups(settings, backups), keep_days=settings.backup_keep_days, now=now)
    remove_backups(settings, plan)
    too_old = now - timedelta(days=settings.backup_keep_days)
    forgotten = [one for one in backups if one.folder is None and one.state == FAILED and one.made_at < too_old]
    if forgotten:
        forget_attempts(settings, forgotten)
    return plan
