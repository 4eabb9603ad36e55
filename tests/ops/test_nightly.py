"""The daily backup is made once a day by whoever works, and older ones go only when it turned out good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from pharos.infra.settings import Settings
from pharos.ops.backup.nightly import is_missing, last_moment
from pharos.ops.backup.store import StoredBackup

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
@pytest.mark.parametrize("state", ["verified", "offsite", "failed"])
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


@pytest.mark.contract("BK-01", part="a night that was slept through is made up for")
def test_a_missed_night_is_made_up_for_but_a_first_start_waits_for_its_own() -> None:
    started = NIGHT + timedelta(hours=6)
    assert is_missing(NIGHT, [attempt(NIGHT - DAY)], since=started)
    assert not is_missing(NIGHT, [], since=started)
    assert is_missing(NIGHT + DAY, [], since=started)


@pytest.mark.parametrize("text", ["3:00", "24:00", "03:60", "daily"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="HH:MM"):
        Settings(_env_file=None, backup_at=text)
