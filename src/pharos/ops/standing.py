"""How safe the data is right now: what would be lost, how long a restore would take, and what somebody must mend."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import psycopg
from psycopg.rows import class_row
from sqlalchemy import func, select

from pharos.identity.tenants import list_tenants
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Unavailable
from pharos.infra.ids import TenantId
from pharos.infra.settings import Settings
from pharos.infra.terminal import size_text
from pharos.library.models import Document
from pharos.ops.backup.drill_log import OVERDUE_DAYS
from pharos.ops.backup.escrow import offline_warning
from pharos.ops.backup.own import own_backups
from pharos.ops.backup.restore_time import How, Measured, estimate_seconds
from pharos.ops.backup.sealing import opens_offline, sealed_elsewise
from pharos.ops.backup.store import FAILED, StoredBackup, list_backups, newest_good, read_verification
from pharos.ops.disk import DiskSpace, bytes_after, find_disks, is_offsite_on_same_disk, is_same_disk
from pharos.runtime import Runtime

BACKUP_HOURS = 26
"""A daily backup that took two hours longer than the one before is late (AL-10)."""
OFFSITE_HOURS = 50
"""One copy that failed is made up for by the next; two are not."""
DRILLS_SHOWN = 20
LOOK = "`pharos backup list --log` says why"
"""Not here: an error's words may name one tenant's files and the machine's folders to another's administrators."""
REMEMBERED_SECONDS = 60.0
"""Monitoring asks every few seconds, and a manifest names every file."""

Code = Literal[
    "backup_old",
    "backup_failed",
    "verify_failed",
    "drill_overdue",
    "drill_failed",
    "offsite_old",
    "offsite_failed",
    "same_disk",
    "no_offsite",
    "no_recipient",
    "not_sealed",
    "disk_low",
]
CODES: tuple[Code, ...] = (
    "backup_old",
    "backup_failed",
    "verify_failed",
    "drill_overdue",
    "drill_failed",
    "offsite_old",
    "offsite_failed",
    "same_disk",
    "no_offsite",
    "no_recipient",
    "not_sealed",
    "disk_low",
)
FAILING: frozenset[Code] = frozenset(
    ("backup_old", "backup_failed", "verify_failed", "drill_overdue", "drill_failed", "offsite_old", "offsite_failed")
)
"""What does not work as it was set up. The rest was never set up, or will fail: as loud, but nothing is ill yet."""


@dataclass(frozen=True)
class Notice:
    """What somebody must do something about; `words` end with what."""

    code: Code
    words: str


@dataclass(frozen=True)
class DrillLine:
    """One restore drill as it is shown; `report` is its log as Markdown."""

    name: str
    backup_name: str
    started_at: datetime
    seconds: float
    passed: bool
    by: str
    report: str


@dataclass(frozen=True)
class Standing:
    """`good` is the newest backup that was restored and compared, `elsewhere` the newest with a copy off the machine.

    `documents_since` were received after `good` was made, in all tenants: what is lost when the data is damaged now;
    `documents_since_elsewhere` the same for the loss of the machine. None without such a backup: all there is.
    `restore_seconds` is what the last drill took, else the last verification (`restore_by`); None before either.
    `restore_estimate` is that for the size of `good`, in seconds; None where it cannot be told. `closed` names the
    backups that no offline identity opens which is set now: of no use once the machine is lost.
    """

    at: datetime
    backups: list[StoredBackup]
    drills: list[DrillLine]
    good: StoredBackup | None
    elsewhere: StoredBackup | None
    documents_since: int | None
    documents_since_elsewhere: int | None
    restore_seconds: float | None
    restore_by: How | None
    restore_estimate: float | None
    disks: tuple[DiskSpace, ...]
    notices: list[Notice]
    closed: frozenset[str] = frozenset()

    @property
    def is_failing(self) -> bool:
        """Whether a backup, its copy or a drill that is due is missing or failed."""
        return any(notice.code in FAILING for notice in self.notices)


@dataclass(frozen=True)
class Facts:
    """What folders and tables say. `since` is when the installation was made: nothing can be overdue before."""

    backups: list[StoredBackup]
    drills: list[DrillLine]
    since: datetime
    same_disk: bool
    disks: tuple[DiskSpace, ...] = ()
    offsite_same_disk: bool = False


_remembered: dict[Path, tuple[float, Standing]] = {}


async def read_standing(runtime: Runtime, *, fresh: bool = False) -> Standing:
    """How things stand; at most a minute old, unless `fresh`. Raises when the database does not answer."""
    known = _remembered.get(runtime.settings.data_dir)
    if known is not None and not fresh and time.monotonic() - known[0] < REMEMBERED_SECONDS:
        return known[1]
    facts = await asyncio.to_thread(_read_facts, runtime.settings)
    standing = judge(runtime.settings, facts, now=datetime.now(UTC))
    standing = replace(
        standing,
        documents_since=await _documents_since(runtime, standing.good),
        documents_since_elsewhere=await _documents_since(runtime, standing.elsewhere),
    )
    _remembered[runtime.settings.data_dir] = (time.monotonic(), standing)
    return standing


def judge(settings: Settings, facts: Facts, *, now: datetime) -> Standing:
    """What follows from the facts, of which the newest come first; documents are not counted here.

    Backups of another installation are shown and count for nothing: they hold none of this one's documents.
    """
    own = own_backups(settings, facts.backups)
    good = newest_good(own)
    copied = [backup for backup in own if backup.offsite_at is not None]
    elsewhere = max(copied, key=lambda backup: backup.made_at, default=None)
    measured = _measured(facts, good)
    found = [
        _old_backup(good, facts.since, now),
        _failed_backup(own),
        *_drills(facts, now),
        _offsite(settings, good, elsewhere, now),
        _offsite_same_disk(settings) if facts.offsite_same_disk else None,
        _same_disk(settings) if facts.same_disk else None,
        _recipient(settings) or _sealed(settings, own),
        *(_disk_low(disk) for disk in facts.disks if disk.is_low or disk.is_full),
    ]
    return Standing(
        at=now,
        backups=facts.backups,
        drills=facts.drills,
        good=good,
        elsewhere=elsewhere,
        documents_since=None,
        documents_since_elsewhere=None,
        restore_seconds=measured.seconds if measured else None,
        restore_by=measured.how if measured else None,
        restore_estimate=estimate_seconds(measured, good.bytes) if measured and measured.bytes and good else None,
        disks=facts.disks,
        notices=[notice for notice in found if notice is not None],
        closed=frozenset(one.name for one in facts.backups if one.folder and not opens_offline(settings, one)),
    )


def _old_backup(good: StoredBackup | None, since: datetime, now: datetime) -> Notice | None:
    newest = max(since, good.made_at) if good is not None else since
    if now - newest <= timedelta(hours=BACKUP_HOURS):
        return None
    if good is None:
        words = "There is no backup that was restored and compared. Make one: `pharos backup now`, then "
        return Notice("backup_old", f"{words}`pharos backup verify`.")
    hours = (now - good.made_at) // timedelta(hours=1)
    return Notice(
        "backup_old",
        f"The newest backup that was restored and compared, {good.name}, is {hours} hours old. `pharos backup list` "
        "shows what became of later ones; `pharos backup now` makes one.",
    )


def _failed_backup(backups: list[StoredBackup]) -> Notice | None:
    newest = max(backups, key=lambda backup: backup.made_at, default=None)
    if newest is None or newest.state != FAILED:
        return None
    why = f" ({newest.error_code})" if newest.error_code else ""
    if newest.folder is not None:
        words = f"The newest backup, {newest.name}, is not good{why}, and no older one is removed meanwhile."
        return Notice("verify_failed", f"{words} {LOOK}; make another with `pharos backup now`.")
    return Notice("backup_failed", f"The last backup failed{why}. {LOOK}; then run `pharos backup now`.")


def _drills(facts: Facts, now: datetime) -> list[Notice]:
    passed = max((drill.started_at for drill in facts.drills if drill.passed), default=facts.since)
    notices = []
    if now - max(passed, facts.since) > timedelta(days=OVERDUE_DAYS):
        words = f"No restore drill has passed for {(now - passed).days} days. Run one: `pharos drill`."
        notices.append(Notice("drill_overdue", words))
    if facts.drills and not facts.drills[0].passed:
        words = f"The last restore drill, {facts.drills[0].name}, failed. Its log says where and what to run next."
        notices.append(Notice("drill_failed", words))
    return notices


def _offsite(
    settings: Settings, good: StoredBackup | None, elsewhere: StoredBackup | None, now: datetime
) -> Notice | None:
    if not settings.offsite:
        return Notice(
            "no_offsite",
            "No copy of a backup leaves this machine: fire, theft or ransomware takes them all. Set PHAROS_OFFSITE.",
        )
    if good is not None and good.offsite_at is None and good.error_code is not None:
        words = f"{good.name} could not be copied elsewhere ({good.error_code})"
        return Notice("offsite_failed", f"{words}. {LOOK}; then run `pharos backup push`.")
    is_late = elsewhere is None or now - elsewhere.made_at > timedelta(hours=OFFSITE_HOURS)
    if good is None or not is_late:
        return None
    last = f"the newest one there is {elsewhere.name}" if elsewhere is not None else "none has been copied yet"
    return Notice("offsite_old", f"Copies of backups do not leave this machine: {last}. Run `pharos backup push`.")


def _offsite_same_disk(settings: Settings) -> Notice:
    return Notice(
        "no_offsite",
        f"Copies of backups go to {settings.offsite}, on the same disk as the data: one broken disk takes them all. "
        "Name a place on another machine or disk in PHAROS_OFFSITE.",
    )


def _same_disk(settings: Settings) -> Notice:
    return Notice(
        "same_disk",
        f"Backups lie in {settings.backup_root}, on the same disk as the data: one broken disk takes both. Name a "
        "folder on another one in PHAROS_BACKUP_DIR.",
    )


def _recipient(settings: Settings) -> Notice | None:
    words = offline_warning(settings)
    if words is None:
        return None
    if (settings.offsite or "").startswith("restic:") and settings.offsite_password_file is None:
        words = (
            f"{words} Until then the copies offsite cannot be opened without this machine, which has their password."
        )
    return Notice("no_recipient", words)


def _sealed(settings: Settings, backups: list[StoredBackup]) -> Notice | None:
    words = sealed_elsewise(settings, backups)
    return Notice("not_sealed", words) if words is not None else None


def _disk_low(disk: DiskSpace) -> Notice:
    free = f"{size_text(disk.free_bytes)} ({disk.free_share:.0%}) free"
    wanted = (
        f", and the next backup takes {size_text(disk.wanted_bytes)}" if disk.wanted_bytes > disk.free_bytes else ""
    )
    return Notice(
        "disk_low",
        f"The disk of {', '.join(disk.holds)} {'is full' if disk.is_full else 'runs low'}: {free}{wanted}. Make room; "
        "`pharos doctor disk` says where.",
    )


def _measured(facts: Facts, good: StoredBackup | None) -> Measured | None:
    """What a restore took last; 0 bytes for a drill of a backup that nobody remembers."""
    drill = next((drill for drill in facts.drills if drill.passed), None)
    if drill is not None:
        size = next((backup.bytes for backup in facts.backups if backup.name == drill.backup_name), 0)
        return Measured("drill", drill.seconds, size)
    verification = read_verification(good.folder) if good is not None and good.folder is not None else None
    return Measured("verification", verification.seconds, good.bytes) if verification and good else None


def _read_facts(settings: Settings) -> Facts:
    backups = list_backups(settings)
    try:
        with psycopg.connect(connection_urls(settings).app, connect_timeout=3) as connection:
            made = connection.execute("select min(created_at) from tenants").fetchone()
            drills = connection.cursor(row_factory=class_row(DrillLine)).execute(
                "select name, backup_name, started_at, seconds, passed, by, report from drills "
                "order by started_at desc limit %s",
                [DRILLS_SHOWN],
            )
            since = made[0] if made is not None and made[0] is not None else datetime.now(UTC)
            disks = find_disks(settings, wanted_bytes=bytes_after(backups) or 0)
            same = is_same_disk(settings), is_offsite_on_same_disk(settings)
            return Facts(backups, drills.fetchall(), since, same[0], tuple(disks), same[1])
    except psycopg.OperationalError as error:
        raise Unavailable("The database does not answer. `pharos doctor db` says why.") from error
    except psycopg.errors.UndefinedTable as error:
        raise Unavailable("The database has no tables yet. `pharos migrate --apply` makes them.") from error


async def _documents_since(runtime: Runtime, backup: StoredBackup | None) -> int | None:
    if backup is None:
        return None
    counted = select(func.count()).select_from(Document).where(Document.created_at > backup.made_at)
    total = 0
    for tenant in await list_tenants(runtime):
        async with runtime.db.transaction(TenantId(tenant.id)) as session:
            total += int((await session.execute(counted)).scalar_one())
    return total
