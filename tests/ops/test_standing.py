"""What is loud about backups: on the page, in health, in the metrics and in `pharos doctor backup`."""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.conftest import open_client
from tests.make import make_document, make_person, make_project
from tests.ops.backups import make_folder
from tests.ops.test_doctor import finding, pharos

from pharos.identity.models import Tenant
from pharos.identity.tenants import create_tenant, ensure_default_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.settings import Settings
from pharos.library.models import Document
from pharos.ops.backup.store import StoredBackup
from pharos.ops.models import Drill
from pharos.ops.standing import CODES, Code, DrillLine, Facts, judge, read_standing
from pharos.runtime import Runtime

NOW = datetime.now(UTC)
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
MENDED = {"backup_recipient": RECIPIENT, "offsite": "rsync:/mnt/elsewhere"}


def stored(*, hours: float, state: str = "offsite", is_there: bool = True) -> StoredBackup:
    made_at = NOW - timedelta(hours=hours)
    name = f"pharos-{made_at:%Y%m%d-%H%M%S}"
    return StoredBackup(
        name=name,
        made_at=made_at,
        state=state,
        folder=Path("/nowhere") / name if is_there else None,
        offsite_at=made_at if state == "offsite" else None,
        error="One table differs." if state == "failed" else None,
    )


def drill(*, days: float, passed: bool = True) -> DrillLine:
    return DrillLine("restore-drill", "pharos-1", NOW - timedelta(days=days), 41.5, passed, "worker", "# A drill")


GOOD, OLD_DRILL, DRILL = stored(hours=1), drill(days=93), drill(days=91)
A_YEAR = NOW - timedelta(days=365)


@pytest.mark.contract("AL-10", part="backups: old, failed, not verified; drill overdue; disk, offsite and recipient")
@pytest.mark.parametrize(
    ("backups", "drills", "expected"),
    [
        ([], [], ["backup_old", "drill_overdue"]),
        ([stored(hours=25)], [DRILL], []),
        ([stored(hours=27)], [DRILL], ["backup_old"]),
        ([stored(hours=1, state="written"), stored(hours=20)], [DRILL], []),
        ([stored(hours=1, state="written"), stored(hours=27)], [DRILL], ["backup_old"]),
        ([stored(hours=1, state="failed"), stored(hours=20)], [DRILL], ["verify_failed"]),
        ([stored(hours=1, state="failed", is_there=False), stored(hours=20)], [DRILL], ["backup_failed"]),
        ([stored(hours=2, state="verified"), stored(hours=51)], [DRILL], ["offsite_old"]),
        ([GOOD], [OLD_DRILL], ["drill_overdue"]),
        ([GOOD], [drill(days=0, passed=False), DRILL], ["drill_failed"]),
        ([GOOD], [drill(days=0, passed=False), OLD_DRILL], ["drill_overdue", "drill_failed"]),
    ],
)
def test_each_thing_to_mend_is_told_and_nothing_else(
    backups: list[StoredBackup], drills: list[DrillLine], expected: list[Code]
) -> None:
    settings = Settings(_env_file=None, **MENDED)  # type: ignore[arg-type]
    facts = Facts(backups, drills, since=A_YEAR, same_disk=False)
    assert [notice.code for notice in judge(settings, facts, now=NOW).notices] == expected


def test_what_cannot_have_happened_yet_is_not_overdue_and_defaults_are_loud_from_the_first_day() -> None:
    today = Facts([], [], since=NOW - timedelta(hours=1), same_disk=True)
    found = judge(Settings(_env_file=None, backup_recipient=None, offsite=None), today, now=NOW)
    assert [notice.code for notice in found.notices] == ["no_offsite", "same_disk", "no_recipient"]
    assert (found.good, found.restore_seconds) == (None, None)


def test_copies_that_only_this_machine_opens_are_told() -> None:
    alone = Settings(_env_file=None, backup_recipient=None, offsite="restic:/mnt/elsewhere")
    told = judge(alone, Facts([GOOD], [DRILL], since=A_YEAR, same_disk=False), now=NOW).notices
    assert [notice.code for notice in told] == ["no_recipient"]
    assert "copies offsite cannot be opened without this machine" in told[0].words


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another disk than the data."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="pharos-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def house(fresh_runtime: Runtime, elsewhere: Path) -> Runtime:
    """An installation that is a year old; everything is set, its last drill was two days ago."""
    settings = fresh_runtime.settings.model_copy(update={**MENDED, "backup_dir": elsewhere})
    tenant_id = await ensure_default_tenant(fresh_runtime)
    async with system_transaction(fresh_runtime.db) as session:
        await session.execute(update(Tenant).where(Tenant.id == tenant_id).values(created_at=A_YEAR))
        started_at = NOW - timedelta(days=2)
        session.add(Drill(name="restore-drill-1", started_at=started_at, seconds=41.5, passed=True))
    return replace(fresh_runtime, settings=settings)


