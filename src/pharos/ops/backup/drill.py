"""The restore drill: everything a restore needs, done for real beside the live system, and thrown away.

From the offsite copy where there is one, because that is what is left when the machine is gone; with the drill identity
alone, because a backup whose keys nobody can open is none. Nothing of the live system is read but the copy.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict, NotFound, PharosError, Unavailable
from pharos.infra.logs import get_logger
from pharos.infra.processes import ended_by_signals
from pharos.infra.settings import Settings
from pharos.infra.terminal import count_text, size_text
from pharos.ops.backup import offsite
from pharos.ops.backup.check import check_backup, check_escrow
from pharos.ops.backup.drill_log import DrillCheck, DrillReport, explain, is_drill_due, list_drills, save_report
from pharos.ops.backup.drill_pharos import TenantToAsk, ask_canary, drill_settings, second_pharos, tenants_to_ask
from pharos.ops.backup.escrow import drill_identity_file
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.manifest import BLOBS_FOLDER, Manifest
from pharos.ops.backup.named_blobs import named_blobs
from pharos.ops.backup.own import own_backups
from pharos.ops.backup.restore_plan import refuse_no_room, refuse_no_room_to_load
from pharos.ops.backup.retention import plan_retention
from pharos.ops.backup.scratch import (
    Loaded,
    compare_tables,
    load_backup,
    open_secrets,
    refuse_differences,
    refuse_unopened,
    scratch_server,
)
from pharos.ops.backup.scratch_folder import scratch_folder
from pharos.ops.backup.store import list_backups
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.smoke import run_smoke

log = get_logger(__name__)

Tell = Callable[[DrillCheck], None]
"""Told each check as it ends."""

NEWEST_USERS = "select id::text, created_at from users order by created_at desc limit 3"
PAUSE_SECONDS = 0.5
"""Of the smoke test's stream: no proxy stands before the second Pharos."""
STOPS = (PharosError, OSError, psycopg.Error, SQLAlchemyError, httpx.HTTPError)
"""What a drill meets when something is wrong with a backup or a machine; all of it makes it red and goes no further."""


@dataclass
class _Drill:
    """What a drill in progress knows; `home` is a directory of its own, removed at the end."""

    settings: Settings
    name: str
    home: Path
    tell: Tell
    folder: Path = field(default_factory=Path)
    source: str = ""
    target: str = ""
    backup_name: str = ""
    backup_bytes: int = 0
    tables: tuple[int, int] = (0, 0)
    checks: list[DrillCheck] = field(default_factory=list)

    def add(self, check: DrillCheck) -> None:
        self.checks.append(check)
        self.tell(check)


class _Red(Exception):
    """A check has failed, and what follows rests on it."""


def run_drill(
    settings: Settings, *, by: str = "", tell: Tell, wait_for_end: Callable[[str], None] | None = None
) -> DrillReport:
    """Restore the newest backup beside the live system, try it, throw it away, and keep the log; red or green.

    `by` is whoever asked for it; `wait_for_end` is told the second Pharos's address once everything was tried, and the
    drill is cleared away when it returns. Raises only what keeps a drill from beginning: `Conflict` while another
    operation runs.
    """
    with hold_operation_lock(settings, "drill"):
        return _run(settings, by=by, tell=tell, wait_for_end=wait_for_end)


def run_due_drill(settings: Settings, *, by: str, tell: Tell) -> DrillReport | None:
    """The same if PHAROS_DRILL_EVERY_DAYS says that one is due; None when not.

    Asked while nobody else can run one: of several workers that found one due a moment ago, one runs it.
    """
    with hold_operation_lock(settings, "drill"):
        drills, backups = list_drills(settings), list_backups(settings)
        if not is_drill_due(drills, backups, every_days=settings.drill_every_days, now=datetime.now(UTC)):
            return None
        return _run(settings, by=by, tell=tell, wait_for_end=None)


def _run(settings: Settings, *, by: str, tell: Tell, wait_for_end: Callable[[str], None] | None) -> DrillReport:
    started, started_at = time.monotonic(), datetime.now(UTC)
    with ended_by_signals(), scratch_folder(settings.data_dir, prefix="drill-") as home:
        drill = _Drill(settings, f"restore-drill-{started_at:%Y%m%d}", home, tell)
        try:
            with ExitStack() as stack:
                _restore_and_try(drill, stack, wait_for_end)
        except _Red:
            pass  # its check says why
        report = DrillReport(
            name=drill.name,
            started_at=started_at,
            by=by or f"{getpass.getuser()}@{socket.gethostname()}",
            backup_name=drill.backup_name,
            backup_bytes=drill.backup_bytes,
            source=drill.source,
            target=drill.target,
            tables=drill.tables,
            checks=tuple(drill.checks),
            seconds=round(time.monotonic() - started, 3),
        )
        save_report(settings, report)
    log.info("drill.ended", drill=report.name, passed=report.passed, backup=report.backup_name, seconds=report.seconds)
    return report


