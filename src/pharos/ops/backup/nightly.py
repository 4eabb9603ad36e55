"""The daily backup: made, restored and compared at once, and only then older ones may go. Its copy has its own hour."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path

from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.ops.backup import snapshot, verification
from pharos.ops.backup.retention import prune
from pharos.ops.backup.store import FAILED, GOOD, WRITTEN, StoredBackup, list_backups, newest_good
from pharos.ops.operation_lock import hold_operation_lock

log = get_logger(__name__)

TRIES = 3
"""Backups of one day that nobody could verify; more would fill the disk."""
AGAIN_AFTER = timedelta(hours=1)
Tell = Callable[[str, str], None]
"""Told the name of a step and what it does."""


@dataclass(frozen=True)
class Night:
    """What a round did."""

    backup: str
    folder: Path
    seconds_to_verify: float
    removed: list[str]
    kept_because: str | None


def run_night(settings: Settings, *, now: datetime, tell: Tell) -> Night:
    """Everything that belongs to one daily backup, under one lock of operations.

    Raises what the step that failed raises; the steps after it are not done, so nothing older is removed then.
    """
    with hold_operation_lock(settings, "daily backup"):
        tell("backup", "Copying database, files and secrets")
        folder = snapshot.write_backup(settings)
        verified = verification.verify_backup(settings, folder, tell=tell)
        plan = prune(settings, list_backups(settings, removed=True), now=now)
    log.info("backup.night_ended", backup=folder.name, removed=len(plan.remove))
    removed = [backup.name for backup in plan.remove]
    return Night(folder.name, folder, verified.seconds, removed, plan.kept_because)


def last_moment(at: str, now: datetime) -> datetime | None:
    """When what is done daily at `at` (`HH:MM` in the zone of `now`) was to be done last; None for an empty `at`."""
    if not at:
        return None
    moment = datetime.combine(now.date(), time.fromisoformat(at), now.tzinfo)
    return moment if moment <= now else moment - timedelta(days=1)


def is_missing(moment: datetime, attempts: Iterable[StoredBackup], *, since: datetime) -> bool:
    """Whether the daily backup of a moment that has passed is still to be made.

    A backup of the day after the moment that was verified, by any worker, is that day's; one that was not, for it
    failed, was killed or made by hand, is not, up to `TRIES` that left a folder; one of a later day was made by a clock
    that was wrong, and must not keep us from making any until then. A moment that passed before the worker started
    (`since`) is made up for, unless there never was a backup: a first start is nobody's night.
    """
    known = list(attempts)
    if not known:
        return since <= moment
    of_the_day = [one for one in known if moment <= one.made_at < moment + timedelta(days=1)]
    left = [one for one in of_the_day if one.folder is not None or one.state == WRITTEN]
    return len(left) < TRIES and not any(one.state in GOOD for one in of_the_day)


def failed_just_now(attempts: Iterable[StoredBackup], *, now: datetime) -> bool:
    """Whether an attempt ended in the last hour and failed, by any worker: what is wrong, a full disk, seldom mends
    itself."""
    failed = [one for one in attempts if one.state == FAILED and one.made_at <= now]
    return any(now - AGAIN_AFTER < one.made_at + timedelta(seconds=one.seconds) for one in failed)


def is_copy_due(at: str, backups: Iterable[StoredBackup], *, now: datetime) -> bool:
    """Whether the newest verified backup is still to be copied elsewhere: it was made before the last `at`.

    One that is verified only after that moment is copied then, and one whose copy failed is due until it succeeds.
    """
    moment, newest = last_moment(at, now), newest_good(backups)
    return moment is not None and newest is not None and newest.offsite_at is None and newest.made_at <= moment
