"""pg_dump from an exported snapshot, with a client that the server understands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from pharos.infra import processes
from pharos.infra.errors import Conflict, StorageFull, Unavailable
from pharos.infra.postgres_place import reachable_binaries
from pharos.infra.settings import Settings
from pharos.ops.backup.fingerprints import NOT_IN_DUMP
from pharos.ops.backup.priority import give_way

JOBS = 1
"""Half of the smallest machine: the other processor goes on answering people."""
COMPRESSION = 1
"""gzip's quickest level: measured on passages and vectors, a quarter of the default's processor time for a fifth more
bytes, and with it one job is no slower than two."""
LOCK_WAIT = "60s"
"""A migration that holds a table longer than this fails the backup: waiting on would queue every reader behind it."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""Of Postgres' programs: what they say is read, and a connection is what its address says."""
NO_SPACE = "No space left on device"
SYSTEM_CLIENTS = Path("/usr/lib/postgresql")
"""Where Debian keeps the clients of each major version; these speak TLS, those that come with the install do not."""


def client_programs(settings: Settings, server_major: int) -> Path:
    """The folder with `pg_dump` for a server: its own for the embedded one, else the lowest major that is not older.

    Raises `Unavailable` naming the package when there is none: an older pg_dump refuses a newer server.
    """
    ours = {major: reachable_binaries(os.geteuid(), os.getegid(), major=major) / "bin" for major in (16, 18)}
    if settings.database_url is None:
        return ours[18]
    found = dict(ours)
    if (on_path := shutil.which("pg_dump")) is not None:
        found[_major_of(Path(on_path))] = Path(on_path).parent
    for program in SYSTEM_CLIENTS.glob("*/bin/pg_dump"):
        found[_major_of(program)] = program.parent
    fitting = sorted(major for major in found if major >= server_major)
    if not fitting:
        raise Unavailable(
            f"The server is Postgres {server_major}, and no pg_dump of that version is here. Install "
            f"postgresql-client-{server_major} and run it again.",
            code="no_pg_dump",
        )
    return found[fitting[0]]


def _major_of(program: Path) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    version = re.search(r"\d+", said)
    return int(version[0]) if version else 0


def for_a_client(url: str) -> tuple[str, dict[str, str]]:
    """A database's address without its password, for a command line, which every user of the machine sees; and the
    environment that has it."""
    parts = urlsplit(url)
    address = urlunsplit(parts._replace(netloc=f"{parts.username or ''}@{parts.netloc.rpartition('@')[2]}"))
    return address, {**ENVIRONMENT, "PGPASSWORD": unquote(parts.password or "")}


@contextmanager
def dumping(
    pg_dump: Path, url: str, *, snapshot: str, into: Path, log: IO[bytes], plain: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A running `pg_dump -Fd` (gzip, unless `plain`); it is ended when the block is left before it.

    `finish_dump` waits for it.
    """
    address, environment = for_a_client(url)
    excluded = [f"--exclude-table-data=public.{table}" for table in NOT_IN_DUMP]
    process = processes.spawn(
        [
            *(pg_dump, "--format=directory", f"--jobs={JOBS}", f"--compress={0 if plain else COMPRESSION}"),
            *(f"--snapshot={snapshot}", f"--file={into}"),
            *("--schema=public", "--extension=vector", "--no-sync", f"--lock-wait-timeout={LOCK_WAIT}"),
            *(*excluded, f"--dbname={address}"),
        ],
        death_signal=signal.SIGTERM,
        output=log,
        env=environment,
    )
    give_way(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish_dump(process: subprocess.Popen[bytes], log: Path, *, needed: str) -> None:
    """Wait for the end; a code other than 0 is a failed dump, whatever it wrote. `needed` is said of a full disk.

    Raises `StorageFull` or `Conflict` (`dump_failed`) with pg_dump's own reason.
    """
    code = process.wait()
    if code == 0:
        return
    said = log.read_text(errors="replace")
    if NO_SPACE in said:
        raise StorageFull(f"The disk became full while the database was dumped; nothing of it was kept. {needed}")
    reason = next((line for line in said.splitlines() if "error:" in line), f"it ended with code {code}")
    raise Conflict(
        f"pg_dump failed: {reason.strip()}. No backup was kept. Mend the cause it names and run `pharos backup now`.",
        code="dump_failed",
    )
