"""One operation at a time that needs the data to hold still: backup, restore, drill, wipe, migrate, rotate.

Two locks, both gone when their holder dies. The file's keeps a second process of this machine out, also while a
restore ends every connection to the database. The database's (an advisory lock of a session) keeps out other machines.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psycopg

from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings

OPERATION_LOCK = 0x5048_4152_4F50  # "PHAROP"

REPLACE_ROW = """
    insert into operations (singleton, what, host, pid, started_at) values (true, %s, %s, %s, now())
    on conflict (singleton) do update
        set what = excluded.what, host = excluded.host, pid = excluded.pid, started_at = excluded.started_at
    """


@contextmanager
def hold_operation_lock(settings: Settings, what: str, *, with_database: bool = True) -> Iterator[None]:
    """Be the only operation; `what` is told to whoever comes meanwhile.

    `with_database=False` is for a machine whose database does not exist or answer: then this machine's lock alone
    counts. Raises `Conflict` (`operation_running`) naming what runs, on which host, as which process and since when.
    """
    run = settings.data_dir / "run"
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / "operation.lock").open("a+") as file:
        _lock_file(file, what, run / "operation.lock")
        if not with_database:
            yield
            return
        with _lock_database(settings, what):
            yield


def _lock_file(file: IO[str], what: str, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        text = file.read()
        holder = json.loads(text) if text.endswith("}") else {}
        raise _running(holder.get("what"), holder.get("host"), holder.get("pid"), holder.get("since")) from error
    path.chmod(0o600)
    file.truncate(0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    json.dump({"what": what, "host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
    file.flush()


@contextmanager
def _lock_database(settings: Settings, what: str) -> Iterator[None]:
    with psycopg.connect(connection_urls(settings).direct, autocommit=True) as connection:
        taken = connection.execute("select pg_try_advisory_lock(%s)", [OPERATION_LOCK]).fetchone()
        # A backup is also taken before the step that makes the table.
        has_table = connection.execute("select to_regclass('operations')").fetchone() != (None,)
        if taken != (True,):
            found = connection.execute("select what, host, pid, started_at from operations") if has_table else None
            raise _running(*((found and found.fetchone()) or (None, None, None, None)))
        if has_table:
            connection.execute(REPLACE_ROW, [what, socket.gethostname(), os.getpid()])
        try:
            yield
        finally:
            # A restore has ended this connection, and with it the lock; the row it wrote went with the old database.
            with suppress(psycopg.OperationalError):
                if has_table:
                    connection.execute("delete from operations")
                connection.execute("select pg_advisory_unlock(%s)", [OPERATION_LOCK])


def _running(what: object, host: object, pid: object, since: object) -> Conflict:
    said = f"{what} on {host}, process {pid}, since {since}" if what else "another operation"
    return Conflict(
        f"Running now: {said}. Wait until it ends and run this again.",
        code="operation_running",
        what=what,
        host=host,
        pid=pid,
        since=str(since),
    )
