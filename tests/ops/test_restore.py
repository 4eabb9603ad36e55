"""A restore brings back exactly what was acknowledged before the snapshot, and the live data is old or new, never both.

One installation in a database of its own, with roles of its own, and one backup of it, for the whole module: a restore
ends in the same state whatever a test did before it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select
from tests.ops.installation import SECRET, Place, database_of, first_day, make_installation, quiet, upload, with_runtime
from tests.postgres import Server
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.identity.sessions import count_open_sessions
from pharos.identity.sign_in import open_session
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra import embedded_postgres, migrate
from pharos.infra.blobs import ASIDE
from pharos.infra.database_roles import connection_urls, read_administration
from pharos.infra.db import Table
from pharos.infra.errors import Conflict, Invalid, NotFound, PharosError, StorageFull
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.ids import TenantId
from pharos.infra.models import Secret
from pharos.infra.settings import Settings
from pharos.infra.terminal import time_text
from pharos.ops.backup import signing
from pharos.ops.backup.escrow import make_drill_identity
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import SIGNATURE, Manifest, TableState, read_manifest, write_manifest, write_private
from pharos.ops.backup.restore import Restored, restore, undo_restore
from pharos.ops.backup.restore_keys import KeyStep
from pharos.ops.backup.restore_plan import prepare, refuse_no_room
from pharos.ops.backup.restore_table import restore_one_table
from pharos.ops.backup.restore_time import estimate_restore
from pharos.ops.backup.restore_uploads import restore_uploads
from pharos.ops.backup.rollback_points import list_rollback_points, swap
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.backup.store import Verification, read_verification
from pharos.ops.backup.verification import verify_backup
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.restore_commands import trusted_signer
from pharos.ops.start_stop import postgres_alone
from pharos.runtime import Runtime

pytestmark = pytest.mark.xdist_group("restore")  # one installation for all of them

BOUND, SLACK_SECONDS = 2.0, 15.0
"""Of a restore against its estimate, which is scaled by size; the slack is other work on the machine."""
FILES = Table.metadata.tables["documents"]


def documents(settings: Settings) -> dict[str, str]:
    with psycopg.connect(connection_urls(settings).backup) as connection:
        return dict(connection.execute("select id::text, sha256 from documents").fetchall())


def state_of(settings: Settings) -> dict[str, TableState]:
    with psycopg.connect(connection_urls(settings).backup) as connection:
        return fingerprint_tables(connection)


def blob_of(place: Place, sha256: str) -> Path:
    return place.settings.blob_root / str(place.tenant.id) / sha256[:2] / sha256[2:4] / sha256


def is_whole(settings: Settings, tenant_id: TenantId, sha256: str) -> bool:
    blob = settings.blob_root / str(tenant_id) / sha256[:2] / sha256[2:4] / sha256
    return blob.exists() and hashlib.sha256(blob.read_bytes()).hexdigest() == sha256


def bring_back(place: Place, **options: Any) -> Restored:
    return restore(place.settings, place.folder, tell=quiet, **options)


def see_as_then(place: Place) -> None:
    """That the documents are those of the backup; whatever else a test before did stays."""
    if documents(place.settings) != place.ledger:
        bring_back(place)


def databases(place: Place) -> set[str]:
    with psycopg.connect(place.server.admin_url, autocommit=True) as connection:
        names = {row[0] for row in connection.execute("select datname from pg_database")}
    return {name for name in names if name.startswith(database_of(place.settings))}


# ---- the whole database ----


@pytest.mark.contract("RS-03", "RS-05")
def test_what_was_acknowledged_before_the_snapshot_is_there_and_nothing_after_it(place: Place) -> None:
    async def go_on(runtime: Runtime) -> None:
        await upload(runtime, place.tenant, 2, "after")
        document_id, sha256 = next(iter(place.ledger.items()))
        async with runtime.db.transaction(place.tenant.id) as session:
            await session.execute(FILES.delete().where(FILES.c.id == document_id))
        runtime.blobs.path(place.tenant.id, sha256).unlink()
        await open_session(runtime, place.tenant.admin)

    with_runtime(place.settings, go_on)
    done = bring_back(place)
    assert documents(place.settings) == place.ledger
    assert all(is_whole(place.settings, place.tenant.id, sha256) for sha256 in place.ledger.values())
    assert len(done.blobs.missing) == 1
    assert done.rows["documents"] == len(place.ledger)
    assert done.secrets == 1
    assert done.rollback_point in databases(place)
    with psycopg.connect(connection_urls(place.settings).app) as connection:
        kept = connection.execute("select name from backups").fetchall()
    assert (place.folder.name,) in kept  # its row was written after its snapshot, and it is about the installation

    async def look(runtime: Runtime) -> tuple[int, str]:
        async with runtime.db.transaction(place.tenant.id) as session:
            secret_id = (await session.execute(select(Secret.id))).scalar_one()
            return (
                await count_open_sessions(session),
                await runtime.vault.open(session, tenant_id=place.tenant.id, secret_id=secret_id),
            )

    assert with_runtime(place.settings, look) == (0, SECRET)
    refuse_unsafe_role(connection_urls(place.settings).app)
    with psycopg.connect(connection_urls(place.settings).backup) as connection:
        said = connection.execute("select action from audit_log where action = 'data.restored'").fetchall()
    assert len(said) == 1


@pytest.mark.contract(
    "BK-06", part="an upload acknowledged while the backup is made is in it with its bytes or not at all"
)
def test_writes_go_on_during_the_backup_and_each_is_there_whole_or_not_at_all(place: Place) -> None:
    before = documents(place.settings)

    async def write_meanwhile(runtime: Runtime) -> tuple[Path, dict[str, str]]:
        backup = asyncio.create_task(asyncio.to_thread(make_backup, place.settings))
        meanwhile: dict[str, str] = {}
        while not backup.done():
            meanwhile |= await upload(runtime, place.tenant, 1, "during")
        return await backup, meanwhile

    folder, meanwhile = with_runtime(place.settings, write_meanwhile)
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 1, "after"))
    restore(place.settings, folder, tell=quiet)
    found = documents(place.settings)
    assert before.items() <= found.items()
    assert found.items() <= (before | meanwhile).items()
    assert len(found) == read_manifest(folder).documents
    assert all(is_whole(place.settings, place.tenant.id, sha256) for sha256 in found.values())
    shutil.rmtree(folder)


@pytest.mark.contract("RS-05", part="the old database is kept and can be swapped back")
def test_undo_brings_back_what_was_live_before_and_a_second_one_undoes_that(place: Place) -> None:
    (after,) = with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 1, "after")).values()
    live = documents(place.settings)
    bring_back(place, keep_sessions=True)
    assert documents(place.settings) == place.ledger
    assert with_runtime(place.settings, open_sessions) == 1, "whoever was signed in then stays so when it is asked for"
    refused_for_a_lost_file(place, after)
    set_aside = with_runtime(place.settings, as_a_wipe_does)
    files = undo_restore(place.settings, tell=quiet).files
    assert documents(place.settings) == live
    assert 0 < len(files) <= set_aside
    assert all(is_whole(place.settings, place.tenant.id, sha256) for sha256 in live.values())
    url = connection_urls(place.settings).backup
    with psycopg.connect(url) as connection:
        said = connection.execute("select subject from audit_log where action = 'data.restored'").fetchall()
        kept = connection.execute("select name from backups").fetchall()
    assert with_runtime(place.settings, open_sessions) == 0
    assert [subject for (subject,) in said if subject.startswith("database:")]
    assert (place.folder.name,) in kept
    undo_restore(place.settings, tell=quiet)
    assert documents(place.settings) == place.ledger


def refused_for_a_lost_file(place: Place, sha256: str) -> None:
    """An undo names it and changes nothing."""
    content = blob_of(place, sha256).read_bytes()
    blob_of(place, sha256).unlink()
    before = state_of(place.settings), databases(place)
    with pytest.raises(Conflict, match=sha256) as refusal:
        undo_restore(place.settings, tell=quiet)
    assert refusal.value.code == "missing_blobs"
    assert (state_of(place.settings), databases(place)) == before
    blob_of(place, sha256).write_bytes(content)


@pytest.mark.contract("RS-01")
def test_the_list_names_what_there_is_and_an_older_rollback_point_is_swapped_back_to_by_its_name(place: Place) -> None:
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 1, "after"))
    live = documents(place.settings)
    first, second = (bring_back(place).rollback_point for _ in range(2))
    assert first is not None
    machine_read = json.loads(pharos(place, "--list", "--json").stdout)
    assert place.folder.name in [backup["name"] for backup in machine_read["backups"]]
    points = [point["database"] for point in machine_read["rollback_points"]]
    assert points[:2] == [second, first]
    assert points == [point.database for point in list_rollback_points(place.settings)]
    listed = " ".join(pharos(place, "--list").stdout.split())
    assert place.folder.name in listed
    assert f"Rollback point {second} " in listed
    assert f"`pharos restore --undo {first}`" in listed
    assert isinstance(pharos(place, "--undo", "--yes", f"{second}0").exception, NotFound)
    assert documents(place.settings) == place.ledger
    done = pharos(place, "--undo", "--yes", first)
    assert f"{first} is live again" in done.stdout, done.output
    assert documents(place.settings) == live


async def open_sessions(runtime: Runtime) -> int:
    async with runtime.db.transaction(await ensure_default_tenant(runtime)) as session:
        return await count_open_sessions(session)


async def as_a_wipe_does(runtime: Runtime) -> int:
    return runtime.blobs.set_aside([(await ensure_default_tenant(runtime))], stamp="20260101-000000")


def test_a_swap_that_fails_half_way_changes_no_name(place: Place) -> None:
    before, known = databases(place), read_administration(place.settings)
    with pytest.raises(psycopg.errors.InvalidCatalogName):
        swap(known, fresh="restored_by_nobody", kept=f"{known.database}_before")
    assert databases(place) == before


# ---- refused before anything is written ----


def copy_of(place: Place, target: Path) -> Path:
    return Path(shutil.copytree(place.folder, target / place.folder.name))


def sign_again(settings: Settings, folder: Path, manifest: Manifest) -> None:
    content = write_manifest(folder, manifest)
    write_private(folder / SIGNATURE, signing.sign(settings, content))


def refused(place: Place, folder: Path, **options: Any) -> PharosError:
    """What a restore of `folder` says; it must have left everything as it was."""
    before = state_of(place.settings), databases(place)
    with pytest.raises(PharosError) as refusal:
        restore(place.settings, folder, tell=quiet, **options)
    assert (state_of(place.settings), databases(place)) == before
    return refusal.value


@pytest.mark.contract("RS-11")
def test_a_damaged_dump_is_refused_before_anything_is_written(place: Place, tmp_path: Path) -> None:
    folder = copy_of(place, tmp_path)
    victim = max((folder / "database").glob("*.dat.gz"), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert refused(place, folder).code == "damaged_file"


@pytest.mark.contract("RS-11", part="a wrong key is refused with a sentence")
def test_the_wrong_identity_is_refused_with_a_sentence(place: Place, tmp_path: Path) -> None:
    other = make_drill_identity(Settings(_env_file=None, data_dir=tmp_path / "other"))
    error = refused(place, place.folder, identity=other)
    assert error.code == "escrow_not_opened"
    assert "--identity" in error.message


def test_a_table_that_differs_from_the_manifest_is_named_and_nothing_is_swapped(place: Place, tmp_path: Path) -> None:
    folder = copy_of(place, tmp_path)
    manifest = read_manifest(folder)
    manifest.tables["users"] = TableState(manifest.tables["users"].rows, "12345")
    manifest.tables["documents"] = TableState(99, manifest.tables["documents"].fingerprint)
    sign_again(place.settings, folder, manifest)
    error = refused(place, folder)
    assert error.code == "backup_differs"
    assert error.details["tables"] == ["documents", "users"]
    assert "documents: 3 rows instead of 99" in error.message
    kept = read_verification(folder)
    assert kept is not None
    assert (kept.passed, kept.error_code) == (False, "backup_differs"), "nothing relies on it from here on"


def test_a_newer_schema_is_refused_with_the_version_that_can_read_it(place: Place, tmp_path: Path) -> None:
    folder = copy_of(place, tmp_path)
    manifest = read_manifest(folder)
    sign_again(place.settings, folder, Manifest(**{**vars(manifest), "schema": "9999", "version": "9.9"}))
    error = refused(place, folder)
    assert (error.code, "9.9" in error.message) == ("newer_schema", True)


@pytest.mark.contract("RS-02", part="another major version is named, and refused where it is an older one")
def test_a_backup_of_another_postgres_is_named_and_a_newer_ones_refused(place: Place, tmp_path: Path) -> None:
    folder = copy_of(place, tmp_path)
    sign_again(place.settings, folder, replace(read_manifest(folder), server_version="16.14"))
    assert "made on Postgres 16.14, and this is 18." in " ".join(pharos(place, "--dry-run", str(folder)).stdout.split())
    sign_again(place.settings, folder, replace(read_manifest(folder), server_version="99.1"))
    error = refused(place, folder)
    assert (error.code, "Postgres 99 and does not load into 18" in error.message) == ("older_server", True)


def test_a_full_disk_is_said_with_figures_before_anything_is_written(place: Place) -> None:
    with pytest.raises(StorageFull, match="needs about 1048576001 MiB") as full:
        refuse_no_room(place.settings, 1048576000 * 2**20)
    assert full.value.details["needed_bytes"] == 1048576000 * 2**20


def test_a_disk_that_fills_up_meanwhile_ends_the_restore_and_leaves_the_live_database(place: Place) -> None:
    lost = next(iter(place.ledger.values()))
    blob_of(place, lost).unlink(missing_ok=True)
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 1, "after"))
    live = documents(place.settings)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(step: str, sentence: str) -> None:
        if step == "blobs":  # the kernel refuses further writing with the same path through the code as a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))

    try:
        with pytest.raises(StorageFull):
            restore(place.settings, place.folder, tell=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert documents(place.settings) == live
    restore_uploads(place.settings, place.folder, signed_by=None, tell=quiet)
    assert is_whole(place.settings, place.tenant.id, lost)


# ---- schemas of before ----


@pytest.mark.contract("RS-02", part="the migrations that would follow are named")
def test_a_backup_of_the_previous_schema_is_migrated_forward(database_server: Server, tmp_path: Path) -> None:
    previous = migrate.steps_after("0001")[-2]
    settings = make_installation(database_server, tmp_path / "data", revision=previous)
    _, ledger = with_runtime(settings, first_day)
    folder = make_backup(settings)
    assert read_manifest(folder).schema == previous
    plan = prepare(settings, folder, identity=None, signed_by=None, tell=quiet)
    done = restore(settings, folder, tell=quiet)
    assert done.migrations == plan.migrations == migrate.steps_after(previous)
    state = migrate.schema_state(connection_urls(settings).app)
    assert (state.current, state.pending) == (state.head, ())
    assert documents(settings) == ledger
    undo_restore(settings, tell=quiet)  # what was live is of the previous schema, too
    assert migrate.schema_state(connection_urls(settings).app).pending == ()
    assert documents(settings) == ledger


# ---- an empty machine ----


@pytest.mark.slow
@pytest.mark.contract("RS-04", part="one Python command; on Linux")
@pytest.mark.contract("RS-06")
def test_an_empty_machine_needs_the_folder_the_identity_and_the_signers_name(place: Place, tmp_path: Path) -> None:
    folder, identity = copy_of(place, tmp_path), tmp_path / "identity"
    shutil.copy(make_drill_identity(place.settings), identity)
    settings = Settings(_env_file=None, data_dir=tmp_path / "new")
    with pytest.raises(Conflict, match="--identity"):
        restore(settings, folder, tell=quiet)
    with pytest.raises(Conflict, match="--signed-by") as stranger:
        restore(settings, folder, tell=quiet, identity=identity)
    signer = read_manifest(place.folder).signed_by
    assert (stranger.value.code, stranger.value.details["signed_by"]) == ("unknown_signer", signer)
    done = restore(settings, folder, tell=quiet, identity=identity, signed_by=signer)
    assert (done.keys, done.secrets, done.rollback_point) == (KeyStep.INSTALL, 1, None)
    assert len(done.blobs.missing) == len(place.ledger)
    try:
        with postgres_alone(settings):
            assert documents(settings) == place.ledger
            refuse_unsafe_role(connection_urls(settings).app)
        again = prepare(settings, folder, identity=identity, signed_by=None, tell=quiet)
        assert again.keys is KeyStep.KEEP, "its signer and its keys are known now"
    finally:
        embedded_postgres.delete(settings.data_dir)


def test_a_signer_nobody_here_knows_is_trusted_only_when_a_person_types_its_key(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, signer = Settings(_env_file=None, data_dir=tmp_path / "new"), read_manifest(place.folder).signed_by
    assert trusted_signer(place.settings, place.folder, None, asks=True) is None, "its own is known"
    assert trusted_signer(settings, place.folder, signer, asks=True) == signer
    with pytest.raises(Conflict, match=re.escape(f"--signed-by {signer}")):
        trusted_signer(settings, place.folder, None, asks=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"yes\n{signer}\n"))
    with pytest.raises(Invalid, match="nothing was changed"):
        trusted_signer(settings, place.folder, None, asks=True)
    assert trusted_signer(settings, place.folder, None, asks=True) == signer


# ---- a part of it ----


@pytest.mark.contract("RS-07")
def test_one_table_comes_back_beside_the_live_one_and_missing_rows_can_be_merged(place: Place) -> None:
    see_as_then(place)
    lost = next(iter(place.ledger))
    url = connection_urls(place.settings)
    with psycopg.connect(url.app) as connection:
        connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(place.tenant.id)])
        connection.execute("delete from documents where id = %s", [lost])
    one = restore_one_table(place.settings, place.folder, table="documents", into="old", tell=quiet)
    assert (one.rows, one.missing, one.merged) == (3, 1, 0)
    assert lost not in documents(place.settings)
    with psycopg.connect(url.app) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select * from old.documents")
    with pytest.raises(Conflict, match="schema old already"):
        restore_one_table(place.settings, place.folder, table="documents", into="old", tell=quiet)
    with pytest.raises(NotFound, match="no table nothing"):
        restore_one_table(place.settings, place.folder, table="nothing", into="older", tell=quiet)
    with pytest.raises(Invalid):
        restore_one_table(place.settings, place.folder, table="documents", into="public", tell=quiet)
    one = restore_one_table(place.settings, place.folder, table="documents", into="merged", tell=quiet, merges=True)
    assert (one.missing, one.merged) == (1, 1)
    with psycopg.connect(url.backup) as connection:
        said = connection.execute(
            "select subject, detail->>'merged' from audit_log where action = 'data.table_restored' order by at"
        ).fetchall()
    assert said == [("table:documents", "0"), ("table:documents", "1")]
    with hold_operation_lock(place.settings, "backup"), pytest.raises(Conflict, match="Running now: backup"):
        restore_one_table(place.settings, place.folder, table="documents", into="later", tell=quiet)
    assert documents(place.settings) == place.ledger
    assert make_backup(place.settings).exists()  # the schemas of a merge hinder nobody


@pytest.mark.contract("RS-08")
def test_uploads_alone_are_added_and_damaged_ones_moved_aside(place: Place) -> None:
    missing, damaged, *_ = place.ledger.values()
    restore_uploads(place.settings, place.folder, signed_by=None, tell=quiet)
    blob_of(place, missing).unlink()
    blob_of(place, damaged).write_bytes(b"rotten")
    before, of_others = state_of(place.settings), aside_of(place, damaged)
    changes = restore_uploads(place.settings, place.folder, signed_by=None, tell=quiet)
    assert (len(changes.missing), len(changes.damaged)) == (1, 1)
    assert all(is_whole(place.settings, place.tenant.id, sha256) for sha256 in place.ledger.values())
    assert state_of(place.settings) == before
    (aside,) = aside_of(place, damaged) - of_others
    assert aside.read_bytes() == b"rotten"


def aside_of(place: Place, sha256: str) -> set[Path]:
    """What is set aside of this name: after a wipe was undone the good bytes still are, too."""
    return set(place.settings.blob_root.glob(f"{ASIDE}*/**/{sha256}"))


# ---- verification ----


def verified(place: Place) -> Verification:
    if read_verification(place.folder) is None:
        verify_backup(place.settings, place.folder, tell=quiet)
    kept = read_verification(place.folder)
    assert kept is not None
    assert kept.passed
    return kept


@pytest.mark.contract("BK-15")
def test_a_backup_is_verified_by_restoring_it_and_a_table_that_differs_fails_it(place: Place, tmp_path: Path) -> None:
    done = verify_backup(place.settings, place.folder, tell=quiet)
    manifest = read_manifest(place.folder)
    assert (done.tables, done.blobs, done.secrets) == (len(manifest.tables), 3, 1)
    kept = verified(place)
    assert estimate_restore(place.settings, place.folder, manifest.bytes) == kept.seconds
    assert f"about {time_text(kept.seconds)}, by" in " ".join(
        pharos(place, "--dry-run", str(place.folder)).stdout.split()
    )
    folder = copy_of(place, tmp_path)
    manifest.tables["memberships"] = TableState(7, "0")
    sign_again(place.settings, folder, manifest)
    with pytest.raises(Conflict, match="memberships: 1 rows instead of 7"):
        verify_backup(place.settings, folder, tell=quiet)
    failed = read_verification(folder)
    assert failed is not None
    assert (failed.passed, failed.error_code) == (False, "backup_differs")
    assert list((place.settings.data_dir / "tmp").iterdir()) == []


# ---- the command ----


def pharos(place: Place, *words: str, typed: str = "") -> Result:
    environment = {
        "PHAROS_DATA_DIR": str(place.settings.data_dir),
        "PHAROS_DATABASE_URL": str(place.settings.database_url),
        "PHAROS_DATABASE_ADMIN_URL": place.server.admin_url,
    }
    return CliRunner().invoke(app, ["restore", *words], env=environment, input=typed)


@pytest.mark.contract("RS-02")
def test_a_dry_run_for_a_date_says_what_would_be_lost_and_changes_nothing(place: Place) -> None:
    see_as_then(place)
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 2, "after"))
    before = state_of(place.settings), databases(place), sorted(place.settings.blob_root.rglob("*"))
    said = json.loads(pharos(place, "--dry-run", "--json", str(place.folder)).stdout)
    assert said["lost_rows"]["documents"] == len(documents(place.settings)) - len(place.ledger)
    assert "escrow" not in said
    assert (said["compared"]["lost"]["documents"], said["compared"]["back"]["documents"]) == (2, 0)
    text = pharos(place, "--dry-run", f"{read_manifest(place.folder).made_at:%Y-%m-%d}")
    assert text.exit_code == 0, text.output
    assert "Nothing was changed" in text.stdout
    more = f"{said['lost_rows']['procrastinate_jobs']} in procrastinate_jobs"
    assert re.search(rf"^Rows of other tables that there are more of now than then: .*{more}", text.stdout, re.M)
    assert said["collation"]["then"] == said["collation"]["now"]
    assert "indexes are rebuilt" not in text.stdout
    assert (state_of(place.settings), databases(place), sorted(place.settings.blob_root.rglob("*"))) == before


@pytest.mark.contract("RS-02", part="what would be lost and what would come back is named")
def test_a_dry_run_names_the_documents_that_would_be_lost_and_those_that_would_come_back(place: Place) -> None:
    bring_back(place)  # whatever a test before did: projects and people are counted too
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 12, "after"))
    gone = next(iter(place.ledger))
    with psycopg.connect(connection_urls(place.settings).app) as connection:
        connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(place.tenant.id)])
        (name,) = connection.execute("delete from documents where id = %s returning name", [gone]).fetchone() or ("",)
        (project,) = connection.execute("select name from projects order by created_at limit 1").fetchone() or ("",)
    said = pharos(place, "--dry-run", str(place.folder)).stdout
    assert "does not have them: 12 documents, 1 project, 0 users." in said
    assert re.findall(r"^  after-(\d+)\.txt \(in ", said, re.MULTILINE) == [str(number) for number in range(11, 1, -1)]
    assert "  and 2 more\n" in said
    assert "they are gone here: 1 document, 0 projects, 0 users.\n" in said
    assert f"  {name} (in {project})\n" in said


def test_a_dry_run_says_why_nothing_is_compared(place: Place, tmp_path: Path) -> None:
    identity, signer = make_drill_identity(place.settings), read_manifest(place.folder).signed_by
    empty = Settings(_env_file=None, data_dir=tmp_path / "new")
    plan = prepare(empty, place.folder, identity=identity, signed_by=signer, tell=quiet, compares=True)
    assert (plan.live.compared, "no database" in str(plan.live.why_not)) == (None, True)
    nowhere = str(place.settings.database_url).rpartition("/")[0] + "/nowhere"
    away = place.settings.model_copy(update={"database_url": nowhere})
    plan = prepare(away, place.folder, identity=identity, signed_by=signer, tell=quiet, compares=True)
    assert (plan.live.rows, "cannot be read" in str(plan.live.why_not)) == (None, True)


def test_a_backup_whose_text_was_sorted_by_other_rules_says_that_indexes_are_rebuilt(
    place: Place, tmp_path: Path
) -> None:
    folder = copy_of(place, tmp_path)
    sign_again(place.settings, folder, replace(read_manifest(folder), collation_version="c de_DE.utf8 2.28"))
    assert "by c de_DE.utf8 2.28, and is by" in " ".join(pharos(place, "--dry-run", str(folder)).stdout.split())


@pytest.mark.contract("RS-12")
@pytest.mark.contract("RS-10", part="the time is printed")
@pytest.mark.contract("RS-10", part="a restore stays within a bound that grows with the size")
def test_the_name_of_the_database_is_asked_for_and_the_time_said(place: Place) -> None:
    expected = verified(place).seconds
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 1, "after"))
    wrong = pharos(place, str(place.folder), typed="yes\n")
    assert isinstance(wrong.exception, Invalid)
    price, asked, _ = wrong.stdout.partition("Type the name")
    assert re.search(r"needs about [\d.]+ MB on the disk, and [\d.]+ .B are free", price)
    assert re.search(r"How long it would take|It would take about", price)
    assert asked
    assert documents(place.settings) != place.ledger
    right = pharos(place, str(place.folder), typed=f"{database_of(place.settings)}\n")
    assert right.exit_code == 0, right.output
    took = re.search(r"It took ([\d.]+) s", right.stdout)
    assert took is not None
    assert float(took[1]) < BOUND * expected + SLACK_SECONDS
    assert documents(place.settings) == place.ledger
