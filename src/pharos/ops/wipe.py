"""An installation as on its first day: everything people put in is gone, the shell of it stays.

The rows go in one transaction, so a kill leaves all of them or none. Files follow it: bytes without a row are harmless,
a row without its bytes would not be. What a kill left lying the next wipe moves, or the worker's sweep removes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Literal
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from pharos.identity.setup import issue_setup_link
from pharos.identity.tenants import DEFAULT_SLUG
from pharos.infra.blobs import ASIDE, BlobStore
from pharos.infra.database_roles import DatabaseUrls, connection_urls
from pharos.infra.errors import Conflict
from pharos.infra.ids import TenantId, new_id
from pharos.infra.mail import SECRET_KIND
from pharos.infra.settings import Settings
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import Manifest, read_manifest
from pharos.ops.backup.restore_plan import Tell
from pharos.ops.backup.snapshot import write_backup
from pharos.ops.backup.verification import verify_backup
from pharos.ops.operation_lock import hold_operation_lock
from pharos.runtime import Runtime

LOCK_SECONDS = 20
"""A transaction that holds one of the tables for longer is not one of a request."""

Fate = Literal["keep", "empty"]
FATES: dict[str, Fate] = {
    "alembic_version": "keep",
    "answer_cache": "keep",
    "api_keys": "empty",
    "app_events": "empty",
    "audit_log": "empty",
    "audit_seals": "empty",
    "backups": "keep",
    "blob_leases": "keep",
    "bootstrap_state": "keep",  # its one row says afterwards that nobody is here yet
    "conversations": "empty",
    "data_keys": "keep",
    "departments": "empty",
    "document_texts": "empty",
    "documents": "empty",
    "drills": "keep",
    "encryption_keys": "keep",
    "feedback": "empty",
    "group_members": "empty",
    "groups": "empty",
    "hidden_projects": "empty",
    "lexicon": "empty",
    "llm_calls": "keep",  # what was paid stays paid, and counts against the month
    "mails": "empty",
    "memberships": "empty",
    "message_sources": "empty",
    "messages": "empty",
    "one_time_tokens": "empty",
    "operations": "keep",
    "passage_terms": "empty",
    "passage_vectors_minilm_l6_v2": "empty",
    "passages": "empty",
    "procrastinate_events": "empty",
    "procrastinate_jobs": "empty",
    "procrastinate_periodic_defers": "empty",
    "procrastinate_workers": "keep",
    "project_grants": "empty",
    "project_members": "empty",
    "project_memories": "empty",
    "projects": "empty",
    "provider_states": "keep",
    "providers": "keep",
    "rate_limits": "empty",
    "refresh_tokens": "empty",
    "secrets": "keep",  # keys of providers and tokens; the texts of mails go with their mails
    "security_events": "empty",
    "sessions": "empty",
    "share_requests": "empty",
    "share_tokens": "empty",
    "tenant_model_settings": "keep",
    "tenants": "keep",
    "turn_events": "empty",
    "turns": "empty",
    "users": "empty",
    "vector_spaces": "keep",
}
"""What becomes of every table. A new one must be named here: a test compares this list with the schema (WM-02)."""

EMPTIED = tuple(table for table, fate in FATES.items() if fate == "empty")
CHANGING_BY_THEMSELVES = {
    "api_keys",  # when each was used last
    "app_events",
    "audit_log",
    "audit_seals",
    "mails",
    "one_time_tokens",
    "procrastinate_events",
    "procrastinate_jobs",
    "procrastinate_periodic_defers",
    "rate_limits",
    "refresh_tokens",
    "security_events",
    "sessions",
    "share_tokens",  # how often each was used
    "turn_events",  # of answers that ended long ago they go by themselves
    "turns",
}
CONTENT = tuple(table for table in EMPTIED if table not in CHANGING_BY_THEMSELVES)
"""What people made, and what was made of it: in the backup to the last row and letter, or the wipe refuses."""
LOGS = ("audit_log", "security_events", "audit_seals")
BUSY = sql.SQL(
    """
    select (select count(*) from documents where status = 'processing')
         + (select count(*) from procrastinate_jobs where status = 'doing')
    """
)


@dataclass(frozen=True)
class WipePlan:
    """What a wipe removes now: rows by table, files with their bytes, texts of mails; `busy` counts running work."""

    rows: dict[str, int]
    mail_texts: int
    files: int
    file_bytes: int
    busy: int


@dataclass(frozen=True)
class Wiped:
    """What a wipe removed, and where it still is: a backup (None: skipped), the logs, the files for a day."""

    rows: dict[str, int]
    mail_texts: int
    files: int
    files_aside: Path | None
    audit_file: Path
    backup: str | None
    setup_link: str


def installation_name(settings: Settings) -> str:
    """What people call it: host and port of its address. To be typed before something irrevocable."""
    return urlsplit(settings.base_url).netloc


def is_production(settings: Settings) -> bool:
    """Whether it was given an address for people; one that has none is somebody's own."""
    return settings.public_url is not None


