"""The daily backup is made once a day by whoever works, and copied elsewhere at its own hour, until that succeeds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import ValidationError
from pyrage import x25519  # type: ignore[import-untyped]
from tests.ops.backups import make_folder

from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings
from pharos.ops.backup.nightly import failed_just_now, is_copy_due, is_missing, last_moment
from pharos.ops.backup.retention import prune
from pharos.ops.backup.store import StoredBackup, list_backups, record_failure
from pharos.runtime import Runtime
from pharos.worker import DailyBackup, DailyCopy

EAST = timezone(timedelta(hours=2))
NIGHT = datetime(2026, 3, 10, 3, 0, tzinfo=EAST)
DAY = timedelta(days=1)


def attempt(made_at: datetime, state: str = "verified") -> StoredBackup:
    return StoredBackup("pharos-of-the-test", made_at, state, None)


@pytest.mark.contract("BK-02", part="at three by the server's clock")
def test_the_last_moment_is_todays_or_yesterdays_by_the_servers_clock() -> None:
    assert last_moment("03:00", NIGHT) == NIGHT
    assert last_moment("03:00", NIGHT + timedelta(hours=9)) == NIGHT
    assert last_moment("03:00", NIGHT - timedelta(minutes=1)) == NIGHT - DAY
    assert last_moment("", NIGHT) is None


@pytest.mark.contract("BK-01", part="once a day, by one of the workers")
@pytest.mark.parametrize("state", ["verified", "offsite"])
def test_an_attempt_after_the_moment_is_that_days(state: str) -> None:
    made = attempt((NIGHT + timedelta(seconds=5)).astimezone(UTC), state)
    assert not is_missing(NIGHT, [attempt(NIGHT - DAY), made], since=NIGHT - DAY)
    assert is_missing(NIGHT + DAY, [made], since=NIGHT - DAY)


@pytest.mark.contract("BK-01", part="one that nobody verified is not the day's, three of them are enough")
def test_an_attempt_that_is_neither_good_nor_failed_does_not_use_up_the_day() -> None:
    written = [attempt(NIGHT + timedelta(hours=hour), "written") for hour in range(3)]
    assert is_missing(NIGHT, written[:2], since=NIGHT - DAY)
    assert not is_missing(NIGHT, [*written[:2], attempt(NIGHT + timedelta(hours=2))], since=NIGHT - DAY)
    assert not is_missing(NIGHT, written, since=NIGHT - DAY)


@pytest.mark.contract(
    "BK-01", part="one that failed is tried again every hour until it works; what fills the disk, thrice"
)
def test_a_failed_attempt_does_not_use_up_the_night() -> None:
    failed = [attempt(NIGHT + timedelta(hours=hour), "failed") for hour in range(9)]
    assert is_missing(NIGHT, failed, since=NIGHT - DAY)
    assert not is_missing(NIGHT, [*failed, attempt(NIGHT + timedelta(hours=9))], since=NIGHT - DAY)
    left = [replace(one, folder=Path("/backups/pharos-of-the-test")) for one in failed]
    assert is_missing(NIGHT, left[:2], since=NIGHT - DAY)
    assert not is_missing(NIGHT, left[:3], since=NIGHT - DAY)
    last = failed[-1].made_at
    assert failed_just_now(failed, now=last + timedelta(minutes=59))
    assert not failed_just_now(failed, now=last + timedelta(minutes=60))
    assert not failed_just_now([attempt(last), attempt(last + DAY, "failed")], now=last + timedelta(minutes=1))
    slow = [replace(one, seconds=7200) for one in failed]
    assert failed_just_now(slow, now=last + timedelta(minutes=179)), "an hour from its end"
    assert not failed_just_now(slow, now=last + timedelta(minutes=180))


@pytest.mark.contract("BK-01", part="a backup made while the clock was wrong keeps no later one from being made")
def test_a_backup_from_the_future_is_not_the_days() -> None:
    known = [attempt(NIGHT + 300 * DAY), attempt(NIGHT - DAY)]
    assert is_missing(NIGHT, known, since=NIGHT - DAY)
    assert not is_missing(NIGHT, [*known, attempt(NIGHT + timedelta(hours=1))], since=NIGHT - DAY)


@pytest.mark.contract("BK-01", part="a night that was slept through is made up for")
def test_a_missed_night_is_made_up_for_but_a_first_start_waits_for_its_own() -> None:
    started = NIGHT + timedelta(hours=6)
    assert is_missing(NIGHT, [attempt(NIGHT - DAY)], since=started)
    assert not is_missing(NIGHT, [], since=started)
    assert is_missing(NIGHT + DAY, [], since=started)


@pytest.mark.contract("BK-02", part="copied elsewhere at half past three, or once verified, until that succeeds")
def test_the_newest_verified_backup_is_copied_after_its_hour_until_it_is_elsewhere() -> None:
    at = Settings(_env_file=None).offsite_at
    assert at == "03:30"
    made = replace(attempt(NIGHT), folder=Path("/backups/pharos-of-the-test"))
    older = replace(made, made_at=NIGHT - DAY, offsite_at=NIGHT - DAY)
    assert not is_copy_due(at, [made, older], now=NIGHT + timedelta(minutes=29))
    assert is_copy_due(at, [made, older], now=NIGHT + timedelta(minutes=30))
    assert is_copy_due(at, [made, older], now=NIGHT + timedelta(hours=20)), "one that failed, or was verified late"
    assert not is_copy_due(at, [replace(made, state="written"), older], now=NIGHT + timedelta(hours=1))
    assert not is_copy_due(at, [replace(made, offsite_at=NIGHT + timedelta(hours=1))], now=NIGHT + timedelta(hours=2))
    by_hand = replace(made, made_at=NIGHT + timedelta(hours=9))
    assert not is_copy_due(at, [by_hand, older], now=NIGHT + timedelta(hours=10))
    assert is_copy_due(at, [by_hand, older], now=NIGHT + DAY + timedelta(minutes=30))
    assert not is_copy_due("", [made], now=NIGHT + DAY)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed: apt install rsync")
@pytest.mark.usefixtures("warm_python")
@pytest.mark.contract("BK-02", part="a copy that failed is named with its backup and made by a worker's next try")
async def test_a_worker_copies_what_is_due_and_tries_again_when_it_failed(
    fresh_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fresh_runtime.settings.model_copy(
        update={
            "data_dir": tmp_path,
            "backup_dir": tmp_path / "backups",
            "offsite": f"rsync:{tmp_path}/unmounted/place",
            "offsite_at": "00:00",
        }
    )
    for name in ("data_dir", "backup_dir", "database_url", "offsite"):
        monkeypatch.setenv(f"PHAROS_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("PHAROS_BACKUP_RECIPIENT", str(x25519.Identity.generate().to_public()))
    folder = make_folder(settings, made_at=datetime.now(UTC).replace(microsecond=0) - DAY)
    (folder / "manifest.sig").touch()
    runtime, daily = replace(fresh_runtime, settings=settings), DailyCopy()
    assert not await daily.make_if_due(runtime)
    (failed,) = list_backups(settings)
    assert (failed.state, failed.error_code, failed.is_good) == ("verified", "offsite_gone", True)
    assert daily.next_try > 0, "not at once: each try reads a part of the repository"

    (tmp_path / "unmounted").mkdir()
    daily.next_try = 0
    assert await daily.make_if_due(runtime), (tmp_path / "logs" / "backup.log").read_text()
    (copied,) = list_backups(settings)
    assert (copied.state, copied.error_code) == ("offsite", None)
    assert (tmp_path / "unmounted" / "place" / folder.name / "manifest.json").is_file()
    said = " ".join((tmp_path / "logs" / "backup.log").read_text().split())
    assert f"does not open {folder.name}: made while none or another one was set" in said, "a copy is of no use alone"
    make_folder(settings, made_at=datetime.now(UTC).replace(microsecond=0) - DAY / 2, installation_id="theirs")
    daily.next_try = 0
    assert not await daily.make_if_due(runtime), "ours is elsewhere, and another installation's is not ours"
    assert daily.next_try == 0


async def test_a_worker_whose_backup_just_failed_waits_and_has_not_given_up_the_day(
    fresh_runtime: Runtime, tmp_path: Path
) -> None:
    settings = fresh_runtime.settings.model_copy(
        update={"data_dir": tmp_path, "backup_dir": tmp_path / "backups", "backup_at": "00:00"}
    )
    full = Conflict("The disk is full.", code="storage_full")
    record_failure(settings, "pharos-of-the-test", full, made_at=datetime.now(UTC), seconds=1)
    make_folder(settings, made_at=datetime.now(UTC).replace(microsecond=0), installation_id="theirs")
    daily = DailyBackup()
    assert not await daily.make_if_due(replace(fresh_runtime, settings=settings))
    assert daily.settled is None, "nor does a backup that another installation made use it up"
    assert daily.next_try > 0
    assert not (tmp_path / "logs").exists(), "nothing was started"


async def test_attempts_that_failed_are_listed_as_long_as_backups_are_kept(
    fresh_runtime: Runtime, tmp_path: Path
) -> None:
    settings = fresh_runtime.settings.model_copy(update={"data_dir": tmp_path, "backup_dir": tmp_path / "backups"})
    full, now = Conflict("The disk is full.", code="storage_full"), datetime.now(UTC)
    for days in (settings.backup_keep_days - 1, settings.backup_keep_days + 1):
        record_failure(settings, f"pharos-{days}-days-ago", full, made_at=now - days * DAY, seconds=1)
    make_folder(settings, made_at=now.replace(microsecond=0))
    prune(settings, list_backups(settings, removed=True), now=now)
    names = [backup.name for backup in list_backups(settings) if backup.folder is None]
    assert names == [f"pharos-{settings.backup_keep_days - 1}-days-ago"]


@pytest.mark.parametrize("text", ["3:00", "24:00", "03:60", "daily"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    for name in ("backup_at", "offsite_at"):
        with pytest.raises(ValidationError, match="HH:MM"):
            Settings(_env_file=None, **{name: text})  # type: ignore[arg-type]