@pytest.mark.contract("HE-08", part="the backup's part: degraded while something must be mended, up when nothing must")
async def test_health_is_degraded_until_everything_is_mended(house: Runtime) -> None:
    make_folder(house.settings, made_at=NOW - timedelta(hours=1), offsite=True)
    bare = replace(house, settings=house.settings.model_copy(update={"offsite": None}))
    await read_standing(bare, fresh=True)
    async with open_client(bare) as client:
        answer = (await client.get("/health/detailed")).json()
    assert (answer["components"]["backup"], answer["status"]) == ({"status": "degraded"}, "degraded")
    assert answer["ok"]
    assert (await read_standing(house, fresh=True)).notices == []
    async with open_client(house) as client:
        assert (await client.get("/health/detailed")).json()["components"]["backup"] == {"status": "up"}


@pytest.mark.contract("AL-10", part="ages and notices of backups are metrics")
async def test_metrics_have_the_ages_and_every_notice(house: Runtime) -> None:
    make_folder(house.settings, made_at=NOW - timedelta(hours=30))
    await read_standing(house, fresh=True)
    admin = await make_person(house.db, await ensure_default_tenant(house), platform_role="admin")
    async with open_client(house, admin) as client:
        text = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines["pharos_backup_age_seconds"]) == pytest.approx(30 * 3600, rel=0.01)
    assert math.isnan(float(lines["pharos_backup_offsite_age_seconds"]))
    assert float(lines["pharos_drill_age_seconds"]) == pytest.approx(2 * 86400, rel=0.01)
    assert float(lines["pharos_restore_seconds"]) == 41.5
    told = {code for code in CODES if float(lines[f'pharos_backup_notice{{notice="{code}"}}'])}
    assert told == {"backup_old", "offsite_old"}


async def test_what_would_be_lost_counts_every_tenants_documents_since_the_backup(house: Runtime) -> None:
    make_folder(house.settings, made_at=NOW - timedelta(hours=1))
    for slug in ("first-house", "second-house"):
        tenant_id = await create_tenant(house, slug=slug, name=slug)
        admin = await make_person(house.db, tenant_id, platform_role="superadmin")
        project = await make_project(house.db, admin)
        before = await make_document(house, admin, project, content=b"before")
        await make_document(house, admin, project, content=b"after")
        async with house.db.transaction(tenant_id) as session:
            old = update(Document).where(Document.id == before.id).values(created_at=NOW - timedelta(hours=2))
            await session.execute(old)
    standing = await read_standing(house, fresh=True)
    assert (standing.documents_since, standing.documents_since_elsewhere) == (2, None)
    assert (standing.restore_seconds, standing.restore_by) == (41.5, "drill")
    make_folder(house.settings, made_at=NOW - timedelta(hours=3), offsite=True)
    assert (await read_standing(house, fresh=True)).documents_since_elsewhere == 4


async def test_monitoring_reads_the_backups_at_most_once_a_minute(house: Runtime) -> None:
    first = await read_standing(house, fresh=True)
    make_folder(house.settings, made_at=NOW - timedelta(hours=1))
    assert await read_standing(house) is first
    assert len((await read_standing(house, fresh=True)).backups) == 1


async def test_the_doctor_names_what_to_do(house: Runtime, tmp_path: Path) -> None:
    url = {"PHAROS_DATABASE_URL": str(house.settings.database_url)}
    done = await asyncio.to_thread(pharos, tmp_path, "doctor", "backup", "--json", **url)
    check, result, cause = finding(done)
    assert (done.returncode, check, result) == (0, "backup", "WARN")
    for mends in ("`pharos backup now`", "PHAROS_OFFSITE", "PHAROS_BACKUP_DIR", "PHAROS_BACKUP_RECIPIENT"):
        assert mends in cause, mends
