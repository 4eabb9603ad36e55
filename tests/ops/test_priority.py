"""What a backup keeps busy steps back behind what people ask for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.postgres import Server

from pharos.infra.processes import spawn
from pharos.infra.settings import Settings
from pharos.ops.backup.priority import NICENESS, backends_give_way, give_way

GROUPS = Path("/proc/self/autogroup").exists()
"""Whether this kernel divides the processors among sessions before niceness counts."""
STEPPED_BACK = (NICENESS, NICENESS if GROUPS else None)


def niceness(pid: int) -> tuple[int, int | None]:
    """Of a process, and of its session among the others; None where it is in none, as what came with the system."""
    group = Path(f"/proc/{pid}/autogroup").read_text().split() if GROUPS else []
    return os.getpriority(os.PRIO_PROCESS, pid), int(group[-1]) if group else None


@contextmanager
def sleeper() -> Iterator[int]:
    """A program of ours in a session of its own."""
    process = spawn(["sleep", "60"], death_signal=signal.SIGKILL, output=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only the server's own user, and root, may ask this of it")
def test_our_own_servers_processes_step_back_and_those_of_others_are_left_alone(
    database_server: Server, tmp_path: Path
) -> None:
    ours = Settings(_env_file=None, data_dir=tmp_path)
    others = Settings(_env_file=None, data_dir=tmp_path, database_url="postgresql://house_app:x@elsewhere/house")
    with (
        psycopg.connect(database_server.admin_url) as reading,
        psycopg.connect(database_server.admin_url, application_name="pg_dump") as dumping,
        psycopg.connect(database_server.admin_url) as of_people,
    ):
        pids = [connection.info.backend_pid for connection in (reading, dumping, of_people)]
        backends_give_way(others, reading, is_dumping=lambda: True)
        before = [niceness(pid) for pid in pids]
        backends_give_way(ours, reading, is_dumping=lambda: True)
        after = [niceness(pid) for pid in pids]
    assert len(set(before)) == 1
    assert after == [STEPPED_BACK, STEPPED_BACK, before[0]]


def test_a_program_steps_back_with_its_whole_session_and_not_with_somebody_elses() -> None:
    with sleeper() as leader:
        assert niceness(leader) != STEPPED_BACK
        give_way(leader)
        assert niceness(leader) == STEPPED_BACK
    with subprocess.Popen(["sleep", "60"]) as beside_us:
        try:
            _, ours = niceness(os.getpid())
            give_way(beside_us.pid)
            assert niceness(beside_us.pid) == (NICENESS, ours), "this session has other work"
        finally:
            beside_us.kill()
