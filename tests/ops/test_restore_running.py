"""A restore of an installation that serves: it serves again afterwards, whatever happened on the way."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls, initialise_database, read_administration, with_database
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Unavailable
from pharos.infra.settings import Settings
from pharos.ops import start_stop
from pharos.ops.backup.restore import restore, undo_restore
from pharos.ops.backup.restore_journal import read_unfinished
from pharos.ops.backup.restore_unfinished import abort_restore, resume_restore
from pharos.ops.backup.rollback_points import list_rollback_points
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.listen import local_url
from pharos.ops.running import read_state
from pharos.ops.start_stop import postgres_alone, start_detached, what_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.prove,
    pytest.mark.xdist_group("supervisor"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),  # it is to outlive us
]


def quiet(step: str, sentence: str) -> None:
    return


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    # not pytest's own directory: below it a socket's path grows longer than the 107 characters Linux allows
    root = Path(tempfile.mkdtemp(prefix="pharos-back-"))
    root.chmod(0o755)
    made = Settings(_env_file=None, data_dir=root / "data", port=free_port())
    monkeypatch.setenv("PHAROS_DATA_DIR", str(made.data_dir))
    monkeypatch.setenv("PHAROS_PORT", str(made.port))
    monkeypatch.setenv("PHAROS_BACKUP_AT", "")  # the day's backup would hold the lock
    monkeypatch.chdir(root)
    yield made
    subprocess.run([sys.executable, "-m", "pharos", "down", "--delete-data", "--yes"], check=True)
    shutil.rmtree(root)


def add_tenant(settings: Settings, slug: str) -> None:
    with psycopg.connect(connection_urls(settings).app) as connection:
        connection.execute("insert into tenants (id, slug, name) values (gen_random_uuid(), %s, %s)", [slug, slug])


def tenants(settings: Settings) -> set[str]:
    with psycopg.connect(connection_urls(settings).app) as connection:
        return {row[0] for row in connection.execute("select slug from tenants where slug <> 'default'")}


def tenants_of_points(settings: Settings) -> list[set[str]]:
    """What each rollback point holds, the newest first."""
    admin_url = read_administration(settings).admin_url
    found = []
    for point in list_rollback_points(settings):
        with psycopg.connect(with_database(admin_url, point.database)) as connection:
            found.append({row[0] for row in connection.execute("select slug from tenants where slug <> 'default'")})
    return found


def count(settings: Settings, table: str) -> int:
    with psycopg.connect(connection_urls(settings).backup) as connection:
        found = connection.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(table))).fetchone()
    assert found is not None
    return int(found[0])


def wait_for_handbook(settings: Settings) -> None:
    """Its passages are what can be asked about; somebody must be there to be asked as."""
    arguments = ["user", "create-admin", "--email", "ops@example.org", "--password", "four unrelated calm words"]
    subprocess.run([sys.executable, "-m", "pharos", *arguments], check=True)
    deadline = time.monotonic() + 60
    while count(settings, "passages") == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_ready(settings: Settings) -> bool:
    return httpx.get(f"{local_url(settings)}/health/ready", timeout=10).status_code == 200


def kill_at(settings: Settings, folder: Path, step: str) -> None:
    """Restore in a process of its own, which kills itself as it tells this step."""

    def tell(reached: str, sentence: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=restore, args=(settings, folder), kwargs={"tell": tell}
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"it never came to {step}"


def occupied(settings: Settings) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    listener.listen()
    return listener


def test_what_needs_longer_to_stop_than_we_wait_runs_again_once_it_has_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_alone(settings):
        urls = initialise_database(settings)
        migrate.upgrade(urls.migrator, owner=urls.owner_role)
    served = start_detached(settings, only="postgres")
    folder = make_backup(settings)
    add_tenant(settings, "after")
    monkeypatch.setattr(start_stop, "DOWN_SECONDS", 0.2)

    def hold(step: str, sentence: str) -> None:
        if step in ("stop", "again"):
            os.kill(served.pid, signal.SIGSTOP if step == "stop" else signal.SIGCONT)

    with pytest.raises(Unavailable, match="has not stopped"):
        restore(settings, folder, tell=hold)
    running = read_state(settings)
    assert running is not None
    assert (running.is_ready, running.pid != served.pid, set(running.parts)) == (True, True, {"postgres"})
    assert tenants(settings) == {"after"}


def test_what_served_serves_again_with_the_restored_data_or_with_the_old(settings: Settings) -> None:
    start_detached(settings)
    add_tenant(settings, "before")
    folder = make_backup(settings)
    add_tenant(settings, "after")

    done = restore(settings, folder, tell=quiet)
    assert {check.result for check in done.checks} <= {"PASS", "SKIP"}
    assert [check.name for check in done.checks if check.result == "PASS"][:2] == ["health", "ready"]
    assert (tenants(settings), is_ready(settings), done.is_running) == ({"before"}, True, True)
    undo_restore(settings, tell=quiet)
    assert (tenants(settings), is_ready(settings)) == ({"before", "after"}, True)

    held: list[socket.socket] = []

    def hinder(step: str, sentence: str) -> None:
        if step == "start":
            held.append(occupied(settings))
        if step == "back":
            held.pop().close()

    with pytest.raises(Unavailable) as failed:
        restore(settings, folder, tell=hinder)
    assert failed.value.code == "restore_not_healthy"
    assert tenants_of_points(settings) == [{"before"}], "what did not work is not offered"
    assert (tenants(settings), is_ready(settings)) == ({"before", "after"}, True)


def test_a_kill_at_every_step_is_resumed_and_aborted_and_what_served_serves(settings: Settings) -> None:
    start_detached(settings)
    add_tenant(settings, "before")
    wait_for_handbook(settings)
    folder = make_backup(settings)
    steps: list[str] = []
    done = restore(settings, folder, tell=lambda step, sentence: steps.append(step))
    asked = next(check for check in done.checks if check.name == "sample question")
    assert (asked.result, asked.said) == ("PASS", "default: cites its document")
    assert count(settings, "conversations") == 0, "nobody finds a conversation they never had"
    assert steps[0] == "check"
    for step in steps[1:]:
        live = "after" + step
        add_tenant(settings, live)
        for end, expected in ((abort_restore, {"before", live}), (resume_restore, {"before"})):
            kill_at(settings, folder, step)
            is_swapped = step in ("swapped", "start", "smoke")
            if read_state(settings) is None:
                with postgres_alone(settings):
                    assert tenants(settings) == ({"before"} if is_swapped else {"before", live})
            assert read_unfinished(settings) is not None
            end(settings, tell=quiet)
            assert (step, tenants(settings), is_ready(settings)) == (step, expected, True)
            assert (read_unfinished(settings), what_runs(settings)) == (None, "everything")
