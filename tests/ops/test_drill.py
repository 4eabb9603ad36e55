"""The restore drill end to end, and that it turns red for what is missing."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from tests.conftest import make_runtime, open_client
from tests.make import MadeTenant, make_document, make_person, make_project
from tests.postgres import Server

from pharos.identity.tenants import ensure_default_tenant
from pharos.infra import job_queue, migrate
from pharos.infra.database_roles import connection_urls, initialise_database
from pharos.infra.db import create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.settings import Settings
from pharos.library import tasks
from pharos.ops.backup import signing
from pharos.ops.backup.drill import own_blobs, run_drill, run_due_drill
from pharos.ops.backup.drill_log import CAUSES, DrillReport, days_since_passed, is_drill_due, list_drills
from pharos.ops.backup.manifest import (
    SIGNATURE,
    FileState,
    Manifest,
    TableState,
    merkle_root,
    read_manifest,
    write_manifest,
    write_private,
)
from pharos.ops.backup.offsite import push_backup
from pharos.ops.backup.scratch import shipped_programs
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.backup.store import StoredBackup, read_verification, record_verification
from pharos.ops.standing import read_standing
from pharos.runtime import Runtime
from pharos.worker import RegularDrill

pytestmark = [
    pytest.mark.xdist_group("drill"),  # one installation for all of them
    pytest.mark.usefixtures("warm_python"),
]

TEXT = b"The lighthouse of Alexandria was built on the island of Pharos by Sostratus of Cnidus."


@dataclass(frozen=True)
class Place:
    """An installation with one document, one secret and one verified backup."""

    settings: Settings
    folder: Path
    tenant: MadeTenant


async def fill(runtime: Runtime) -> MadeTenant:
    assert tasks.ingest_documents  # registered by its import
    tenant_id = await ensure_default_tenant(runtime)
    admin = await make_person(runtime.db, tenant_id, platform_role="superadmin")
    async with system_transaction(runtime.db) as session:
        await runtime.vault.check(session)
    async with runtime.db.transaction(tenant_id) as session:
        await runtime.vault.seal(session, tenant_id=tenant_id, kind="llm", name="openai", text="sk-of-the-drill")
    project_id = await make_project(runtime.db, admin)
    await make_document(runtime, admin, project_id, name="lighthouse.txt", content=TEXT)
    queue = job_queue.create_queue(str(runtime.settings.database_url))
    async with queue.open_async():
        await job_queue.run_worker(queue, context={"runtime": runtime}, concurrency=1, wait=False, signals=False)
    return MadeTenant(tenant_id, "default", admin)


def with_runtime(settings: Settings, work: Any) -> Any:
    async def run() -> Any:
        db = create_database(connection_urls(settings).app, pool_size=3)
        try:
            return await work(make_runtime(settings, db))
        finally:
            await db.dispose()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def place(database_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    name = f"drilled_{secrets.token_hex(4)}"
    address = database_server.admin_url.rpartition("@")[2].partition("/")[0]
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path_factory.mktemp("d"),
        database_url=f"postgresql://{name}_app:of-the-test@{address}/{name}",
        database_admin_url=database_server.admin_url,
    )
    urls = initialise_database(settings)
    migrate.upgrade(urls.migrator, owner=urls.owner_role)
    tenant = with_runtime(settings, fill)
    folder = make_backup(settings)
    record_verification(settings, folder, seconds=1.0)
    yield Place(settings, folder, tenant)
    database_server.drop(name)


def drill(settings: Settings) -> DrillReport:
    return run_drill(settings, by="a test", tell=lambda check: None)


def changed(settings: Settings, **update: object) -> Settings:
    """A copy would keep what was once derived from the settings that are changed."""
    return Settings.model_construct(**{name: getattr(settings, name) for name in Settings.model_fields} | update)


def with_backups(place: Place, root: Path) -> Settings:
    """The same installation whose backups lie elsewhere: a copy of its one, to be damaged."""
    shutil.copytree(place.folder, root / place.folder.name)
    return changed(place.settings, backup_dir=root)


def sign_again(settings: Settings, folder: Path, manifest: Manifest) -> None:
    content = write_manifest(folder, manifest)
    write_private(folder / SIGNATURE, signing.sign(settings, content))
    record_verification(settings, folder, seconds=1.0)


def count_sessions(settings: Settings) -> int:
    with psycopg.connect(connection_urls(settings).backup) as connection:
        row = connection.execute("select count(*) from sessions").fetchone()
    assert row is not None
    return int(row[0])


def leftovers(settings: Settings) -> list[str]:
    """Directories of a drill, and processes that work in one."""
    tmp = settings.data_dir / "tmp"
    processes = [process.info for process in psutil.process_iter(["name", "cmdline"])]
    working = [one["name"] for one in processes if str(tmp) in " ".join(one["cmdline"] or [])]
    return [path.name for path in tmp.iterdir()] + working


@pytest.mark.slow
@pytest.mark.contract("DR-02", "DR-03", "DR-04", "DR-05", "DR-06", "DR-07", "DR-08", "DR-10", "DR-11")
@pytest.mark.contract("SM-06", part="after a drill")
@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed: apt install rsync")
def test_a_drill_from_the_offsite_copy_restores_asks_and_clears_everything_away(place: Place, tmp_path: Path) -> None:
    settings = changed(place.settings, offsite=f"rsync:{tmp_path / 'copies'}")
    push_backup(settings, place.folder)
    before = count_sessions(settings)
    report = drill(settings)
    assert report.passed, report.failed
    names = [check.name for check in report.checks]
    steps = ["backup", "files", "load", "tables", "uploads", "secrets", "start", "people", "smoke", "canary"]
    assert names == [*steps, "retention"]
    said = {check.name: check.said for check in report.checks}
    assert said["canary"] == "default: cites its document"
    assert " and 1 secret open with the drill identity alone" in said["secrets"]
    assert report.name == f"restore-drill-{datetime.now(UTC):%Y%m%d}"
    assert report.source == f"from rsync:{tmp_path / 'copies'}"
    assert report.tables[0] == report.tables[1] == len(read_manifest(place.folder).tables)
    (row,) = [one for one in list_drills(settings) if one["passed"]]
    (file,) = (settings.backup_root / "drills").glob("*.md")
    assert row["report"] == file.read_text()
    for line in (
        "| backup | pharos-",
        "| target | restore_drill_",
        "| tables | ",
        "| by whom | a test |",
        "| duration",
    ):
        assert line in row["report"]
    assert "lighthouse" not in file.read_text()
    assert leftovers(settings) == []
    assert count_sessions(settings) == before, "nothing of the live one was touched"


def test_what_the_second_pharos_does_to_its_files_leaves_the_backup_as_it_was(place: Place, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (place.folder / "blobs").rglob("*") if path.is_file()}
    for home in (place.settings.data_dir / "tmp-of-a-drill", Path(tempfile.mkdtemp(dir="/dev/shm"))):
        home.mkdir(exist_ok=True)
        own = own_blobs(place.settings, place.folder, home)
        assert len([path for path in own.rglob("*") if path.is_file()]) == len(before) == 1
        shutil.rmtree(home)
        assert {path: path.read_bytes() for path in (place.folder / "blobs").rglob("*") if path.is_file()} == before


@pytest.mark.contract("DR-09")
@pytest.mark.contract("DR-08", part="a drill that failed leaves its log too")
def test_a_missing_table_or_file_turns_the_drill_red_with_cause_and_next_command(place: Place, tmp_path: Path) -> None:
    settings = with_backups(place, tmp_path)
    folder = tmp_path / place.folder.name
    manifest = read_manifest(folder)
    blob = next(path for path in manifest.files if path.startswith("blobs/"))
    (folder / blob).unlink()
    report = drill(settings)
    assert [check.name for check in report.failed] == ["files"], report.failed
    assert blob in report.failed[0].said
    assert (report.failed[0].cause, report.failed[0].next_step) == CAUSES["missing_file"]
    text = max((tmp_path / "drills").glob("*.md")).read_text()
    assert f"Next: `{CAUSES['missing_file'][1]}`" in text
    shown = list_drills(settings, limit=1)[0]["report"]
    assert blob in text
    assert "| files | FAIL |" in shown
    assert "missing_file" in shown
    assert f"Next: `{CAUSES['missing_file'][1]}`" in shown
    assert str(place.tenant.id) not in shown, "an administrator of one organisation reads nothing of another's"

    shutil.copy(place.folder / blob, folder / blob)
    sign_again(settings, folder, replace(manifest, tables={**manifest.tables, "letters": TableState(3, "9")}))
    lost_table = drill(settings).failed
    assert [(check.name, check.cause) for check in lost_table] == [("files", CAUSES["missing_table"][0])]
    assert "letters" in lost_table[0].said
    assert leftovers(settings) == []


def red_at(settings: Settings, name: str, code: str) -> DrillReport:
    """A drill of a signed backup in which every file is the one that was signed: red at one check, which its log and
    the row say with the likely cause and the next command."""
    report = drill(settings)
    assert [(check.name, check.code) for check in report.failed] == [(name, code)], report.checks
    before = [check.name for check in report.checks if check.result == "PASS"]
    assert before[:2] == ["backup", "files"], "what is wrong shows only when it is restored"
    kept = read_verification(settings.backup_root / report.backup_name)
    assert kept is not None
    assert kept.error_code == code, "a backup that a drill found damaged is no good one any more"
    cause, next_step = CAUSES[code]
    file = max((settings.backup_root / "drills").glob("*.md"), key=lambda one: one.stat().st_mtime)
    for text in (file.read_text(), list_drills(settings, limit=1)[0]["report"]):
        assert f"**{name}.** Likely cause: {cause}. Next: `{next_step}`." in text
        assert f"| corrective actions | {next_step} |" in text
    return report


def replace_in_dump(folder: Path, manifest: Manifest, table: str, rows: bytes) -> None:
    """Put other rows into the dump, and write into the manifest what the file is now."""
    program = shipped_programs() / "pg_restore"
    listed = subprocess.run([program, "--list", folder / "database"], check=True, capture_output=True, text=True).stdout
    (number,) = re.findall(rf"^(\d+); \d+ \d+ TABLE DATA public {table} ", listed, re.MULTILINE)
    content = gzip.compress(rows + b"\\.\n\n\n")
    (folder / "database" / f"{number}.dat.gz").write_bytes(content)
    manifest.files[f"database/{number}.dat.gz"] = FileState(len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.contract("DR-05", part="a table or a secret that is missing in the dump turns it red")
def test_a_table_and_a_secret_that_are_missing_in_the_dump_turn_the_drill_red(place: Place, tmp_path: Path) -> None:
    settings = with_backups(place, tmp_path)
    folder = tmp_path / place.folder.name
    manifest = read_manifest(folder)
    for table in ("passage_terms", "secrets"):
        replace_in_dump(folder, manifest, table, b"")
    sign_again(settings, folder, manifest)
    report = red_at(settings, "tables", "backup_differs")
    terms = manifest.tables["passage_terms"].rows
    assert f"passage_terms: 0 rows instead of {terms}; secrets: 0 rows instead of 1." in report.failed[0].said
    assert report.tables == (len(manifest.tables) - 2, len(manifest.tables))
    assert leftovers(settings) == []


@pytest.mark.prove
def test_a_dump_that_does_not_load_turns_the_drill_red_and_its_backup_is_no_good_one(
    place: Place, tmp_path: Path
) -> None:
    settings = with_backups(place, tmp_path)
    manifest = read_manifest(tmp_path / place.folder.name)
    replace_in_dump(tmp_path / place.folder.name, manifest, "documents", b"no row of documents\n")
    sign_again(settings, tmp_path / place.folder.name, manifest)
    report = red_at(settings, "load", "dump_not_loaded")
    assert "documents" in report.failed[0].said
    assert leftovers(settings) == []


@pytest.mark.contract("DR-05", part="a document's file that is missing turns it red")
def test_a_document_without_its_file_turns_the_drill_red(place: Place, tmp_path: Path) -> None:
    settings = with_backups(place, tmp_path)
    folder = tmp_path / place.folder.name
    manifest = read_manifest(folder)
    blob = next(path for path in manifest.files if path.startswith("blobs/"))
    (folder / blob).unlink()
    files = {path: state for path, state in manifest.files.items() if path != blob}
    blobs = replace(manifest.blobs, count=0, bytes=0, merkle_root=merkle_root([]))
    sign_again(settings, folder, replace(manifest, files=files, blobs=blobs))
    report = red_at(settings, "uploads", "document_without_file")
    assert blob.removeprefix("blobs/") in report.failed[0].said
    assert leftovers(settings) == []


@pytest.mark.prove
def test_a_secret_that_does_not_open_turns_the_drill_red(place: Place, tmp_path: Path) -> None:
    settings = changed(place.settings, backup_dir=tmp_path)
    change = "update secrets set ciphertext = set_byte(ciphertext, 0, get_byte(ciphertext, 0) # 1)"
    app = connection_urls(settings).app
    with psycopg.connect(app) as connection:
        connection.execute("select set_config('pharos.tenant_id', %s, false)", [str(place.tenant.id)])
        assert connection.execute(change).rowcount == 1
    folder = make_backup(settings)
    record_verification(settings, folder, seconds=1.0)
    with psycopg.connect(app) as connection:
        connection.execute("select set_config('pharos.tenant_id', %s, false)", [str(place.tenant.id)])
        connection.execute(change)
    red_at(settings, "secrets", "secrets_not_opened")


@pytest.mark.contract("DR-09", part="no backup at all")
def test_without_a_good_backup_the_drill_is_red_and_says_what_to_do(place: Place, tmp_path: Path) -> None:
    report = drill(changed(place.settings, backup_dir=tmp_path))
    assert [(check.name, check.next_step) for check in report.checks] == [("backup", CAUSES["no_such_backup"][1])]
    assert json.dumps([check.__dict__ for check in report.checks])


def a_drill_is_due(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one passed 31 days ago; commands find the installation in their environment."""
    for name in ("data_dir", "database_url", "backup_dir"):
        monkeypatch.setenv(f"PHAROS_{name.upper()}", str(getattr(settings, name)))
    with psycopg.connect(connection_urls(settings).app) as connection:
        connection.execute("delete from drills")
        a_month_ago = "now() - '31 days'::interval"
        connection.execute(
            f"insert into drills (id, name, started_at, passed) values (gen_random_uuid(), 'old', {a_month_ago}, true)"
        )