def plan_wipe(settings: Settings) -> WipePlan:
    """Count what a wipe would remove now; changes nothing."""
    blobs = BlobStore(settings.blob_root)
    with psycopg.connect(connection_urls(settings).backup) as reader:
        rows, mail_texts = _count(reader)
        sizes = [size for tenant_id in _tenants(reader) for _, size in blobs.tenant_files(tenant_id)]
        busy = _number(reader, BUSY)
    return WipePlan(rows, mail_texts, len(sizes), sum(sizes), busy + blobs.open_uploads(now=time()))


async def wipe(
    runtime: Runtime, *, skip_backup: bool = False, force: bool = False, tell: Tell = lambda step, words: None
) -> Wiped:
    """Back up, restore that beside the live system, empty the tables of `FATES`, set the files aside, and open the
    first setup again.

    Raises what a backup and its verification raise, and `Conflict` while another operation runs, while documents are
    being processed (unless `force`), when content changed between the backup and the wipe, or when the tables are held
    by a long transaction. Nothing is removed then.
    """
    settings, stamp = runtime.settings, f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with hold_operation_lock(settings, "wipe"):
        if not force:
            refuse_while_busy(plan_wipe(settings))
        backup = None if skip_backup else await asyncio.to_thread(_back_up, settings, tell)
        rows, mail_texts, audit_file = await asyncio.to_thread(_empty, settings, stamp, backup)
        tenants = await asyncio.to_thread(_all_tenants, settings)
        files = await asyncio.to_thread(runtime.blobs.set_aside, tenants, stamp=stamp)
        aside = runtime.blobs.root / f"{ASIDE}{stamp}" if files else None
        name = backup.name if backup is not None else None
        return Wiped(rows, mail_texts, files, aside, audit_file, name, await issue_setup_link(runtime))


def refuse_while_busy(plan: WipePlan) -> None:
    """Raise `Conflict` while documents are being processed or sent."""
    if plan.busy:
        raise Conflict(
            f"{plan.busy} documents or jobs are on their way just now. Wait until `pharos queue list` shows none in "
            "`doing`, or lose them: --force.",
            code="documents_processing",
        )


def _back_up(settings: Settings, tell: Tell) -> Manifest:
    """Make a backup and restore it beside the live system: what is about to go is in it, or nothing goes."""
    tell("backup", "Making a backup")
    folder = write_backup(settings)
    verify_backup(settings, folder, tell=tell)
    return read_manifest(folder)


def _empty(settings: Settings, stamp: str, backup: Manifest | None) -> tuple[dict[str, int], int, Path]:
    """The one transaction. Who writes waits; who reads goes on until the tables are cut off."""
    urls = connection_urls(settings)
    with _as_owner(urls) as owner, psycopg.connect(urls.backup) as reader:
        tables = sql.SQL(", ").join(map(sql.Identifier, EMPTIED))
        # From here on nobody adds a row that is neither counted nor in the audit file.
        owner.execute(sql.SQL("lock table {} in exclusive mode").format(tables))
        rows, mail_texts = _count(reader)
        if backup is not None:
            _refuse_newer(reader, backup)
        audit_file = _export_logs(reader, settings.data_dir / "audit" / f"before-wipe-{stamp}.jsonl")
        tenants = _tenants(reader)
        reader.rollback()  # what it has read it holds too, and the next statement wants it alone
        # Not `restart identity` for the queue: a worker that still runs job 1 would end the new job 1.
        owner.execute(sql.SQL("truncate {}").format(tables))
        _remove_mail_texts(owner, tenants)
        owner.execute("update bootstrap_state set is_initialized = false, setup_token_hash = null")
        _record(owner, rows, backup.name if backup is not None else "skipped", audit_file)
        owner.execute("select pg_notify('pharos_sign_ins', 'all')")
    return rows, mail_texts, audit_file