def _restore_and_try(drill: _Drill, stack: ExitStack, wait_for_end: Callable[[str], None] | None) -> None:
    settings, identity = drill.settings, drill_identity_file(drill.settings)
    with _check(drill, "backup") as said:
        said.append(_fetch(drill))
    with _check(drill, "files") as said, remember_faults(settings, drill.folder):
        manifest = check_backup(settings, drill.folder, identity=identity)
        escrow = check_escrow(settings, drill.folder, manifest, identity=identity)
        files = f"{count_text(len(manifest.files), 'file')}, {size_text(manifest.bytes)}"
        said.append(f"signature, {files}, dump and escrow are whole")
    with _check(drill, "load") as said:
        refuse_no_room_to_load(settings, manifest)
        server = stack.enter_context(scratch_server(settings))
        with remember_faults(settings, drill.folder):
            loaded = load_backup(server, drill.folder, database=drill.name.replace("-", "_"))
        drill.target = f"{loaded.database} on a server of its own, port {urlsplit(server.admin_url).port}"
        said.append(f"restored into {drill.target}")
    with _check(drill, "tables") as said, remember_faults(settings, drill.folder):
        said.append(_compare(drill, loaded, manifest))
    with _check(drill, "uploads") as said, remember_faults(settings, drill.folder):
        said.append(_compare_blobs(loaded, drill.folder))
    with _check(drill, "secrets") as said, remember_faults(settings, drill.folder):
        opened = open_secrets(loaded, escrow.keys)
        refuse_unopened(opened, name=manifest.name)
        keys = f"{count_text(opened.data_keys, 'data key')} and {count_text(opened.secrets, 'secret')}"
        said.append(f"{keys} open with the drill identity alone")
    with _check(drill, "start") as said:
        second = drill_settings(
            drill.home, server, loaded, blobs=own_blobs(settings, drill.folder, drill.home), models=settings.models_dir
        )
        applied = _migrate(second)
        _ask_no_model(loaded)
        url = stack.enter_context(second_pharos(second, escrow))
        said.append(f"a second Pharos answers at {url}; migrations: {applied}")
    with _check(drill, "people") as said:
        tenants = asyncio.run(tenants_to_ask(second, loaded.backup_url))
        said.append(f"somebody to ask as in {len(tenants)} of {count_text(len(manifest.tenants), 'tenant')}")
    _try_it(drill, url, loaded, tenants)
    with _check(drill, "retention") as said:
        said.append(_retention(settings))
    if wait_for_end is not None:
        wait_for_end(url)


def _fetch(drill: _Drill) -> str:
    """Bring the newest backup here: from offsite where a place is set, else the newest verified one of this machine,
    even if it lost a file since: then the drill says which."""
    settings = drill.settings
    if offsite.target_of(settings) is not None:
        drill.folder = offsite.pull_backup(settings, "latest", into=drill.home)
        drill.source = f"from {settings.offsite}"
    else:
        own = own_backups(settings, list_backups(settings))
        newest = next((one for one in own if one.folder and one.verified_at), None)
        if newest is None or newest.folder is None:
            raise NotFound(
                "There is no verified backup to drill with. Make one: `pharos backup now`, `pharos backup verify`.",
                code="no_such_backup",
            )
        drill.folder, drill.source = newest.folder, "from this machine: no PHAROS_OFFSITE is set"
    drill.backup_name = drill.folder.name
    drill.backup_bytes = sum(file.stat().st_size for file in drill.folder.rglob("*") if file.is_file())
    return f"{drill.backup_name}, {size_text(drill.backup_bytes)}, {drill.source}"


def _compare(drill: _Drill, loaded: Loaded, manifest: Manifest) -> str:
    """Every table with its rows and fingerprint, and the three newest users read once more."""
    differences = compare_tables(loaded, manifest)
    drill.tables = (len(manifest.tables) - len(differences), len(manifest.tables))
    refuse_differences(differences, name=manifest.name)
    with psycopg.connect(loaded.backup_url) as connection:
        newest = connection.execute(NEWEST_USERS).fetchall()
    users = manifest.tables["users"].rows if "users" in manifest.tables else 0
    if len(newest) != min(users, 3):
        raise Conflict(f"{len(newest)} of the 3 newest users can be read.", code="backup_differs")
    rows = count_text(sum(state.rows for state in manifest.tables.values()), "row")
    made = f", the newest user of {newest[0][1]:%Y-%m-%d}" if newest else ""
    return f"{len(manifest.tables)}/{len(manifest.tables)} tables, {rows}, fingerprints the same{made}"