@pytest.mark.contract("DR-11", part="a due one runs unattended, once, whoever else finds it due; a red one is loud")
def test_a_due_drill_runs_once_for_two_workers_and_a_red_one_is_loud(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_backups(place, tmp_path)
    blob = next((tmp_path / place.folder.name / "blobs").glob("*/??/??/*"))
    blob.write_bytes(blob.read_bytes()[::-1])  # of the same size: only who reads it knows
    a_drill_is_due(settings, monkeypatch)

    async def work(runtime: Runtime) -> None:
        first, second = RegularDrill(), RegularDrill()
        ended_well = await asyncio.gather(first.run_if_due(runtime), second.run_if_due(runtime))
        log = (settings.data_dir / "logs" / "drill.log").read_text()
        assert not all(ended_well), log
        third = RegularDrill()  # of a worker that started anew
        assert not await third.run_if_due(runtime)
        assert third.next_try == 0.0, "it is not due any more"
        new, old = list_drills(settings)
        assert (new["passed"], new["by"], old["name"]) == (False, "schedule", "old"), log
        assert len(list((tmp_path / "drills").glob("*.md"))) == 1
        assert "drill_failed" in [notice.code for notice in (await read_standing(runtime, fresh=True)).notices]
        async with open_client(runtime, place.tenant.admin) as client:
            metrics = (await client.get("/metrics")).text
            page = (await client.get("/admin/backups")).text
        assert 'pharos_backup_notice{notice="drill_failed"} 1.0' in metrics
        assert f"The last restore drill, {new['name']}, failed." in page
        assert CAUSES["damaged_file"][1].split(";")[0] in page

    with_runtime(settings, work)
    late = run_due_drill(settings, by="a worker that found it due before the other's ended", tell=lambda check: None)
    assert late is None


@pytest.mark.prove
def test_a_due_drill_of_a_good_backup_passes_unattended(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_backups(place, tmp_path)
    a_drill_is_due(settings, monkeypatch)

    async def work(runtime: Runtime) -> None:
        log = settings.data_dir / "logs" / "drill.log"
        assert await RegularDrill().run_if_due(runtime), log.read_text()
        assert not await RegularDrill().run_if_due(runtime)

    with_runtime(settings, work)
    assert [(one["by"], one["passed"]) for one in list_drills(settings)] == [("schedule", True), ("", True)]
    assert leftovers(settings) == []


@pytest.mark.contract("DR-01")
@pytest.mark.contract("DR-11", part="monthly by itself")
def test_a_drill_is_due_each_month_and_overdue_after_a_quarter() -> None:
    now = datetime(2026, 6, 30, tzinfo=UTC)

    def at(days: float, *, passed: bool = True) -> dict[str, object]:
        return {"started_at": now - timedelta(days=days), "passed": passed}

    def backups(days: float) -> list[StoredBackup]:
        return [StoredBackup("pharos-1", now - timedelta(days=days), "verified", Path("/b"))]

    due = {
        "no backup yet": is_drill_due([], [], every_days=30, now=now),
        "the first day": is_drill_due([], backups(0.5), every_days=30, now=now),
        "never drilled": is_drill_due([], backups(1.5), every_days=30, now=now),
        "lately": is_drill_due([at(29)], backups(7), every_days=30, now=now),
        "a month ago": is_drill_due([at(30)], backups(7), every_days=30, now=now),
        "failed lately": is_drill_due([at(60), at(2, passed=False)], backups(7), every_days=30, now=now),
        "switched off": is_drill_due([], backups(7), every_days=0, now=now),
    }
    assert [name for name, is_due in due.items() if is_due] == ["never drilled", "a month ago"]
    assert days_since_passed([], now=now) is None
    assert days_since_passed([at(93), at(2, passed=False)], now=now) == 93
