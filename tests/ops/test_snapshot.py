"""A backup holds one moment of everything, or it does not exist; making one disturbs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import multiprocessing
import os
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psutil
import psycopg
import pytest
from pydantic import SecretStr
from pyrage import x25519  # type: ignore[import-untyped]
from tests.conftest import ENCRYPTION_KEY, make_runtime
from tests.make import MadeTenant, make_document, make_project, make_tenant
from tests.postgres import Server
from typer.testing import CliRunner

from pharos.cli import app
from pharos.identity.audit import list_audit
from pharos.identity.tenant_secrets import save_tenant_secret
from pharos.infra import migrate
from pharos.infra.blobs import flush_disk
from pharos.infra.database_roles import connection_urls, initialise_database
from pharos.infra.db import create_database
from pharos.infra.errors import Conflict, StorageFull
from pharos.infra.ids import DocumentId, ProjectId
from pharos.infra.postgres_place import reachable_binaries
from pharos.infra.settings import Settings
from pharos.library.delete import delete_documents, sweep_blobs
from pharos.ops.backup import snapshot
from pharos.ops.backup.blob_lease import end_leases, lease_blobs
from pharos.ops.backup.escrow import make_drill_identity, open_escrow
from pharos.ops.backup.manifest import ESCROW, Manifest, read_manifest, write_manifest
from pharos.ops.backup.signing import is_signed_by, sign
from pharos.ops.backup.snapshot import make_backup, plan_backup
from pharos.ops.backup.store import StoredBackup, list_backups, record_verification
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.upgrade_schema import record_skipped_backup, upgrade_schema
from pharos.runtime import Runtime
from pharos.worker import DailyBackup

pytestmark = pytest.mark.xdist_group("snapshot")  # one installation for all of them

NAME = f"snapshot_{secrets.token_hex(4)}"
SECRET = f"a-key-that-must-never-be-read-in-a-dump-{secrets.token_hex(8)}"
FORK = multiprocessing.get_context("fork")  # a child that has everything imported already


@pytest.fixture(scope="module")
def installed(database_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A database with roles of its own: a backup is made as the backup role."""
    address = database_server.admin_url.rpartition("@")[2].partition("/")[0]
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path_factory.mktemp("snapshot"),
        database_url=f"postgresql://{NAME}_app:of-the-test@{address}/{NAME}",
        database_admin_url=database_server.admin_url,
        secret_key=secrets.token_hex(32),
        encryption_key=ENCRYPTION_KEY,
    )
    urls = initialise_database(settings)
    migrate.upgrade(urls.migrator, owner=urls.owner_role)
    yield settings
    database_server.drop(NAME)


@dataclass(frozen=True)
class World:
    """A tenant of this test in the installation of this module; backups go into a folder of this test."""

    runtime: Runtime
    tenant: MadeTenant
    project: ProjectId

    @property
    def settings(self) -> Settings:
        return self.runtime.settings

    async def add(self, content: str) -> DocumentId:
        made = await make_document(
            self.runtime, self.tenant.admin, self.project, name=f"{secrets.token_hex(4)}.txt", content=content.encode()
        )
        return DocumentId(made.id)

    async def remove(self, document_id: DocumentId) -> None:
        async with self.runtime.db.transaction(self.tenant.id) as session:
            await delete_documents(session, self.tenant.admin, document_ids=[document_id])


@pytest.fixture
async def world(installed: Settings, tmp_path: Path) -> AsyncIterator[World]:
    settings = installed.model_copy(update={"backup_dir": tmp_path / "backups", "upload_root": tmp_path / "blobs"})
    database = create_database(connection_urls(settings).app, pool_size=3)
    runtime = make_runtime(settings, database)
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("delete from backups")
    tenant = await make_tenant(database)
    yield World(runtime, tenant, await make_project(database, tenant.admin))
    with psycopg.connect(connection_urls(settings).app) as rows:  # other tests have another folder of blobs
        rows.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant.id)])
        rows.execute("delete from documents")
    await database.dispose()


def documents_in(folder: Path) -> set[str]:
    """Ids of the documents in a dump."""
    program = reachable_binaries(os.geteuid(), os.getegid()) / "bin" / "pg_restore"
    command: list[str | Path] = [program, "--data-only", "--table=documents", "--file=-", folder / "database"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env={}).stdout
    lines = text[text.index("COPY public.documents") :].splitlines()
    columns = lines[0].partition("(")[2].partition(")")[0].split(", ")
    return {line.split("\t")[columns.index("id")] for line in lines[1 : lines.index("\\.")]}


