"""What a backup keeps busy steps back behind what people ask for."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
from tests.postgres import Server

from pharos.infra.settings import Settings
from pharos.ops.backup.priority import NICENESS, backends_give_way


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
        backends_give_way(others, reading)
        before = [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids]
        backends_give_way(ours, reading)
        after = [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids]
    assert len(set(before)) == 1
    assert after == [NICENESS, NICENESS, before[0]]
