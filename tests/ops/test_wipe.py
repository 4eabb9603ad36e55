"""A wipe leaves the shell of an installation, everything else in a backup, and nothing half."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import psycopg
import pytest
import typer
from sqlalchemy import text, update
from tests.conftest import ENCRYPTION_KEY, make_runtime
from tests.make import MadeTenant, make_document, make_person, make_project
from tests.ops.kill_at import kill_at
from tests.postgres import Server
from tests.providers.worlds import KEY as PROVIDER_KEY
from tests.providers.worlds import make_provider
from typer.testing import CliRunner, Result

from pharos import tables
from pharos.cli import app
from pharos.identity.audit import list_audit, record_audit
from pharos.identity.sessions import count_open_sessions
from pharos.identity.setup import is_initialised, is_setup_token
from pharos.identity.sign_in import open_session
from pharos.identity.tenant_secrets import save_tenant_secret
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra import migrate
from pharos.infra.database_roles import DatabaseUrls, connection_urls, initialise_database
from pharos.infra.db import Table, create_database
from pharos.infra.errors import Conflict, Invalid, PharosError
from pharos.infra.mail import queue_mail
from pharos.infra.settings import Settings
from pharos.library.models import Document
from pharos.ops import wipe as wiping
from pharos.ops.backup.blob_lease import end_leases, lease_blobs
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import Manifest, TableState, read_manifest
from pharos.ops.backup.store import list_backups
from pharos.ops.wipe import FATES, WipePlan, installation_name, plan_wipe, wipe
from pharos.ops.wipe_commands import ask_for_name
from pharos.runtime import Runtime, open_runtime
from pharos.worker import sweep

assert tables  # registers every model


pytestmark = pytest.mark.xdist_group("wipe")  # one installation for all of them

NAME = f"wipe_{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def first_day(database_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A migrated database with roles of its own, kept as the template of each test's: a wipe acts as the owner of the
    tables and reads as the backup role."""
    address = database_server.admin_url.rpartition("@")[2].partition("/")[0]
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path_factory.mktemp("wipe"),
        database_url=f"postgresql://{NAME}_app:of-the-test@{address}/{NAME}",
        database_admin_url=database_server.admin_url,
        secret_key=secrets.token_hex(32),
        encryption_key=ENCRYPTION_KEY,
    )
    urls = initialise_database(settings)
    migrate.upgrade(urls.migrator, owner=urls.owner_role)
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        connection.execute(f"alter database {NAME} rename to {NAME}_template")
    yield settings
    database_server.drop(f"{NAME}_template")


@pytest.fixture
async def installation(first_day: Settings, database_server: Server, tmp_path: Path) -> AsyncIterator[Runtime]:
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        connection.execute(f"create database {NAME} template {NAME}_template strategy file_copy")
    shutil.copytree(first_day.data_dir, tmp_path / "data")
    settings = first_day.model_copy(update={"data_dir": tmp_path / "data"})
    database = create_database(connection_urls(settings).app, pool_size=3)
    yield make_runtime(settings, database)
    await database.dispose()
    database_server.drop(NAME)


@pytest.fixture
async def lived_in(installation: Runtime) -> MadeTenant:
    """A person with a session, a document, a mail on its way, a provider's key and an audited action."""
    runtime = installation
    tenant_id = await ensure_default_tenant(runtime)
    admin = await make_person(runtime.db, tenant_id, platform_role="superadmin")
    await make_document(runtime, admin, await make_project(runtime.db, admin), content=b"The pier is closed.")
    async with runtime.db.transaction(tenant_id) as session:
        await session.execute(text("update bootstrap_state set is_initialized = true"))
        await queue_mail(
            session, runtime.vault, tenant_id=tenant_id, recipient="a@example.org", subject="s", text="a link"
        )
        await save_tenant_secret(session, runtime.vault, admin, kind="github", name="default", value="sk-" + "1" * 30)
        await record_audit(session, admin, action="test.done", subject="test:1")
    await make_provider(runtime, tenant_id, "https://lamp.example/v1", is_default=True)
    await open_session(runtime, admin)
    return MadeTenant(tenant_id, "default", admin)