def blobs_in(manifest: Manifest) -> set[str]:
    return {path.rpartition("/")[2] for path in manifest.files if path.startswith("blobs/")}


def is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def in_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data_dir", "database_url", "backup_dir", "upload_root"):
        monkeypatch.setenv(f"PHAROS_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("PHAROS_ENCRYPTION_KEY", ENCRYPTION_KEY)


def only_failure(settings: Settings) -> StoredBackup:
    """The one failed attempt; nothing of it lies in the folder."""
    assert is_empty(settings.backup_root)
    (found,) = list_backups(settings)
    assert (found.state, found.folder) == ("failed", None)
    return found


def when_the_snapshot_is_taken(act: Callable[[], None]) -> snapshot.Progress:
    """Called once the snapshot stands and pg_dump has been started, before anything was copied."""

    def progress(what: str, done: int, _total: int) -> None:
        if (what, done) == ("database", 0):
            act()

    return progress


@pytest.mark.contract("BK-03", part="dump, files and manifest lie compressed in a folder named with its time")
@pytest.mark.contract("BK-04")
@pytest.mark.contract("BK-05", part="vectors are in the dump; the manifest names their spaces, models and dimensions")
@pytest.mark.contract("BK-06", part="the files are there byte for byte")
@pytest.mark.contract("BK-07")
@pytest.mark.contract("BK-17")
@pytest.mark.contract("BK-18")
@pytest.mark.contract("SE-09")
@pytest.mark.contract("IQ-03", part="the queue is in the backup")
async def test_a_backup_holds_everything_readable_by_its_owner_alone(world: World) -> None:
    async with world.runtime.db.transaction(world.tenant.id) as session:
        await save_tenant_secret(
            session, world.runtime.vault, world.tenant.admin, kind="github", name="openai", value=SECRET
        )
    kept = await world.add("The lighthouse stood 103 metres tall.")
    offline = str(x25519.Identity.generate().to_public())
    folder = await asyncio.to_thread(make_backup, world.settings.model_copy(update={"backup_recipient": offline}))
    manifest = read_manifest(folder)
    assert manifest.sealed_to == [offline]
    assert folder.name == manifest.name == f"pharos-{manifest.made_at:%Y%m%d-%H%M%S}"
    assert str(kept) in documents_in(folder)
    assert {"sessions", "passage_vectors_minilm_l6_v2", "procrastinate_jobs"} <= manifest.tables.keys()
    assert manifest.spaces[0].keys() == {"model", "dimension", "table", "state"}
    assert manifest.tenants[str(world.tenant.id)]["documents"] == 1
    assert any("TLS" in line for line in manifest.not_inside)
    escrow = open_escrow((folder / ESCROW).read_bytes(), make_drill_identity(world.settings))
    assert manifest.keys == [key.id for key in escrow.keys]
    content = (folder / "manifest.json").read_bytes()
    assert is_signed_by(manifest.signed_by, content, (folder / "manifest.sig").read_bytes())
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert {str(path.relative_to(folder)) for path in paths} == {*manifest.files, "manifest.json", "manifest.sig"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")] if path.is_dir()} == {0o700}
    dump = [gzip.decompress(path.read_bytes()) for path in folder.glob("database/*.gz")]
    assert any(str(kept).encode() in part for part in dump)
    assert not any(SECRET.encode() in part for part in dump)


@pytest.mark.contract("BK-06", part="written while people write, it holds what was acknowledged before, nothing after")
@pytest.mark.contract("BK-11", part="at any time, while people work")
async def test_a_backup_made_while_people_write_is_one_moment(world: World) -> None:
    ledger: list[str] = []
    loop, has_begun, is_over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    async def write_on() -> None:
        """One after the other: what is in the snapshot must be the beginning of the ledger."""
        while not is_over.is_set():
            ledger.append(str(await world.add(f"entry {len(ledger)}")))
            if len(ledger) == 3:
                has_begun.set()

    before = [str(await world.add(f"before {number}")) for number in range(3)]
    known_at_snapshot: list[int] = []

    def note() -> None:
        known_at_snapshot.append(len(ledger))
        # A document of the snapshot goes while its bytes have not been copied yet.
        asyncio.run_coroutine_threadsafe(delete_and_sweep(), loop).result(30)

    async def delete_and_sweep() -> None:
        await world.remove(DocumentId(UUID(before[0])))
        assert await sweep_blobs(world.runtime, world.tenant.id, grace_seconds=0) == 0

    writer = asyncio.create_task(write_on())
    await has_begun.wait()
    acknowledged_before = len(ledger)
    folder = await asyncio.to_thread(make_backup, world.settings, progress=when_the_snapshot_is_taken(note))
    is_over.set()
    await writer
    found, manifest = documents_in(folder), read_manifest(folder)
    inside = [entry for entry in ledger if entry in found]
    assert found == {*before, *inside}
    assert inside == ledger[: len(inside)]
    assert acknowledged_before <= len(inside) <= known_at_snapshot[0] + 1  # one may have been on its way
    assert len(inside) < len(ledger)
    assert manifest.tables["documents"].rows == len(found) == len(blobs_in(manifest))
    assert await sweep_blobs(world.runtime, world.tenant.id, grace_seconds=0) == 1  # the lease went with the backup


@pytest.mark.contract("BK-08", part="a missing or damaged file fails the whole backup and is named")
@pytest.mark.parametrize(("harm", "code"), [("remove", "missing_blob"), ("flip", "wrong_blob")])
async def test_a_file_that_is_not_what_its_row_says_fails_the_backup(world: World, harm: str, code: str) -> None:
    await world.add("whole")
    await world.add("harmed")
    blob = next(path for path in world.runtime.blobs.root.glob("*/??/??/*") if path.read_bytes() == b"harmed")
    if harm == "remove":
        blob.unlink()
    else:
        blob.write_bytes(b"harmes")
    with pytest.raises(Conflict, match=blob.name) as failed:
        await asyncio.to_thread(make_backup, world.settings)
    assert failed.value.code == only_failure(world.settings).error_code == code
    assert "pharos backup now" in failed.value.message


@pytest.mark.contract("BK-08", part="a dump whose producer failed is no backup, whatever it wrote")
async def test_a_dump_whose_producer_was_killed_is_no_backup(world: World) -> None:
    await world.add("whole")

    def kill_pg_dump() -> None:
        (dump,) = [child for child in psutil.Process().children() if child.name() == "pg_dump"]
        dump.kill()

    with pytest.raises(Conflict, match="pg_dump failed"):
        await asyncio.to_thread(make_backup, world.settings, progress=when_the_snapshot_is_taken(kill_pg_dump))
    assert only_failure(world.settings).error_code == "dump_failed"


@pytest.mark.contract("BK-08", part="the reason of a dump that fails is told")
async def test_a_dump_the_server_refuses_is_told_with_its_reason(world: World, installed: Settings) -> None:
    assert installed.database_admin_url is not None
    urls = connection_urls(world.settings)
    with psycopg.connect(urls.migrator, autocommit=True) as connection:
        connection.execute(f"set role {urls.owner_role}")
        connection.execute(f"revoke select on documents from {NAME}_backup")
        try:
            with pytest.raises(Exception, match="permission denied for table documents"):
                await asyncio.to_thread(make_backup, world.settings)
        finally:
            connection.execute(f"grant select on documents to {NAME}_backup")
    assert "permission denied" in str(only_failure(world.settings).error)


@pytest.mark.contract("BK-08", part="read back before it counts: what the disk kept differently fails it")
async def test_a_file_that_reads_back_differently_fails_the_backup(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add("something")
    flush = flush_disk

    def flush_badly(folder: Path) -> None:
        flush(folder)
        blob = next(folder.glob("blobs/*/??/??/*"))
        blob.write_bytes(blob.read_bytes()[::-1])

    monkeypatch.setattr(snapshot, "flush_disk", flush_badly)
    with pytest.raises(Conflict, match="is not the file that was written"):
        await asyncio.to_thread(make_backup, world.settings)
    assert only_failure(world.settings).error_code == "damaged_file"


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    """A file system with hardly more room than a backup is allowed to need."""
    place = world.settings.backup_root
    place.mkdir()
    size = plan_backup(world.settings).needed_bytes + 2**21
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=False)
    if mounted.returncode != 0:
        pytest.skip("only an administrator can make a file system")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.contract("BK-08", part="a full disk ends it cleanly and says how much it needs")
async def test_a_disk_that_is_or_becomes_full_ends_it_cleanly(world: World, small_disk: Path) -> None:
    await world.add("something")
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 2**20)

    with pytest.raises(StorageFull, match="full"):
        await asyncio.to_thread(make_backup, world.settings, progress=when_the_snapshot_is_taken(fill))
    with pytest.raises(StorageFull, match=r"needs up to [\d.]+ \w+; .* had [\d.]+ \w+ free"):
        await asyncio.to_thread(make_backup, world.settings)
    filler.unlink()
    assert is_empty(small_disk)
    assert {backup.error_code for backup in list_backups(world.settings)} == {"storage_full"}
    assert (await asyncio.to_thread(make_backup, world.settings)).is_dir()


def kill_when(settings: Settings, pattern: str) -> None:
    """Make a backup in another process and kill it with -9 as soon as a path in the backups' folder appears."""
    maker = FORK.Process(target=make_backup, args=(settings,))
    maker.start()
    while not any(settings.backup_root.glob(pattern)):
        assert maker.is_alive(), f"it ended before {pattern} was seen"
    maker.kill()
    maker.join()
    assert maker.exitcode == -9


def check_nothing_is_left_of_a_kill(settings: Settings) -> None:
    assert list_backups(settings) == []
    assert plan_backup(settings).blobs > 0
    folder = make_backup(settings)
    assert [path.name for path in settings.backup_root.iterdir()] == [folder.name]
    assert [backup.name for backup in list_backups(settings)] == [folder.name]
    with psycopg.connect(connection_urls(settings).app) as connection:
        assert connection.execute("select count(*) from blob_leases").fetchone() == (0,)
        assert connection.execute("select count(*) from operations").fetchone() == (0,)


@pytest.mark.contract("BK-08", part="what a kill leaves is listed nowhere and removed by the next backup")
async def test_a_kill_in_the_middle_leaves_nothing_that_is_listed(world: World) -> None:
    await world.add("something")
    await asyncio.to_thread(kill_when, world.settings, ".writing-*/database/toc.dat")
    await asyncio.to_thread(check_nothing_is_left_of_a_kill, world.settings)


@pytest.mark.prove
@pytest.mark.parametrize(
    "pattern",
    [
        ".writing-*",
        ".writing-*/database",
        ".writing-*/database/*.dat.gz",
        ".writing-*/blobs",
        ".writing-*/blobs/*/??/??/*",
        ".writing-*/escrow.age",
        ".writing-*/manifest.json",
        ".writing-*/manifest.sig",
    ],
)
async def test_a_kill_at_any_step_leaves_nothing_that_is_listed(world: World, pattern: str) -> None:
    await world.add("something")
    await asyncio.to_thread(kill_when, world.settings, pattern)
    await asyncio.to_thread(check_nothing_is_left_of_a_kill, world.settings)


@pytest.mark.contract("BK-06", part="a lease keeps deleted files from the sweep while it lasts")
async def test_no_bytes_are_swept_while_a_lease_lasts(world: World) -> None:
    await world.remove(await world.add("gone"))
    url = connection_urls(world.settings).app
    lease_blobs(url, reason="over already", lasts=timedelta(seconds=-1))
    lease_blobs(url, reason="of the test", lasts=timedelta(minutes=5))
    assert await sweep_blobs(world.runtime, world.tenant.id, grace_seconds=0) == 0
    end_leases(url, reason="of the test")
    assert await sweep_blobs(world.runtime, world.tenant.id, grace_seconds=0) == 1


async def test_a_second_operation_is_told_which_one_runs(world: World) -> None:
    with (
        hold_operation_lock(world.settings, "restore"),
        pytest.raises(Conflict, match=rf"restore on .*process {os.getpid()}, since 20") as refused,
    ):
        await asyncio.to_thread(make_backup, world.settings)
    assert refused.value.code == "operation_running"
    assert list_backups(world.settings) == []  # not tried, so not failed


async def test_another_machine_is_told_too(world: World, tmp_path: Path) -> None:
    elsewhere = world.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    shutil.copytree(world.settings.data_dir / "secrets", elsewhere.data_dir / "secrets")
    with hold_operation_lock(elsewhere, "migrate"), pytest.raises(Conflict, match=r"migrate on .*process"):
        await asyncio.to_thread(make_backup, world.settings)
    assert (await asyncio.to_thread(make_backup, world.settings)).is_dir()


async def test_what_a_killed_fetch_left_goes_with_the_next_backup_and_a_running_one_stays(world: World) -> None:
    left, running = (world.settings.backup_root / f".pulling-pharos-20260101-030000-{word}" for word in ("a", "b"))
    for folder in (left, running):
        (folder / "pharos-20260101-030000").mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(left, (two_days_ago, two_days_ago))
    await asyncio.to_thread(make_backup, world.settings)
    assert (left.exists(), running.exists()) == (False, True)


async def test_a_key_that_is_missing_fails_the_backup(world: World) -> None:
    async with world.runtime.db.transaction(world.tenant.id) as session:
        await save_tenant_secret(
            session, world.runtime.vault, world.tenant.admin, kind="github", name="openai", value=SECRET
        )
    other = world.settings.model_copy(update={"encryption_key": SecretStr(secrets.token_hex(32))})
    with pytest.raises(Conflict, match="which is not here"):
        await asyncio.to_thread(make_backup, other)
    assert only_failure(other).error_code == "missing_encryption_key"


@pytest.mark.contract("BK-11", part="one command; what it would take is told before")
@pytest.mark.contract("BK-11", part="plain on demand")
@pytest.mark.contract("BK-10", part="the success line gives folder, size and time")
async def test_the_command_makes_one_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    document = await world.add("something")
    in_environment(world.settings, monkeypatch)
    plan = await asyncio.to_thread(CliRunner().invoke, app, ["backup", "now", "--dry-run", "--json"])
    assert json.loads(plan.stdout)["documents"] == 1
    assert list_backups(world.settings) == []
    started = time.monotonic()
    said = await asyncio.to_thread(CliRunner().invoke, app, ["backup", "now", "--plain"], catch_exceptions=False)
    (made,) = list_backups(world.settings)
    assert made.seconds < time.monotonic() - started
    assert (made.state, made.documents) == ("written", 1)
    words = " ".join(said.stdout.split())
    assert f"{made.folder}: 1 document," in words
    assert f"{made.made_at:%Y-%m-%d %H:%M:%S} UTC" in words
    assert made.folder is not None
    tables = {file.name: file.read_bytes() for file in (made.folder / "database").iterdir()}
    assert not any(name.endswith(".gz") for name in tables)
    assert any(str(document).encode() in content for name, content in tables.items() if name != "toc.dat")
    assert documents_in(made.folder) == {str(document)}


@pytest.mark.contract("BK-12", part="before a migration of a database in use, unless that is refused")
async def test_a_database_in_use_is_migrated_with_a_backup_of_what_it_was(world: World) -> None:
    await world.add("something")
    urls = connection_urls(world.settings)
    await asyncio.to_thread(migrate.downgrade, urls.migrator, owner=urls.owner_role, revision="0002")
    state, folder = await asyncio.to_thread(upgrade_schema, world.settings)
    assert state.current == migrate.head_revision()
    assert folder is not None
    assert (read_manifest(folder).schema, read_manifest(folder).documents) == ("0002", 1)
    assert await asyncio.to_thread(upgrade_schema, world.settings) == (replace(state, pending=()), None)
    await asyncio.to_thread(migrate.downgrade, urls.migrator, owner=urls.owner_role, revision="0002")
    skipped, none = await asyncio.to_thread(upgrade_schema, world.settings, skip_backup=True)
    assert none is None
    await record_skipped_backup(world.settings, skipped)
    async with world.runtime.db.transaction(world.tenant.id) as session:
        actions = [entry.action for entry in await list_audit(session)]
    assert actions[0] == "schema.migrated_without_backup"


@pytest.mark.contract("BK-12", part="a migration whose backup fails changes nothing")
async def test_a_migration_whose_backup_fails_changes_nothing(world: World) -> None:
    await world.add("something")
    shutil.rmtree(world.runtime.blobs.root)
    urls = connection_urls(world.settings)
    await asyncio.to_thread(migrate.downgrade, urls.migrator, owner=urls.owner_role, revision="0002")
    with pytest.raises(Conflict, match="missing"):
        await asyncio.to_thread(upgrade_schema, world.settings)
    assert migrate.schema_state(urls.migrator).current == "0002"
    await asyncio.to_thread(upgrade_schema, world.settings, skip_backup=True)


@pytest.mark.prove
async def test_the_worker_makes_the_daily_backup_and_drops_what_is_too_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add("something")
    in_environment(world.settings, monkeypatch)
    old = await asyncio.to_thread(make_backup, world.settings)
    manifest = replace(read_manifest(old), made_at=datetime.now(UTC) - timedelta(days=9))
    (old / "manifest.sig").write_bytes(sign(world.settings, write_manifest(old, manifest)))
    record_verification(world.settings, old, seconds=1.0)
    with psycopg.connect(connection_urls(world.settings).app) as rows:
        rows.execute("update backups set made_at = %s", [manifest.made_at])
    daily = DailyBackup()
    assert await daily.make_if_due(world.runtime), (world.settings.data_dir / "logs" / "backup.log").read_text()
    (made,) = [backup for backup in list_backups(world.settings) if backup.folder is not None]
    assert (made.state, made.documents) == ("verified", 1)
    assert made.folder != old
    assert not await daily.make_if_due(world.runtime)
