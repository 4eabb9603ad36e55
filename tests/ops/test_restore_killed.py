"""A restore that is killed at any step leaves the old data or the new, never both, and is gone on with or undone.

One installation and one backup of it for the whole module, with a supervisor where something has to run: the server is
the tests' own, so that starting it costs no more than a process.
"""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from tests.ops.installation import Place, database_of, first_day, make_installation, quiet, upload, with_runtime
from tests.postgres import Server
from typer.testing import CliRunner

from pharos.cli import app
from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import NotFound
from pharos.infra.fence import refuse_unsafe_role
from pharos.infra.keyring import read_keys
from pharos.infra.settings import Settings
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import TableState, read_manifest
from pharos.ops.backup.restore import Restored, restore, undo_restore
from pharos.ops.backup.restore_journal import read_unfinished
from pharos.ops.backup.restore_swap import postgres_running
from pharos.ops.backup.restore_unfinished import Finished, abort_restore, resume_restore
from pharos.ops.backup.rollback_points import list_rollback_points
from pharos.ops.backup.scratch import Loaded, open_secrets
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.doctor_commands import Doubt, check_restore
from pharos.ops.running import PARTS, State, read_state, supervisor_lock, write_state
from pharos.ops.start_stop import start_detached, stop_running, what_runs

pytestmark = [
    pytest.mark.xdist_group("restore_killed"),  # one installation for all of them
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),  # it is to outlive us
]

OURS = {"operations", "backups", "drills", "blob_leases"}
"""Tables about the installation, which a restore and its lock write."""
KEPT = {"documents", "projects", "memberships", "passages", "secrets", "data_keys"}
"""Tables that a restore leaves as they were in the backup; it ends sessions and writes into the logs."""


@pytest.fixture(autouse=True)
def environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As an operator's shell has it; what runs at the end is stopped."""
    monkeypatch.setenv("PHAROS_DATA_DIR", str(place.settings.data_dir))
    monkeypatch.setenv("PHAROS_DATABASE_URL", str(place.settings.database_url))
    monkeypatch.setenv("PHAROS_DATABASE_ADMIN_URL", place.server.admin_url)
    yield
    stop_running(place.settings)


def state_of(settings: Settings) -> dict[str, TableState]:
    with psycopg.connect(connection_urls(settings).backup) as connection:
        return {name: state for name, state in fingerprint_tables(connection).items() if name not in OURS}


def is_old(place: Place, old: dict[str, TableState]) -> bool:
    return state_of(place.settings) == old


def is_new(place: Place) -> bool:
    found, wanted = state_of(place.settings), read_manifest(place.folder).tables
    return [name for name in KEPT if found[name] != wanted[name]] == []


def databases(place: Place) -> set[str]:
    with psycopg.connect(place.server.admin_url, autocommit=True) as connection:
        names = {row[0] for row in connection.execute("select datname from pg_database")}
    return {name for name in names if name.startswith(database_of(place.settings))}


def kill_at(step: str, work: Any, *arguments: Any, **options: Any) -> None:
    """Run `work` in a process of its own, which kills itself as it tells this step."""

    def tell(reached: str, sentence: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, kwargs={"tell": tell, **options})
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"it never came to {step}"


def changed(place: Place) -> dict[str, TableState]:
    """What is live once something came after the backup."""
    with_runtime(place.settings, lambda runtime: upload(runtime, place.tenant, 1, "after"))
    return state_of(place.settings)


def is_usable(settings: Settings) -> bool:
    """Whether the fence holds and the keys at hand open every secret of what is live."""
    refuse_unsafe_role(connection_urls(settings).app)
    urls = connection_urls(settings)
    return not open_secrets(Loaded("", urls.direct, urls.backup), read_keys(settings)).unopened


def said(*words: str) -> str:
    return " ".join(CliRunner().invoke(app, words).output.split())


BEFORE_THE_SWAP = ["load", "compare", "secrets", "blobs", "swap"]


def kill_and_run_again(place: Place, step: str) -> None:
    old = changed(place)
    kill_at(step, restore, place.settings, place.folder)
    assert is_old(place, old) if step in BEFORE_THE_SWAP else is_new(place)
    assert is_usable(place.settings)
    restore(place.settings, place.folder, tell=quiet)
    assert is_new(place)
    assert f"{database_of(place.settings)}_restore" not in databases(place)
    assert read_unfinished(place.settings) is None


