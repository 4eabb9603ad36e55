"""A backup takes what people leave of the processors.

On two processors the p95 of a search was 1.8 times as long while a backup of 50,000 passages ran at everybody's
priority, and is 1.2 times as long since: reading whole tables, compressing and hashing keep both busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from pharos.infra.settings import Settings

NICENESS = 10
TRIES, TRY_AGAIN_SECONDS = 3, 0.1
APPEARS_SECONDS = 30.0
BACKENDS = "select pid from pg_stat_activity where application_name = 'pg_dump' and datname = current_database()"


def give_way(process: int = 0) -> None:
    """Lower the priority of a process, of the calling thread for 0; what it starts from then on inherits it.

    Linux may first divide the processors evenly among sessions (sched(7), autogroup): then niceness counts inside one
    only. So where the process leads a session, which is its own, that session gets the same niceness; one that begins
    in it does not, as each process of a Postgres server begins one.
    """
    os.setpriority(os.PRIO_PROCESS, process, NICENESS)
    leader = process or os.getpid()
    if os.getsid(leader) != leader:
        return  # a terminal's session, with other work of whoever sits there
    for _ in range(TRIES):
        try:
            Path(f"/proc/{leader}/autogroup").write_text(str(NICENESS))
        except BlockingIOError:  # of all users but root, the kernel hears one each tenth of a second
            time.sleep(TRY_AGAIN_SECONDS)
        except OSError:
            return  # a kernel without such groups, a read-only /proc, or it has ended
        else:
            return


def backends_give_way(
    settings: Settings, connection: psycopg.Connection[Any], *, is_dumping: Callable[[], bool]
) -> None:
    """The same for the server's processes that serve `connection` and a pg_dump just started, where they are ours.

    Each of them leads a session. That of pg_dump is waited for while `is_dumping`: it begins late where others are
    busy, for it has stepped back itself. A server given by its address may be on another machine, where the numbers
    mean other processes.
    """
    if settings.database_url is not None:
        return
    _give_way_if_ours(connection.info.backend_pid)
    deadline = time.monotonic() + APPEARS_SECONDS
    while not (found := connection.execute(BACKENDS).fetchall()) and is_dumping() and time.monotonic() < deadline:
        connection.execute("select pg_stat_clear_snapshot()")
        time.sleep(0.02)
    for (pid,) in found:
        _give_way_if_ours(pid)


def _give_way_if_ours(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or somebody else runs the server
        give_way(pid)
