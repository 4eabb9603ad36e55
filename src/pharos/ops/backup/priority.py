"""A backup takes what people leave of the processors.

On two processors the p95 of a search was 1.8 times as long while a backup of 50,000 passages ran at everybody's
priority, and is 1.2 times as long since: reading whole tables, compressing and hashing keep both busy.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import psycopg

from pharos.infra import processes
from pharos.infra.settings import Settings

NICENESS = 10
APPEARS_SECONDS = 1.0
BACKENDS = "select pid from pg_stat_activity where application_name = 'pg_dump' and datname = current_database()"


def give_way(process: int = 0) -> None:
    """Lower the priority of a process, else of the calling thread, as `processes.give_way` does."""
    processes.give_way(process, niceness=NICENESS)


def backends_give_way(settings: Settings, connection: psycopg.Connection[Any]) -> None:
    """The same for the server's processes that serve `connection` and a pg_dump just started, where they are ours.

    Each of them leads a session. A server given by its address may be on another machine, where the numbers mean other
    processes.
    """
    if settings.database_url is not None:
        return
    deadline = time.monotonic() + APPEARS_SECONDS
    while not (found := connection.execute(BACKENDS).fetchall()) and time.monotonic() < deadline:
        connection.execute("select pg_stat_clear_snapshot()")
        time.sleep(0.02)
    for pid in (connection.info.backend_pid, *(pid for (pid,) in found)):
        with suppress(ProcessLookupError, PermissionError):  # it has ended, or somebody else runs the server
            give_way(pid)
