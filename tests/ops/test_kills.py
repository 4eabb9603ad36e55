"""Kill -9 at the named steps of a verification and of a drill: nothing bad is called good, nothing stays for ever.

One installation with one backup for all of them. What one kill leaves the next run finds.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import psycopg
import pytest
from tests.ops.installation import Place, quiet
from tests.ops.kill_at import kill_at, left_behind

from pharos.infra import embedded_postgres
from pharos.infra.database_roles import connection_urls
from pharos.infra.postgres_place import places_outside
from pharos.infra.settings import Settings
from pharos.ops.backup.drill import run_drill
from pharos.ops.backup.drill_log import DrillCheck, list_drills
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import TableState
from pharos.ops.backup.scratch_folder import scratch_folder, sweep_scratch
from pharos.ops.backup.store import list_backups, record_verification
from pharos.ops.backup.verification import verify_backup

pytestmark = pytest.mark.xdist_group("kills")  # one installation for all of them

ABOUT_US = ("backups", "drills")
"""Tables that tell of backups and drills, not data of people."""
KEPT = "store._write_row"
"""From here on `verified.json` lies beside the backup: it was compared, though its row does not say so yet."""
VERIFY_STEPS = (
    "check.check_backup",
    "scratch_folder._claim_new:end",
    "embedded_postgres._make_cluster:end",
    "embedded_postgres.start:end",
    "scratch.load_dump",
    "scratch._grant",
    "scratch.compare_tables",
    "scratch.open_secrets",
    "embedded_postgres.delete_scratch",
    "store.record_verification",
    "manifest.write_private:end",
    KEPT,
)
DRILL_STEPS = (
    *("backup", "files", "load", "tables", "uploads", "secrets", "start", "people", "smoke", "canary", "retention"),
    "drill.own_blobs:end",
    "drill_pharos._spawn:end",
    "drill_log.save_report",
    "manifest.write_private:end",
)


def live_data(settings: Settings) -> dict[str, TableState]:
    with psycopg.connect(connection_urls(settings).backup) as connection:
        found = fingerprint_tables(connection)
    return {name: state for name, state in found.items() if name not in ABOUT_US}


def verify(place: Place) -> object:
    return verify_backup(place.settings, place.folder, tell=quiet)


def kill_now() -> None:
    """A step of its own: `kill_at` waits for it."""


def drill(place: Place, killed_after: str = "") -> object:
    def tell(check: DrillCheck) -> None:
        if check.name == killed_after:
            kill_now()

    return run_drill(place.settings, by="a test", tell=tell)


def check_what_a_kill_left(place: Place, step: str, before: dict[str, TableState]) -> None:
    (listed,) = list_backups(place.settings)
    assert listed.is_good == (step == KEPT), f"{step}: {listed.state}"
    assert live_data(place.settings) == before, step
    sweep_scratch(place.settings.data_dir)
    assert left_behind(place.settings) == [], step


def left_of_verification(place: Place) -> list[str]:
    """Beside what is left in general: files beside the backup, in whatever state it is."""
    files = [
        path.name for path in place.settings.backup_root.iterdir() if path.name not in (place.folder.name, "drills")
    ]
    return left_behind(place.settings) + files


@pytest.mark.contract("BK-15", part="a verification that was killed says nothing, and the next one clears up after it")
def test_a_killed_verification_says_nothing_and_the_next_one_clears_up_after_it(place: Place) -> None:
    (place.folder / "verified.json").unlink(missing_ok=True)
    before = live_data(place.settings)
    kill_at("scratch_folder._claim_new:end", lambda: verify(place))  # the drill below leaves a server too
    assert [backup.state for backup in list_backups(place.settings)] == ["written"]
    assert left_behind(place.settings) != []
    verify(place)
    assert left_of_verification(place) == []
    assert [backup.state for backup in list_backups(place.settings)] == ["verified"]
    assert live_data(place.settings) == before


@pytest.mark.prove
def test_a_verification_killed_at_any_step_says_nothing_and_leaves_nothing(place: Place) -> None:
    (place.folder / "verified.json").unlink(missing_ok=True)
    before = live_data(place.settings)
    for step in VERIFY_STEPS:
        kill_at(step, lambda: verify(place))
        check_what_a_kill_left(place, step, before)
    verify(place)
    assert left_of_verification(place) == []


def test_places_that_a_kill_left_without_a_link_and_links_without_a_place_go(place: Place) -> None:
    """Where the server's user cannot enter the data directory, its cluster lies elsewhere."""
    settings = place.settings

    def begin() -> None:
        with scratch_folder(settings.data_dir, prefix="scratch-") as home:
            embedded_postgres.initialise(home)

    kill_at("postgres_place.make_owned:end", begin)
    (folder,) = (settings.data_dir / "tmp").iterdir()
    unlinked = places_outside(folder)
    assert bool(unlinked) == (os.geteuid() == 0), "who runs the server himself reaches his own directory"
    kill_at("embedded_postgres._make_cluster", begin)
    kill_at("shutil.rmtree:end", lambda: sweep_scratch(settings.data_dir))
    assert len(left_behind(settings)) >= 1
    assert len(sweep_scratch(settings.data_dir)) == 1
    assert left_behind(settings) == []
    assert not any(place.exists() for place in unlinked)


def test_what_is_somebody_elses_is_left_alone(place: Place, tmp_path: Path) -> None:
    """A folder in use, another installation's, and a process that has the number of a server that is gone."""
    data_dir, other = place.settings.data_dir, tmp_path / "other"
    (other / "tmp" / "scratch-of-the-other").mkdir(parents=True)
    foreign = subprocess.Popen(["sleep", "60"])
    try:
        stale = data_dir / "tmp" / "scratch-stale"
        (stale / "postgres" / "data").mkdir(parents=True)
        (stale / "postgres" / "data" / "PG_VERSION").write_text("18\n")
        (stale / "postgres" / "data" / "postmaster.pid").write_text(f"{foreign.pid}\n")
        assert sweep_scratch(data_dir) == ["scratch-stale"]
        assert [path.name for path in (other / "tmp").iterdir()] == ["scratch-of-the-other"]
        with scratch_folder(other, prefix="drill-") as in_use:
            assert sweep_scratch(other) == []
            assert list((other / "tmp").iterdir()) == [in_use]
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


@pytest.mark.contract("DR-07", part="a drill that was killed is cleared away by the next run, and no log tells of it")
def test_a_killed_drill_is_cleared_away_by_whoever_comes_next(place: Place) -> None:
    kill_drills(place, ("embedded_postgres.start:end",))


@pytest.mark.prove
def test_a_drill_killed_at_any_step_leaves_nothing_and_the_next_one_passes(place: Place) -> None:
    kill_drills(place, DRILL_STEPS)
    report = run_drill(place.settings, by="a test", tell=lambda check: None)
    assert report.passed, report.failed
    assert left_behind(place.settings) == []


def kill_drills(place: Place, steps: tuple[str, ...]) -> None:
    record_verification(place.settings, place.folder, seconds=1.0)
    before = live_data(place.settings)
    for step in steps:
        kill_at("test_kills.kill_now" if "." not in step else step, partial(drill, place, killed_after=step))
        assert live_data(place.settings) == before, step
        assert list_drills(place.settings) == [], step
        sweep_scratch(place.settings.data_dir)
        assert left_behind(place.settings) == [], step