@contextmanager
def _as_owner(urls: DatabaseUrls) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """One transaction as the role that owns the tables. Raises `Conflict` when they cannot be had."""
    try:
        with psycopg.connect(urls.migrator) as connection:
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(urls.owner_role)))
            connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(f"{LOCK_SECONDS}s")))
            yield connection
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        raise Conflict(
            "Somebody holds a table that is to be emptied; nothing was removed. Run it again, or stop Pharos first: "
            "`pharos down`, then `pharos up --only postgres`.",
            code="tables_in_use",
        ) from error


def _refuse_newer(reader: psycopg.Connection[tuple[object, ...]], backup: Manifest) -> None:
    """Raise `Conflict` when content is not what the backup holds: minutes have passed while that was restored.

    Reads all content while writers wait: as long as the backup's own fingerprints took.
    """
    now = fingerprint_tables(reader, CONTENT)
    if changed := [table for table, state in now.items() if state != backup.tables.get(table)]:
        raise Conflict(
            f"Since the backup {', '.join(changed)} changed; nothing was removed. Run it again when people have "
            "stopped, or stop Pharos first: `pharos down`, then `pharos up --only postgres`.",
            code="written_meanwhile",
            tables=changed,
        )


def _count(reader: psycopg.Connection[tuple[object, ...]]) -> tuple[dict[str, int], int]:
    rows = {
        table: _number(reader, sql.SQL("select count(*) from {}").format(sql.Identifier(table))) for table in EMPTIED
    }
    texts = sql.SQL("select count(*) from secrets where kind = {}").format(sql.Literal(SECRET_KIND))
    return rows, _number(reader, texts)


def _number(reader: psycopg.Connection[tuple[object, ...]], query: sql.SQL | sql.Composed) -> int:
    found = reader.execute(query).fetchone()
    assert found is not None
    return int(str(found[0]))


def _tenants(reader: psycopg.Connection[tuple[object, ...]]) -> list[TenantId]:
    return [TenantId(row[0]) for row in reader.execute("select id from tenants").fetchall()]  # type: ignore[arg-type]


def _all_tenants(settings: Settings) -> list[TenantId]:
    with psycopg.connect(connection_urls(settings).backup) as reader:
        return _tenants(reader)


def _export_logs(reader: psycopg.Connection[tuple[object, ...]], file: Path) -> Path:
    """Every tenant's logs and seals as JSON lines, mode 0600; whole and on the disk when it returns."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for half in file.parent.glob(".before-wipe-*"):  # left by a kill: we hold the lock of operations
        half.unlink()
    fresh = file.with_name(f".{file.name}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        for log in LOGS:
            with reader.cursor(name="wipe") as rows:  # by portions: a log may be larger than the memory
                rows.execute(sql.SQL("select row_to_json(t)::text from {} t").format(sql.Identifier(log)))
                for (row,) in rows:
                    stream.write(f'{{"log": "{log}", "row": {row}}}\n')
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    return file


def _remove_mail_texts(owner: psycopg.Connection[tuple[object, ...]], tenants: list[TenantId]) -> None:
    """Of no use without their mails. The fence holds for the owner too, so tenant by tenant."""
    for tenant_id in tenants:
        _enter(owner, tenant_id)
        owner.execute("delete from secrets where kind = %s", [SECRET_KIND])


def _record(owner: psycopg.Connection[tuple[object, ...]], rows: dict[str, int], backup: str, audit_file: Path) -> None:
    """The first entry of the new audit log: in the same transaction, so no wipe goes without it."""
    found = owner.execute("select id from tenants where slug = %s", [DEFAULT_SLUG]).fetchone()
    if found is None:
        return
    _enter(owner, TenantId(found[0]))  # type: ignore[arg-type]
    kept = {"rows": sum(rows.values()), "backup": backup, "audit_file": audit_file.name}
    owner.execute(
        "insert into audit_log (tenant_id, id, actor, action, subject, detail) values (%s, %s, %s, %s, %s, %s)",
        [found[0], new_id(), "operator", "installation.wiped", f"tenant:{found[0]}", json.dumps(kept)],
    )


def _enter(owner: psycopg.Connection[tuple[object, ...]], tenant_id: TenantId) -> None:
    owner.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant_id)])
