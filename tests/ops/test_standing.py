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
from pharos.ops.disk import DiskSpace
from pharos.ops.models import Drill
from pharos.ops.standing import CODES, Code, DrillLine, Facts, judge, read_standing
from pharos.runtime import Runtime

NOW = datetime.now(UTC)
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
MENDED = {"backup_recipient": RECIPIENT, "offsite": "rsync:ops@elsewhere:/backups"}


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
        sealed_to=(RECIPIENT,),
    )


def drill(*, days: float, passed: bool = True) -> DrillLine:
    return DrillLine("restore-drill", "pharos-1", NOW - timedelta(days=days), 41.5, passed, "worker", "# A drill")


GOOD, OLD_DRILL, DRILL = stored(hours=1), drill(days=93), drill(days=91)
GB = 10**9
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
        ([replace(stored(hours=2, state="verified"), error_code="offsite_gone"), GOOD], [DRILL], []),
        ([replace(stored(hours=0, state="verified"), error_code="offsite_gone"), GOOD], [DRILL], ["offsite_failed"]),
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


def test_copies_on_the_disk_of_the_data_are_told() -> None:
    settings = Settings(_env_file=None, **{**MENDED, "offsite": "restic:/srv/copies"})  # type: ignore[arg-type]
    facts = Facts([GOOD], [DRILL], since=A_YEAR, same_disk=False, offsite_same_disk=True)
    (told,) = judge(settings, facts, now=NOW).notices
    assert told.code == "no_offsite"
    assert "go to restic:/srv/copies, on the same disk as the data" in told.words


def test_copies_that_only_this_machine_opens_are_told() -> None:
    alone = Settings(_env_file=None, backup_recipient=None, offsite="restic:/mnt/elsewhere")
    told = judge(alone, Facts([GOOD], [DRILL], since=A_YEAR, same_disk=False), now=NOW).notices
    assert [notice.code for notice in told] == ["no_recipient"]
    assert "copies offsite cannot be opened without this machine" in told[0].words


def test_backups_of_another_installation_count_for_nothing() -> None:
    settings = Settings(_env_file=None, **MENDED)  # type: ignore[arg-type]
    theirs, own = replace(stored(hours=0), installation_id="theirs"), stored(hours=27)
    standing = judge(settings, Facts([theirs, own], [DRILL], since=A_YEAR, same_disk=False), now=NOW)
    assert [notice.code for notice in standing.notices] == ["backup_old"]
    assert (standing.good, standing.elsewhere, standing.backups) == (own, own, [theirs, own])


OTHERS = replace(GOOD, sealed_to=("age1another",))


@pytest.mark.parametrize(
    ("backups", "named", "steps"),
    [
        ([replace(GOOD, sealed_to=())], [GOOD], "now`, then `pharos backup verify`, then `pharos backup push`."),
        ([OTHERS, stored(hours=30)], [GOOD], "now`, then `pharos backup verify`, then `pharos backup push`."),
        ([stored(hours=0, state="written"), OTHERS], [GOOD], "verify`, then `pharos backup push`."),
        ([stored(hours=0, state="verified"), OTHERS], [GOOD], "push`."),
        ([GOOD, replace(stored(hours=30), sealed_to=())], [], ""),
    ],
)
def test_backups_that_the_offline_identity_does_not_open_are_told(
    backups: list[StoredBackup], named: list[StoredBackup], steps: str
) -> None:
    settings = Settings(_env_file=None, **MENDED)  # type: ignore[arg-type]
    standing = judge(settings, Facts(backups, [DRILL], since=A_YEAR, same_disk=False), now=NOW)
    words = [notice.words for notice in standing.notices if notice.code == "not_sealed"]
    assert len(words) == len(named) == len([notice for notice in standing.notices])
    assert all(
        f"does not open {one.name}:" in words[0] and words[0].endswith(f"opens: `pharos backup {steps}")
        for one in named
    )
    assert standing.closed == {one.name for one in backups if RECIPIENT not in one.sealed_to}


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