@pytest.mark.contract("RS-05", part="a kill before the swap leaves the old database, and the next run is clean")
def test_a_kill_while_loading_leaves_the_old_and_the_next_run_is_clean(place: Place) -> None:
    kill_and_run_again(place, "load")


@pytest.mark.prove
@pytest.mark.parametrize("step", ["compare", "secrets", "blobs", "swap", "swapped"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_run_is_clean(place: Place, step: str) -> None:
    kill_and_run_again(place, step)


INTERRUPTED = 130
"""The code of a command that a signal ends."""


class LostTerminal(io.StringIO):
    """It hangs up once Pharos is stopped; then the disk is full of what is written instead of being read."""

    def write(self, text: str) -> int:
        if text.startswith("Swapping"):
            os.kill(os.getpid(), signal.SIGHUP)
        if text.startswith("Starting what ran again"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@contextmanager
def running(there: Path, ran_with: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Postgres alone, started in a directory of its own, and as a program: its environment is asked for."""
    up = [sys.executable, "-u", "-m", "pharos", "up", "--only", "postgres"]
    with subprocess.Popen(up, cwd=there, env=ran_with, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "Postgres is ready." in process.stdout.readline()
        yield process
        process.terminate()  # it has ended, unless the restore failed


def started_elsewhere(place: Place, there: Path) -> dict[str, str]:
    """An environment to start with there, where a file names the database."""
    there.mkdir()
    (there / "pharos.env").write_text(f"PHAROS_DATABASE_URL={place.settings.database_url}\n")
    here = {name: text for name, text in os.environ.items() if not name.startswith("PHAROS_DATABASE")}
    return here | {"PHAROS_PORT": "8991", "PHAROS_LLM_KEY": "of-the-environment"}


def assert_runs_as(place: Place, there: Path, ran_with: dict[str, str]) -> None:
    state = read_state(place.settings)
    assert state is not None
    again = psutil.Process(state.pid)
    ours = {name: text for name, text in again.environ().items() if name.startswith("PHAROS_")}
    wanted = {name: text for name, text in ran_with.items() if name.startswith("PHAROS_")}
    assert (again.cwd(), ours) == (str(there), wanted)


def test_a_lost_connection_and_a_full_disk_leave_what_ran_running_with_what_it_ran_with(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever restores has another directory, and in the environment other settings and none of the secrets."""
    old, there = changed(place), tmp_path / "there"
    ran_with = started_elsewhere(place, there)
    monkeypatch.delenv("PHAROS_DATABASE_URL")
    monkeypatch.setenv("PHAROS_PORT", "8990")
    monkeypatch.chdir(tmp_path)
    with running(there, ran_with) as process:
        monkeypatch.setattr("sys.stdout", LostTerminal())
        heard = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup a restore is deaf to it
        try:
            ended = app(["restore", os.path.relpath(place.folder), "--yes"], standalone_mode=False)
        finally:
            signal.signal(signal.SIGHUP, heard)
        assert process.stdout is not None
        assert "A restore has stopped Pharos here. It starts it again in the background" in process.stdout.read()
    assert ended == INTERRUPTED
    assert "another PHAROS_PORT, PHAROS_DATABASE_URL, PHAROS_LLM_KEY than is set here" in capsys.readouterr().err
    assert is_old(place, old)
    assert is_usable(place.settings)
    assert read_unfinished(place.settings) is None
    assert_runs_as(place, there, ran_with)


@pytest.mark.prove
def test_what_ran_runs_again_after_a_restore_with_what_it_ran_with(place: Place, tmp_path: Path) -> None:
    there = tmp_path / "there"
    ran_with = started_elsewhere(place, there)
    with running(there, ran_with):
        command = [sys.executable, "-u", "-m", "pharos", "restore", str(place.folder), "--yes"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert is_new(place)
    assert_runs_as(place, there, ran_with)


@pytest.mark.usefixtures("warm_python")
def test_a_restore_that_nobody_reads_any_more_goes_on_to_its_end(place: Place) -> None:
    changed(place)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pharos", "restore", str(place.folder), "--yes"]
    done = subprocess.run(command, check=False, stdout=writing)
    os.close(writing)
    assert (done.returncode, is_new(place)) == (0, True)


@pytest.mark.usefixtures("warm_python")
def test_what_runs_now_counts_more_than_what_a_killed_restore_had_stopped(place: Place) -> None:
    start_detached(place.settings, only="postgres")
    kill_at("load", restore, place.settings, place.folder)
    stop_running(place.settings)

    def serve() -> None:
        with supervisor_lock(place.settings):
            write_state(place.settings, State(os.getpid(), 0, "", True, {name: {} for name in PARTS}))
            signal.pause()

    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    try:
        while what_runs(place.settings) is None:
            time.sleep(0.01)
        with postgres_running(place.settings) as ran:
            assert ran == "everything"
    finally:
        process.kill()
        process.join()
    assert abort_restore(place.settings, tell=quiet).is_running


@pytest.mark.usefixtures("warm_python")
def test_a_restore_killed_with_pharos_stopped_is_said_and_resumed(place: Place) -> None:
    old = changed(place)
    start_detached(place.settings, only="postgres")
    kill_at("swap", restore, place.settings, place.folder)
    assert (is_old(place, old), what_runs(place.settings)) == (True, None)
    with pytest.raises(Doubt) as doubt:
        check_restore()
    for text in (said("status"), str(doubt.value)):
        assert "broken off at the step swap" in text
        assert "`pharos restore --resume`" in text
        assert "`pharos restore --abort`" in text
    at_work: list[object] = []
    done = resume_restore(place.settings, tell=lambda step, _: at_work.append(read_unfinished(place.settings)))
    assert isinstance(done, Restored)
    assert at_work[1:] == [None] * (len(at_work) - 1), "what is at work is not broken off"
    assert (is_new(place), what_runs(place.settings)) == (True, "postgres")
    assert "broken off" not in said("status")
    with pytest.raises(NotFound, match="No restore was broken off"):
        abort_restore(place.settings, tell=quiet)


@pytest.mark.usefixtures("warm_python")
def test_a_restore_killed_once_swapped_is_aborted_back_to_what_was_live(place: Place) -> None:
    old = changed(place)
    start_detached(place.settings, only="postgres")
    kill_at("start", restore, place.settings, place.folder)
    assert (is_new(place), what_runs(place.settings)) == (True, None)
    assert "`pharos restore --abort`" in said("up", "--detach", "--only", "postgres")
    aborted = abort_restore(place.settings, tell=quiet)
    assert aborted.swapped_back
    assert aborted.kept == list_rollback_points(place.settings)[0].database, "people may have worked with it"
    assert (is_old(place, old), what_runs(place.settings)) == (True, "postgres")
    assert is_usable(place.settings)
    assert read_unfinished(place.settings) is None


@pytest.mark.contract("RS-05", part="a kill after the swap leaves the new database, and it is gone on with")
def test_a_restore_killed_once_swapped_is_finished_where_nothing_ran(place: Place) -> None:
    changed(place)
    kill_at("swapped", restore, place.settings, place.folder)
    assert (is_new(place), is_usable(place.settings)) == (True, True)
    done = resume_restore(place.settings, tell=quiet)
    assert isinstance(done, Finished)
    assert (is_new(place), done.is_running, what_runs(place.settings)) == (True, False, None)
    assert done.rollback_point == list_rollback_points(place.settings)[0].database


def test_an_abort_before_the_swap_removes_what_is_half_made(place: Place) -> None:
    old = changed(place)
    kill_at("compare", restore, place.settings, place.folder)
    assert f"{database_of(place.settings)}_restore" in databases(place)
    before = databases(place)
    aborted = abort_restore(place.settings, tell=quiet)
    assert not aborted.swapped_back
    assert before - databases(place) == {f"{database_of(place.settings)}_restore"}
    assert is_old(place, old)


def test_an_undo_that_was_killed_is_aborted_and_its_rollback_point_is_one_again(place: Place) -> None:
    old = changed(place)
    restore(place.settings, place.folder, tell=quiet)
    point = list_rollback_points(place.settings)[0].database
    kill_at("swapped", undo_restore, place.settings)
    assert state_of(place.settings)["documents"] == old["documents"]
    abort_restore(place.settings, tell=quiet)
    assert is_new(place)
    assert list_rollback_points(place.settings)[0].database == point


@pytest.mark.prove
def test_a_kill_while_migrating_leaves_the_old_and_is_resumed(database_server: Server, tmp_path: Path) -> None:
    settings = make_installation(database_server, tmp_path / "data", revision=migrate.steps_after("0001")[-2])
    tenant, ledger = with_runtime(settings, first_day)
    older = Place(settings, database_server, make_backup(settings), tenant, ledger)
    old = changed(older)
    kill_at("migrate", restore, settings, older.folder)
    assert is_old(older, old)
    assert isinstance(resume_restore(settings, tell=quiet), Restored)
    assert state_of(settings)["documents"] == read_manifest(older.folder).tables["documents"]