def _compare_blobs(loaded: Loaded, folder: Path) -> str:
    """Every document that was restored has its file in the backup."""
    with psycopg.connect(loaded.backup_url) as connection:
        named = named_blobs(connection)
    missing = [blob.relative for blob in named if not (folder / BLOBS_FOLDER / blob.relative).is_file()]
    if missing:
        raise Conflict(
            f"The backup lacks {count_text(len(missing), 'file')} of its documents (first: {missing[0]}).",
            code="document_without_file",
        )
    return f"{count_text(len(named), 'file')}, and no document lacks its own"


def own_blobs(settings: Settings, folder: Path, home: Path) -> Path:
    """The backup's files as a tree of the drill's own, which the second Pharos may add to and remove from.

    Hard links where both lie on one file system, for a file's bytes never change; else copies. Raises `StorageFull`.
    """
    if folder.stat().st_dev != home.stat().st_dev:
        refuse_no_room(settings, sum(file.stat().st_size for file in (folder / BLOBS_FOLDER).rglob("*")))
    return Path(shutil.copytree(folder / BLOBS_FOLDER, home / "uploads", copy_function=_link))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _migrate(second: Settings) -> str:
    """Bring the schema of an older backup to this code's."""
    urls = connection_urls(second)
    return ", ".join(migrate.upgrade(urls.migrator, owner=urls.owner_role).pending) or "none needed"


def _ask_no_model(loaded: Loaded) -> None:
    """Switch every model off in the copy: canaries are answered by quotations, and no document goes to a provider."""
    with psycopg.connect(loaded.admin_url) as connection:
        connection.execute(
            "insert into tenant_model_settings (tenant_id, llm_enabled) select id, false from tenants "
            "on conflict (tenant_id) do update set llm_enabled = false"
        )


def _try_it(drill: _Drill, url: str, loaded: Loaded, tenants: list[TenantToAsk]) -> None:
    with _check(drill, "smoke") as said:
        token = tenants[0].token if tenants else None
        report = asyncio.run(run_smoke(url, token=token, pause_seconds=PAUSE_SECONDS))
        if not report.passed:
            failed = "; ".join(f"{check.name}: {check.said}" for check in report.failed)
            raise Unavailable(f"{failed}.", code="smoke_failed")
        skipped = [check.name for check in report.checks if check.result == "SKIP"]
        passed = count_text(len(report.checks) - len(skipped), "check")
        said.append(f"{passed} passed; skipped: {', '.join(skipped) or 'none'}")
    for tenant in tenants:
        try:
            with _check(drill, "canary") as said:
                said.append(asyncio.run(ask_canary(url, loaded.backup_url, tenant)))
        except LookupError:
            drill.add(DrillCheck("canary", "SKIP", f"{tenant.slug}: has no passage its superadmin may read"))


def _retention(settings: Settings) -> str:
    backups = list_backups(settings)
    plan = plan_retention(own_backups(settings, backups), keep_days=settings.backup_keep_days, now=datetime.now(UTC))
    good = sum(backup.is_good for backup in backups)
    kept = f" ({plan.kept_because})" if plan.kept_because else ""
    here = f"{count_text(good, 'good backup')} here, kept {count_text(settings.backup_keep_days, 'day')}"
    return f"{here}; {len(plan.remove)} may go{kept}"


@contextmanager
def _check(drill: _Drill, name: str) -> Iterator[list[str]]:
    """One check; what it appends is what was seen. Anything that goes wrong makes it red and ends the drill."""
    started, said = time.monotonic(), []  # type: float, list[str]
    try:
        yield said
    except STOPS as error:
        known = error if isinstance(error, PharosError) else Unavailable(f"{type(error).__name__}: {error}")
        cause, next_step = explain(known)
        seconds = round(time.monotonic() - started, 3)
        drill.add(DrillCheck(name, "FAIL", known.message, cause, next_step, seconds, known.code))
        raise _Red(name) from error
    drill.add(DrillCheck(name, "PASS", "; ".join(said), seconds=round(time.monotonic() - started, 3)))
