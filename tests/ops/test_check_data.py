"""`pharos doctor data` finds what does not fit and mends what it can; `doctor disk` sees the room for a backup."""

from __future__ import annotations

import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from sqlalchemy import text, update
from tests.conftest import RunJobs
from tests.make import MadeTenant, make_document, make_project, make_tenant
from tests.ops.test_doctor import UNAVAILABLE, finding, pharos

from pharos.identity.audit import list_audit
from pharos.infra.settings import Settings
from pharos.library.models import Document
from pharos.ops import disk
from pharos.ops.check_data import DataReport, check_data, describe, repair_data
from pharos.runtime import Runtime

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def runtime(fresh_runtime: Runtime) -> Runtime:
    """An installation of its own: everything in it is compared."""
    return fresh_runtime


@pytest.fixture
async def tenant(runtime: Runtime) -> MadeTenant:
    return await make_tenant(runtime.db)


async def of(runtime: Runtime, tenant: MadeTenant, *, repaired: bool = False) -> DataReport:
    reports = await (repair_data if repaired else check_data)(runtime)
    return next(report for report in reports if report.tenant == tenant.slug)


async def test_what_fits_is_counted_and_nothing_is_found(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project)
    await run_jobs()
    report = await of(runtime, tenant)
    assert (report.documents, report.files, report.faults) == (1, 1, 0)
    assert describe([report]).endswith("compared with 1 files, their passages, terms, vectors and jobs: all fits")


async def test_what_can_be_mended_is_mended_and_what_cannot_is_named(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    for name in ("torn", "lost", "missing", "cut"):
        await make_document(runtime, tenant.admin, project, name=name, content=f"About {name} things.".encode())
    await run_jobs()
    gone = await make_document(runtime, tenant.admin, project, name="gone", content=b"Soon gone.")
    async with runtime.db.transaction(tenant.id) as session:
        torn = "select id from passages where document_id = (select id from documents where name = 'torn')"
        await session.execute(text(f"delete from passage_vectors_minilm_l6_v2 where passage_id in ({torn})"))
        await session.execute(update(Document).where(Document.name == "lost").values(status="processing"))
        await session.execute(text("delete from documents where id = :id"), {"id": gone.id})
        named = {row.name: row.sha256 for row in await session.execute(text("select name, sha256 from documents"))}
    runtime.blobs.path(tenant.id, named["missing"]).unlink()
    runtime.blobs.path(tenant.id, named["cut"]).write_bytes(b"About")
    report = await of(runtime, tenant)
    found = (report.missing_files, report.cut_files, report.index.documents_out_of_step, report.without_job)
    assert (*found, report.lost_jobs, report.unnamed_files) == (1, 1, 1, 1, 1, 1)
    assert report.names == ["missing", "cut"]
    mended = await of(runtime, tenant, repaired=True)
    assert (mended.lost_jobs, mended.without_job, mended.unrepairable) == (0, 0, 2)
    await run_jobs()
    assert (await of(runtime, tenant)).faults == 2, "only the two that a backup alone can bring back"
    async with runtime.db.transaction(tenant.id) as session:
        (entry,) = [line for line in await list_audit(session) if line.action == "data.repaired"]
    assert entry.detail == {"queued": 2}


def test_only_data_can_be_repaired(tmp_path: Path) -> None:
    assert pharos(tmp_path, "doctor", "port", "--repair").returncode == 2


def test_a_disk_is_low_when_the_next_backup_does_not_fit_and_full_before_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    (tmp_path / "data" / "blobs").mkdir(parents=True)
    (tmp_path / "data" / "blobs" / "blob").write_bytes(b"x" * 1_000_000)
    (found,) = disk.find_disks(settings)
    assert (found.holds, found.wanted_bytes) == (("data", "uploads", "backups"), 1_200_000)
    assert disk.is_same_disk(settings)
    for free, is_low, is_full in ((10**12, False, False), (2**30, True, False), (2**20, True, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(2 * 10**12, 0, free))
        (now,) = disk.find_disks(settings)
        assert (now.is_low, now.is_full) == (is_low, is_full)
        done = pharos(tmp_path, "doctor", "disk", "--json")
        assert finding(done)[1] == ("FAIL" if is_full else "WARN" if is_low else "PASS")
        assert done.returncode == (UNAVAILABLE if is_full else 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, 10**6))
    assert disk.find_disks(settings)[0].is_low, "a backup of 1.2 MB does not fit into 1 MB"


MEMORY = Path("/dev/shm")


@pytest.mark.skipif(not MEMORY.is_dir() or MEMORY.stat().st_dev == Path("/tmp").stat().st_dev, reason="one disk here")
def test_a_database_that_lies_on_a_disk_of_its_own_is_watched_there(tmp_path: Path) -> None:
    """Where its server's user cannot enter the data directory, it lies elsewhere, behind a link."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as elsewhere:
        settings = Settings(_env_file=None, data_dir=tmp_path / "data", backup_dir=Path(elsewhere) / "backups")
        settings.data_dir.mkdir()
        assert not disk.is_same_disk(settings)
        copies = {"": True, "local:": True, "sftp:": False, "s3:https:": False, "ops@host:": False}
        for before, is_same in copies.items():
            offsite = {"offsite": f"restic:{before}{tmp_path}/not-made-yet"}
            assert disk.is_offsite_on_same_disk(settings.model_copy(update=offsite)) == is_same
        assert not disk.is_offsite_on_same_disk(settings.model_copy(update={"offsite": f"rsync:{elsewhere}/copies"}))
        assert not disk.is_offsite_on_same_disk(settings.model_copy(update={"offsite": str(tmp_path)})), "no such kind"
        assert not disk.is_offsite_on_same_disk(settings)
        (settings.data_dir / "postgres").symlink_to(elsewhere)
        assert [found.holds for found in disk.find_disks(settings)] == [("data", "uploads"), ("database", "backups")]
        assert disk.is_same_disk(settings)