def counted(runtime: Runtime) -> dict[str, int]:
    """Rows of every table of the schema, of all tenants."""
    with psycopg.connect(connection_urls(runtime.settings).backup) as reader:
        return {name: reader.execute(f"select count(*) from {name}").fetchone()[0] for name in FATES}  # type: ignore[index]


async def pharos(runtime: Runtime, *words: str) -> Result:
    """A command on the installation, with nobody at the terminal."""
    settings = runtime.settings
    environment = {
        "PHAROS_DATABASE_URL": settings.database_url,
        "PHAROS_DATA_DIR": str(settings.data_dir),
        "PHAROS_ENCRYPTION_KEY": ENCRYPTION_KEY,
    }
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), env=environment)


@pytest.mark.contract("WM-02", part="every table is classed keep or empty")
def test_every_table_of_the_schema_is_classed(database_server: Server, database_urls: DatabaseUrls) -> None:
    with psycopg.connect(database_urls.app) as connection:
        rows = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    in_database = {name for (name,) in rows}
    assert set(FATES) == in_database, "decide in FATES what a wipe does with a new table"
    assert set(Table.metadata.tables) <= set(FATES)
    kept = {table for table, fate in FATES.items() if fate == "keep"}
    held = {
        key.column.table.name
        for table in kept & set(Table.metadata.tables)
        for key in Table.metadata.tables[table].foreign_keys
    }
    assert held <= kept, "a row that is kept would name one that is gone"


@pytest.mark.contract("WM-02", part="emptied in one transaction, keys and tenants kept, dry run as effect")
@pytest.mark.contract("WM-03")
@pytest.mark.contract("WM-04")
@pytest.mark.contract("LP-09")
@pytest.mark.contract("CH-08", part="removed by wipe")
async def test_a_wipe_removes_what_its_dry_run_counted_and_keeps_the_shell(
    installation: Runtime, lived_in: MadeTenant
) -> None:
    before = counted(installation)
    plan = plan_wipe(installation.settings)
    assert {table: before[table] for table in plan.rows} == plan.rows
    assert (plan.rows["users"], plan.rows["documents"], plan.mail_texts, plan.files) == (1, 1, 1, 1)
    done = await wipe(installation, skip_backup=True)
    assert (done.rows, done.mail_texts, done.files) == (plan.rows, plan.mail_texts, plan.files)
    after = counted(installation)
    gone = {table for table in plan.rows if after[table] == 0}
    assert gone == set(plan.rows) - {"audit_log"}
    kept = {table for table, fate in FATES.items() if fate == "keep"}
    assert {table: after[table] for table in kept} == {**{t: before[t] for t in kept}, "secrets": 2}
    (provider,) = await installation.models.resolve(lived_in.id)
    assert (provider.base_url, provider.key) == ("https://lamp.example/v1", PROVIDER_KEY)
    assert not await is_initialised(installation)
    assert await is_setup_token(installation, done.setup_link.partition("token=")[2])
    async with installation.db.transaction(lived_in.id) as session:
        (entry,) = await list_audit(session)
    assert (entry.action, entry.actor, entry.detail["backup"]) == ("installation.wiped", "operator", "skipped")
    lines = [json.loads(line) for line in done.audit_file.read_text().splitlines()]
    assert [line["row"]["action"] for line in lines if line["log"] == "audit_log"].count("test.done") == 1
    assert len(lines) == sum(plan.rows[log] for log in ("audit_log", "security_events", "audit_seals"))
    assert done.audit_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.contract("WM-03")
async def test_files_wait_aside_for_a_day_and_then_go(installation: Runtime, lived_in: MadeTenant) -> None:
    done = await wipe(installation, skip_backup=True)
    assert done.files_aside is not None
    assert [path.read_bytes() for path in done.files_aside.rglob("*") if path.is_file()] == [b"The pier is closed."]
    assert list(installation.blobs.tenant_files(lived_in.id)) == []
    await sweep(installation)
    assert done.files_aside.exists()
    day_ago = time.time() - 24 * 3600 - 1
    os.utime(done.files_aside, (day_ago, day_ago))
    lease = lease_blobs(connection_urls(installation.settings).app, reason="test", lasts=timedelta(days=1))
    await sweep(installation)
    assert done.files_aside.exists(), f"lease {lease}: a backup may be copying them"
    end_leases(connection_urls(installation.settings).app, reason="test")
    await sweep(installation)
    assert not done.files_aside.exists()


