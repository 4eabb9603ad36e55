"""Bring a backup back: beside the live database, compared, then swapped in by renaming; the old one stays for a while.

Killed at any moment, the live data is the old or the new one, never a mix: until the swap nothing that is in use was
changed but that blobs were added, and the swap is one transaction. The next run removes what a killed one left, and
starts what that one had stopped; `restore_unfinished.py` goes on with it or undoes it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import delete, select

from pharos.identity.audit import record_audit
from pharos.identity.models import Tenant
from pharos.identity.principal import operator
from pharos.identity.security import record_security_event
from pharos.identity.sessions import end_all_sessions
from pharos.infra import migrate
from pharos.infra.database_roles import (
    Administration,
    connection_urls,
    read_administration,
    with_database,
)
from pharos.infra.db import create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.ids import TenantId
from pharos.infra.keyring import key_source, read_keys
from pharos.infra.logs import get_logger
from pharos.infra.models import BlobLease
from pharos.infra.settings import Settings
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.fingerprints import read_server
from pharos.ops.backup.manifest import Manifest
from pharos.ops.backup.restore_blobs import BlobChanges, add_blobs, bring_named
from pharos.ops.backup.restore_journal import Unfinished, keep_journal
from pharos.ops.backup.restore_keys import KeyStep, bring_keys
from pharos.ops.backup.restore_plan import Prepared, Tell, prepare, programs_for, server_differences
from pharos.ops.backup.restore_swap import postgres_running, put_in_place
from pharos.ops.backup.rollback_points import (
    STAMP,
    RollbackPoint,
    dropped_afterwards,
    has_database,
    has_no_database,
    list_rollback_points,
    restored_name,
    server_at_hand,
)
from pharos.ops.backup.scratch import (
    Loaded,
    compare_tables,
    load_dump,
    open_secrets,
    refuse_differences,
    refuse_unopened,
)
from pharos.ops.models import Backup, Drill
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.smoke import Check

log = get_logger(__name__)


@dataclass(frozen=True)
class Restored:
    """What a restore did. `rows` by table; `rollback_point` is the database that was live before, None where there was
    none; `checks` are those of the smoke test, none where Pharos did not run before and stays down."""

    backup: str
    made_at: datetime
    rows: dict[str, int]
    blobs: BlobChanges
    keys: KeyStep
    migrations: tuple[str, ...]
    secrets: int
    rollback_point: str | None
    is_running: bool
    checks: tuple[Check, ...]
    seconds: float


@dataclass(frozen=True)
class Undone:
    """`point` is live again, `other` the name of what was live until then. `files` a wipe had set aside; they are in
    their place again, `<tenant>/ab/cd/<sha256>`."""

    point: RollbackPoint
    other: str
    files: tuple[str, ...]


def restore(
    settings: Settings,
    folder: Path,
    *,
    tell: Tell,
    identity: Path | None = None,
    signed_by: str | None = None,
    keep_sessions: bool = False,
) -> Restored:
    """Replace the live database by a backup's and add the blobs it names.

    Raises the error of the first check that fails; until the step `swap` everything is as it was. When Pharos ran it
    runs again at the end, whatever happened; when what was restored does not pass the smoke test, the old database is
    swapped back and `Unavailable` (`restore_not_healthy`) says so.
    """
    started, stamp = time.monotonic(), datetime.now(UTC).strftime(STAMP)
    prepared = prepare(settings, folder, identity=identity, signed_by=signed_by, tell=tell)
    with ExitStack() as held:
        ran = held.enter_context(postgres_running(settings))
        known = read_administration(settings)
        replaces, fresh = has_database(known, known.database), restored_name(known.database)
        held.enter_context(hold_operation_lock(settings, "restore", with_database=replaces))
        begun = Unfinished(
            what="restore",
            folder=str(folder.absolute()),
            database=fresh,
            replaces=replaces,
            ran=ran,
            identity=str(identity.absolute()) if identity is not None else None,
            signed_by=signed_by,
            keep_sessions=keep_sessions,
        )
        journal = held.enter_context(keep_journal(settings, begun, tell=tell))
        with dropped_afterwards(known, fresh):
            loaded = _load(settings, known, prepared, fresh, tell=journal.step)
            secrets, keys = _bring_secrets(settings, loaded, prepared, tell=journal.step)
            _migrate_forward(settings, prepared, fresh, tell=journal.step)
            missing = len(prepared.blobs.missing) + len(prepared.blobs.damaged)
            journal.step("blobs", f"Adding {missing} uploaded files")
            add_blobs(settings, folder, prepared.blobs, stamp=stamp)
            _carry_over(settings, fresh)
            asyncio.run(_finish_rows(settings, f"backup:{prepared.manifest.name}", fresh, keep_sessions=keep_sessions))
            checks = put_in_place(settings, known, journal)
    return Restored(
        backup=prepared.manifest.name,
        made_at=prepared.manifest.made_at,
        rows={name: state.rows for name, state in prepared.manifest.tables.items()},
        blobs=prepared.blobs,
        keys=keys,
        migrations=prepared.migrations,
        secrets=secrets,
        rollback_point=journal.state.before,
        is_running=ran is not None,
        checks=checks,
        seconds=round(time.monotonic() - started, 3),
    )


def undo_restore(settings: Settings, *, tell: Tell, keep_sessions: bool = False, wanted: str | None = None) -> Undone:
    """Swap back to the newest rollback point, or to the one that is called `wanted`; what was live becomes one itself,
    so a second undo is a redo.

    Raises `NotFound` when there is none, `Conflict` when today's keys do not open what is stored
    there or files that it names are gone.
    """
    with ExitStack() as held:
        ran = held.enter_context(postgres_running(settings))
        known = read_administration(settings)
        held.enter_context(hold_operation_lock(settings, "undoing a restore"))
        point = _rollback_point(settings, wanted)
        begun = Unfinished("undo", "", point.database, replaces=True, ran=ran, keep_sessions=keep_sessions)
        journal = held.enter_context(keep_journal(settings, begun, tell=tell))
        journal.step("secrets", f"Opening every secret in {point.database}")
        loaded = Loaded(
            point.database,
            with_database(known.admin_url, point.database),
            with_database(connection_urls(settings).backup, point.database),
        )
        refuse_unopened(
            open_secrets(loaded, read_keys(settings)),
            name=point.database,
            keys=key_source(settings),
            mend="Put the key from then there too, after today's, and run this again.",
        )
        journal.step("blobs", "Looking for every uploaded file it names")
        found = bring_named(settings, loaded.backup_url, name=point.database)
        _bring_forward(settings, loaded)
        _carry_over(settings, point.database)
        subject = f"database:{point.database}"
        asyncio.run(_finish_rows(settings, subject, point.database, keep_sessions=keep_sessions))
        put_in_place(settings, known, journal)
        assert journal.state.before is not None
    return Undone(point, journal.state.before, found)


def look_for_rollback_point(settings: Settings, wanted: str | None) -> RollbackPoint:
    """What `undo_restore` would swap back to; of the server that comes with Pharos also while nothing runs. Raises
    `NotFound` when there is none."""
    if has_no_database(settings):
        raise _no_rollback_point(wanted)
    with server_at_hand(settings):
        return _rollback_point(settings, wanted)


def _rollback_point(settings: Settings, wanted: str | None) -> RollbackPoint:
    point = next((one for one in list_rollback_points(settings) if wanted in (None, one.database)), None)
    if point is None:
        raise _no_rollback_point(wanted)
    return point


def _no_rollback_point(wanted: str | None) -> NotFound:
    which = f" {wanted}" if wanted else ""
    return NotFound(
        f"There is no rollback point{which}, so nothing can be undone. `pharos restore --list` shows those there are, "
        "and the backups.",
        code="no_rollback_point",
    )


def _load(settings: Settings, known: Administration, prepared: Prepared, fresh: str, *, tell: Tell) -> Loaded:
    """The dump in a database beside the live one, the same as when it was made."""
    manifest = prepared.manifest
    tell("load", f"Loading {sum(state.rows for state in manifest.tables.values())} rows beside the live database")
    loaded = load_dump(
        known.admin_url,
        prepared.folder,
        database=fresh,
        roles_of=known.database,
        passwords=known.passwords,
        programs=programs_for(settings, known.admin_url, manifest),
    )
    _tell_server(loaded, manifest, tell=tell)
    tell("compare", f"Comparing {len(manifest.tables)} tables with the manifest")
    with remember_faults(settings, prepared.folder):
        refuse_differences(compare_tables(loaded, manifest), name=manifest.name)
    return loaded


def _tell_server(loaded: Loaded, manifest: Manifest, *, tell: Tell) -> None:
    """Another server, or other rules for sorting text: said and logged, since what people see in lists may move."""
    with psycopg.connect(loaded.backup_url) as connection:
        here = read_server(connection)
    said = server_differences(manifest, here)
    for sentence in said:
        tell("server", sentence.rstrip("."))
    if said:
        log.warning(
            "restore.server_differed",
            backup=manifest.name,
            version_then=manifest.server_version,
            version_now=here.version,
            collation_then=manifest.collation_version,
            collation_now=here.collation,
        )


def _bring_secrets(settings: Settings, loaded: Loaded, prepared: Prepared, *, tell: Tell) -> tuple[int, KeyStep]:
    """Open everything with the escrow's keys, make it fit this installation's, open everything with those."""
    tell("secrets", "Opening every secret")
    name = prepared.manifest.name
    with remember_faults(settings, prepared.folder):  # below, today's keys may be what is wrong
        refuse_unopened(open_secrets(loaded, prepared.escrow.keys), name=name)
    keys = bring_keys(settings, loaded, prepared.escrow)
    opened = open_secrets(loaded, read_keys(settings))
    refuse_unopened(opened, name=name)
    return opened.secrets, keys


def _migrate_forward(settings: Settings, prepared: Prepared, fresh: str, *, tell: Tell) -> None:
    urls = connection_urls(settings)
    if prepared.migrations:
        tell("migrate", f"Migrating from {prepared.manifest.schema}: {', '.join(prepared.migrations)}")
        migrate.upgrade(with_database(urls.migrator, fresh), owner=urls.owner_role)
    refuse_unsafe_role(with_database(urls.direct, fresh))


def _carry_over(settings: Settings, fresh: str) -> None:
    """What is known of backups and drills is about the installation, not of its data: it stays as it is."""
    urls = connection_urls(settings)
    with (
        suppress(psycopg.OperationalError),  # a machine whose database is gone knows nothing of them
        psycopg.connect(urls.backup, connect_timeout=5) as live,
        psycopg.connect(with_database(urls.direct, fresh)) as target,
    ):
        for model in (Backup, Drill):
            if live.execute("select to_regclass(%s)", [model.__tablename__]).fetchone() == (None,):
                continue
            name = sql.Identifier(model.__tablename__)
            names = sql.SQL(", ").join(map(sql.Identifier, model.__table__.columns.keys()))
            target.execute(sql.SQL("delete from {}").format(name))
            reading = sql.SQL("copy {} ({}) to stdout").format(name, names)
            writing = sql.SQL("copy {} ({}) from stdin").format(name, names)
            with live.cursor().copy(reading) as rows, target.cursor().copy(writing) as kept:
                for chunk in rows:
                    kept.write(chunk)


async def _finish_rows(settings: Settings, subject: str, fresh: str, *, keep_sessions: bool) -> None:
    """Sessions end, and every tenant's logs say what happened."""
    db = create_database(with_database(connection_urls(settings).direct, fresh))
    try:
        async with system_transaction(db) as session:
            await session.execute(delete(BlobLease))  # of a backup that ran when this database was live
            tenants = (await session.execute(select(Tenant.id).order_by(Tenant.id))).scalars().all()
        for tenant_id in map(TenantId, tenants):
            async with db.transaction(tenant_id) as session:
                actor = operator(tenant_id)
                if not keep_sessions:
                    await end_all_sessions(session, actor)
                await record_security_event(
                    session, tenant_id, event_type="data_restored", severity="high", subject=subject
                )
                await record_audit(session, actor, action="data.restored", subject=subject)
    finally:
        await db.dispose()


def _bring_forward(settings: Settings, loaded: Loaded) -> None:
    """Pharos may have been updated since this database was live, and would not start on it while we hold the lock."""
    with psycopg.connect(loaded.backup_url) as connection:
        found = connection.execute("select version_num from alembic_version").fetchone()
    if found is None or not migrate.knows_revision(found[0]):
        raise Conflict(
            f"{loaded.database} was last used by a newer Pharos. Update Pharos and run this again.", code="newer_schema"
        )
    urls = connection_urls(settings)
    migrate.upgrade(with_database(urls.migrator, loaded.database), owner=urls.owner_role)
