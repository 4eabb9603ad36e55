"""The Postgres of the install: made, started, killed, started again, and where its directory cannot be reached."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from pharos.infra import embedded_postgres
from pharos.infra.embedded_postgres import EmbeddedPostgres
from pharos.infra.errors import Conflict, Unavailable
from pharos.infra.postgres_place import cluster_home, server_user

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("embedded_postgres")]  # one cluster for most of them

Start = Callable[..., subprocess.Popen[bytes]]


@contextmanager
def directory() -> Iterator[Path]:
    """One that every user may enter; pytest's own are closed to the user who runs Postgres."""
    made = Path(tempfile.mkdtemp(prefix="pharos-postgres-"))
    made.chmod(0o755)
    yield made
    embedded_postgres.delete(made / "data")
    shutil.rmtree(made)


@pytest.fixture
def place() -> Iterator[Path]:
    with directory() as made:
        yield made


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    """The data directory of the tests that only start a server: initdb takes a second."""
    with directory() as made:
        yield made / "data"


@pytest.fixture
def cluster(made_once: Path) -> EmbeddedPostgres:
    return embedded_postgres.initialise(made_once)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server without fsync and waits for it; whatever was started ends with the test."""
    started: list[EmbeddedPostgres] = []
    children: list[subprocess.Popen[bytes]] = []

    def run(cluster: EmbeddedPostgres, *, fsync: bool = False) -> subprocess.Popen[bytes]:
        started.append(cluster)
        with (tmp_path / "postgres.log").open("ab") as output:
            process = embedded_postgres.start(cluster, output=output, fsync=fsync)
        children.append(process)
        embedded_postgres.wait_until_ready(cluster, process, timeout_seconds=120)
        return process

    yield run
    for cluster in started:
        embedded_postgres.stop(cluster)
    for process in children:
        process.wait(timeout=10)


def ask(cluster: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(cluster.admin_url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def write_note(cluster: EmbeddedPostgres) -> None:
    with psycopg.connect(cluster.admin_url) as connection:
        connection.execute("create table note as select 'kept' as text")


def test_a_server_is_made_started_and_stopped_with_its_data_kept(place: Path, start: Start) -> None:
    assert embedded_postgres.find(place / "data") is None
    cluster = embedded_postgres.initialise(place / "data")
    process = start(cluster)
    assert embedded_postgres.running_pid(cluster) == process.pid
    assert ask(cluster, "select current_setting('listen_addresses')") == "127.0.0.1"
    assert ask(cluster, "select current_setting('data_checksums')") == "on"
    write_note(cluster)
    embedded_postgres.stop(cluster)
    assert process.wait(timeout=30) == 0
    assert embedded_postgres.running_pid(cluster) is None
    assert embedded_postgres.initialise(place / "data") == cluster == embedded_postgres.find(place / "data")
    start(cluster)
    assert ask(cluster, "select text from note") == "kept"


def test_nobody_gets_in_without_the_password_and_its_file_is_closed(cluster: EmbeddedPostgres, start: Start) -> None:
    start(cluster)
    for host in ("127.0.0.1", str(cluster.socket_dir)):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=host, port=cluster.port, user="postgres", password="guess", dbname="postgres")
    word = cluster.data_dir / "secrets" / "postgres-superuser"
    assert stat.S_IMODE(word.stat().st_mode) == 0o600


def test_a_killed_server_starts_again_with_everything_committed(cluster: EmbeddedPostgres, start: Start) -> None:
    process = start(cluster, fsync=True)
    write_note(cluster)
    process.kill()
    process.wait(timeout=30)
    assert (cluster.data / "postmaster.pid").exists()
    assert embedded_postgres.running_pid(cluster) is None
    start(cluster)
    assert ask(cluster, "select text from note") == "kept"


def test_a_running_server_is_not_started_twice(cluster: EmbeddedPostgres, start: Start) -> None:
    process = start(cluster)
    with pytest.raises(Conflict, match=f"already runs on .* as process {process.pid}") as refusal:
        start(cluster)
    assert refusal.value.code == "postgres_running"


def test_a_lock_that_names_somebody_elses_process_is_cleared(cluster: EmbeddedPostgres, start: Start) -> None:
    lock = cluster.data / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{cluster.data}\n0\n{cluster.port}\n{cluster.socket_dir}\n127.0.0.1\n\nready\n")
    assert embedded_postgres.running_pid(cluster) is None
    embedded_postgres.stop(cluster)  # must not end this process
    process = start(cluster)
    assert lock.read_text().split()[0] == str(process.pid)


def test_a_port_taken_meanwhile_is_replaced(cluster: EmbeddedPostgres, free_listener: int) -> None:
    (cluster.home / "port").write_text(f"{free_listener}\n")
    again = embedded_postgres.initialise(cluster.data_dir)
    assert again.port not in {0, free_listener}


@pytest.fixture
def free_listener() -> Iterator[int]:
    """A port somebody listens on."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_a_server_that_cannot_start_says_where_its_reason_is(
    cluster: EmbeddedPostgres, start: Start, tmp_path: Path
) -> None:
    of_the_operator = cluster.data / "operator.conf"
    of_the_operator.write_text("shared_buffers = 'a lot'\n")
    of_the_operator.chmod(0o644)
    with pytest.raises(Unavailable, match="`pharos logs postgres`"):
        start(cluster)
    of_the_operator.unlink()
    assert "shared_buffers" in (tmp_path / "postgres.log").read_text()


def test_a_half_made_cluster_is_made_anew(place: Path, start: Start) -> None:
    (place / "data").mkdir()
    user, group = server_user()
    home = cluster_home(place / "data", user, group)
    (home / "data.0123abcd").mkdir()
    start(embedded_postgres.initialise(place / "data"))
    assert [path.name for path in home.glob("data*")] == ["data"]


PARENT = """
import signal, sys, time
from pathlib import Path
from pharos.infra import embedded_postgres
cluster = embedded_postgres.initialise(Path(sys.argv[1]))
process = embedded_postgres.start(cluster, output=2, fsync=False)
embedded_postgres.wait_until_ready(cluster, process)
print(process.pid, flush=True)
signal.pause()
"""


def test_the_server_shuts_down_cleanly_when_its_parent_is_killed(cluster: EmbeddedPostgres, tmp_path: Path) -> None:
    log, command = tmp_path / "log", [sys.executable, "-c", PARENT, str(cluster.data_dir)]
    with log.open("w") as output:
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        server.wait(timeout=30)
    assert "database system is shut down" in log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_below_a_closed_home_the_cluster_lies_elsewhere_and_is_removed_with_the_rest(place: Path, start: Start) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    cluster = embedded_postgres.initialise(home / "data")
    process = start(cluster)
    assert psutil.Process(process.pid).uids().real == cluster.user != 0
    assert (home / "data" / "postgres").is_symlink()
    assert not cluster.home.is_relative_to(place)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert embedded_postgres.find(home / "data") == cluster
    embedded_postgres.stop(cluster)
    embedded_postgres.delete(home / "data")
    assert not cluster.home.exists()
    assert not (home / "data" / "postgres").is_symlink()


def test_a_port_file_that_a_power_failure_left_half_written_is_made_anew(cluster: EmbeddedPostgres) -> None:
    file = cluster.home / "port"
    for half in ("", "54", "no number", "99999999"):
        file.write_text(half)
        port = embedded_postgres.initialise(cluster.data_dir).port
        assert file.read_text() == f"{port}\n"
        assert port > 1023