@pytest.mark.contract("HE-08", part="the backup's part: degraded while one that is due is missing or failed, else up")
async def test_health_is_degraded_while_backups_fail_and_not_for_what_was_never_set_up(house: Runtime) -> None:
    async def backup_part(runtime: Runtime) -> dict[str, str]:
        told[:] = [notice.code for notice in (await read_standing(runtime, fresh=True)).notices]
        async with open_client(runtime) as client:
            answer = (await client.get("/health/detailed")).json()
        assert answer["ok"]
        assert answer["status"] != "healthy" or answer["components"]["backup"] == {"status": "up"}
        part: dict[str, str] = answer["components"]["backup"]
        return part

    told: list[Code] = []
    bare = replace(house, settings=house.settings.model_copy(update={"offsite": None, "backup_recipient": None}))
    assert await backup_part(bare) == {"status": "degraded"}
    assert set(told) - {"disk_low"} == {"backup_old", "no_offsite", "no_recipient"}
    make_folder(house.settings, made_at=NOW - timedelta(hours=1), offsite=True)
    assert await backup_part(bare) == {"status": "up"}
    assert set(told) - {"disk_low"} == {"no_offsite", "no_recipient"}
    assert await backup_part(house) == {"status": "up"}
    assert set(told) <= {"disk_low"}


@pytest.mark.contract("AL-10", part="disk low")
def test_a_disk_that_runs_low_or_will_not_hold_the_next_backup_is_told() -> None:
    def told(free: int, wanted: int = 0) -> list[str]:
        disks = (DiskSpace(("data", "uploads"), Path("/srv"), 100 * GB, free, wanted),)
        facts = Facts([GOOD], [DRILL], since=A_YEAR, same_disk=False, disks=disks)
        standing = judge(Settings(_env_file=None, **MENDED), facts, now=NOW)  # type: ignore[arg-type]
        assert not standing.is_failing
        return [notice.words for notice in standing.notices if notice.code == "disk_low"]

    assert told(16 * GB) == []
    assert [words.partition(" (")[0] for words in told(14 * GB)] == ["The disk of data, uploads runs low: 14.0 GB"]
    assert "the next backup takes 30.0 GB" in told(20 * GB, 30 * GB)[0]
    assert "is full" in told(GB // 4)[0]


@pytest.mark.contract("AL-10", part="ages and notices of backups and free disk are metrics")
async def test_metrics_have_the_ages_and_every_notice(house: Runtime) -> None:
    make_folder(house.settings, made_at=NOW - timedelta(hours=30))
    await read_standing(house, fresh=True)
    admin = await make_person(house.db, await ensure_default_tenant(house), platform_role="admin")
    async with open_client(house, admin) as client:
        text = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    since_import = (datetime.now(UTC) - NOW).total_seconds()  # a whole suite may have run between the two
    assert float(lines["pharos_backup_age_seconds"]) == pytest.approx(30 * 3600 + since_import, rel=0.01)
    assert math.isnan(float(lines["pharos_backup_offsite_age_seconds"]))
    assert float(lines["pharos_drill_age_seconds"]) == pytest.approx(2 * 86400 + since_import, rel=0.01)
    assert float(lines["pharos_restore_seconds"]) == 41.5
    told = {code for code in CODES if float(lines[f'pharos_backup_notice{{notice="{code}"}}'])}
    assert told - {"disk_low"} == {"backup_old", "offsite_old"}
    for name, place in (("data", house.settings.data_dir), ("backups", house.settings.backup_root)):
        usage = shutil.disk_usage(place)
        assert float(lines[f'pharos_disk_total_bytes{{holds="{name}"}}']) == usage.total
        assert 0 < float(lines[f'pharos_disk_free_bytes{{holds="{name}"}}']) <= usage.total


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


async def test_before_the_first_backup_the_doctor_says_when_it_is_made_and_fails_nothing(
    house: Runtime, tmp_path: Path
) -> None:
    async def told(**more: str) -> str:
        done = await asyncio.to_thread(pharos, tmp_path, "doctor", "backup", "--json", **more)
        _, result, cause = finding(done)
        assert (done.returncode, result) == (0, "WARN")
        return cause

    assert "never started here" in await told()
    assert "None is made by itself" in await told(PHAROS_BACKUP_AT="")
    async with system_transaction(house.db) as session:
        await session.execute(update(Tenant).values(created_at=NOW))
    cause = await told(PHAROS_DATABASE_URL=str(house.settings.database_url))
    assert cause.startswith("There is no backup yet, and none is due. The first one is made and restored by itself at ")
    assert "`pharos backup nightly` makes one now. What is still to be done: " in cause
    assert "PHAROS_OFFSITE" in cause


async def test_the_doctor_names_what_to_do(house: Runtime, tmp_path: Path) -> None:
    url = {"PHAROS_DATABASE_URL": str(house.settings.database_url)}
    done = await asyncio.to_thread(pharos, tmp_path, "doctor", "backup", "--json", **url)
    check, result, cause = finding(done)
    assert (done.returncode, check, result) == (0, "backup", "WARN")
    for mends in ("`pharos backup now`", "PHAROS_OFFSITE", "PHAROS_BACKUP_DIR", "PHAROS_BACKUP_RECIPIENT"):
        assert mends in cause, mends