@pytest.mark.contract("WM-01", part="no backup, no wipe")
async def test_without_a_backup_nothing_goes(installation: Runtime, lived_in: MadeTenant, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    cannot = replace(installation, settings=installation.settings.model_copy(update={"backup_dir": in_the_way}))
    before = counted(installation)
    with pytest.raises((PharosError, OSError)):
        await wipe(cannot)
    after = counted(installation)
    assert {**after, "backups": 0, "blob_leases": 0} == {**before, "backups": 0, "blob_leases": 0}


@pytest.mark.prove
async def test_the_backup_is_restored_before_anything_goes_and_has_rows_and_files(
    installation: Runtime, lived_in: MadeTenant
) -> None:
    plan, said = plan_wipe(installation.settings), []
    done = await wipe(installation, tell=lambda step, words: said.append(step))
    assert said[0] == "backup"
    assert "compare" in said
    assert done.backup is not None
    (kept,) = list_backups(installation.settings)
    assert (kept.name, kept.state, kept.documents) == (done.backup, "verified", 1)
    assert kept.folder is not None
    manifest = read_manifest(kept.folder)
    assert {table: manifest.tables[table].rows for table in ("users", "documents")} == {"users": 1, "documents": 1}
    assert manifest.blobs.count == plan.files
    for table in set(plan.rows) - {"audit_log", "audit_seals"}:
        assert done.rows[table] == plan.rows[table], table


def fingerprints(runtime: Runtime) -> dict[str, TableState]:
    with psycopg.connect(connection_urls(runtime.settings).backup) as reader:
        return fingerprint_tables(reader)


async def write(runtime: Runtime, tenant: MadeTenant, statement: str) -> None:
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(text(statement))


async def test_what_was_written_after_the_backup_stops_the_wipe(
    installation: Runtime, lived_in: MadeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word that was changed is as much as a row; what changes by itself hinders nobody."""
    tables = fingerprints(installation)
    manifest = mock.create_autospec(Manifest, instance=True, tables=tables)
    manifest.name = "pharos-of-the-test"
    await write(installation, lived_in, "update documents set name = 'renamed.txt'")
    before = counted(installation)
    with pytest.raises(Conflict, match="Since the backup documents changed; nothing was removed"):
        wiping._empty(installation.settings, "test", manifest)
    assert counted(installation) == before
    tables["documents"] = fingerprints(installation)["documents"]
    await write(installation, lived_in, "update sessions set last_seen_at = now()")
    assert wiping._empty(installation.settings, "test", manifest)[0]["documents"] == 1


async def test_a_wipe_refuses_while_work_is_under_way_unless_forced(
    installation: Runtime, lived_in: MadeTenant
) -> None:
    async with installation.db.transaction(lived_in.id) as session:
        await session.execute(update(Document).values(status="processing"))
    before = counted(installation)
    with pytest.raises(Conflict, match="on their way just now") as refused:
        await wipe(installation, skip_backup=True)
    assert refused.value.code == "documents_processing"
    assert counted(installation) == before
    assert (await wipe(installation, skip_backup=True, force=True)).rows["documents"] == 1


async def test_a_table_that_somebody_holds_ends_the_wipe_with_nothing_removed(
    installation: Runtime, lived_in: MadeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiping, "LOCK_SECONDS", 1)
    before = counted(installation)
    async with installation.db.transaction(lived_in.id) as session:
        await session.execute(text("lock table documents in row exclusive mode"))
        with pytest.raises(Conflict, match="nothing was removed"):
            await wipe(installation, skip_backup=True)
    assert counted(installation) == before


@pytest.mark.contract("WM-02", part="asks for the name; refuses a public installation without --production")
async def test_the_command_asks_refuses_and_says_what_it_did(
    installation: Runtime, lived_in: MadeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counted(installation)
    dry = json.loads((await pharos(installation, "wipe", "--dry-run", "--json")).stdout)
    assert dry["rows"]["documents"] == 1
    nobody = await pharos(installation, "wipe", "--skip-backup")
    assert isinstance(nobody.exception, Invalid)
    assert "--yes" in nobody.exception.message
    monkeypatch.setenv("PHAROS_PUBLIC_URL", "https://pharos.example.org")
    public = await pharos(installation, "wipe", "--skip-backup", "--yes")
    assert isinstance(public.exception, Conflict)
    assert public.exception.code == "in_production"
    assert counted(installation) == before
    done = await pharos(installation, "wipe", "--skip-backup", "--yes", "--production")
    assert done.exit_code == 0, done.output
    assert "Bootstrap status: false" in done.stdout
    assert "https://pharos.example.org/onboarding/first-login?token=" in done.stdout


def test_the_name_must_be_typed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(_env_file=None, public_url="https://pharos.example.org/")
    assert installation_name(settings) == "pharos.example.org"
    plan = WipePlan({"users": 3}, 0, 0, 0, 0)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    for typed, is_right in (("pharos", False), ("pharos.example.org", True)):
        monkeypatch.setattr(typer, "prompt", lambda question, typed=typed: typed)
        if is_right:
            ask_for_name(settings, plan, skip_backup=True)
        else:
            with pytest.raises(Invalid, match="nothing was removed"):
                ask_for_name(settings, plan, skip_backup=True)


def wipe_alone(settings: Settings) -> None:
    """In a process of its own, with a pool of its own."""

    async def run() -> None:
        async with open_runtime(settings) as runtime:
            await wipe(runtime, skip_backup=True)

    asyncio.run(run())


OLD = ("wipe._empty", "pathlib.Path.replace", "wipe._record:end")
"""Up to the end of the transaction; at the second one half an audit file lies there."""
NEW = ("blobs.BlobStore.set_aside", "setup.issue_setup_link")


@pytest.mark.contract("WM-02", part="killed at any step, it has emptied all tables or none; the next one is clean")
async def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_wipe_is_clean(
    installation: Runtime, lived_in: MadeTenant
) -> None:
    settings, before = installation.settings, counted(installation)
    half: list[Path] = []
    for step in (*OLD, *NEW):
        await asyncio.to_thread(kill_at, step, partial(wipe_alone, settings))
        now = counted(installation)
        if step in OLD:
            assert {**now, "operations": 0} == {**before, "operations": 0}, step
        else:
            assert (now["users"], now["documents"], await is_initialised(installation)) == (0, 0, False), step
            assert len(list(installation.blobs.tenant_files(lived_in.id))) == (step == NEW[0]), step
        half += (settings.data_dir / "audit").glob(".*")
    assert len(half) == 1
    done = await wipe(installation, skip_backup=True)
    assert (done.rows["documents"], done.files) == (0, 0)
    assert await is_setup_token(installation, done.setup_link.partition("token=")[2])
    assert not half[0].exists()


@pytest.mark.contract("CH-05")
@pytest.mark.contract("WM-05")
async def test_clearing_signs_out_only_when_asked(installation: Runtime, lived_in: MadeTenant) -> None:
    async def open_sessions() -> int:
        async with installation.db.transaction(lived_in.id) as session:
            return await count_open_sessions(session)

    assert await open_sessions() == 1
    assert (await pharos(installation, "cache", "clear")).exit_code == 0
    assert (await pharos(installation, "cache", "clear", "--responses")).stdout == "Answers are made anew.\n"
    dry = await pharos(installation, "cache", "clear", "--sessions", "--dry-run", "--json")
    assert json.loads(dry.stdout) == {"sessions_ended": 1, "dry_run": True}
    assert await open_sessions() == 1
    done = await pharos(installation, "cache", "clear", "--sessions")
    assert done.stdout == "Answers are made anew.\nEnded 1 sessions; everybody signs in again.\n"
    assert await open_sessions() == 0
    async with installation.db.transaction(lived_in.id) as session:
        assert "sessions.cleared" in [entry.action for entry in await list_audit(session)]
