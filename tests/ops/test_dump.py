"""A server is dumped with a client that understands it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pharos.infra.errors import Unavailable
from pharos.infra.postgres_place import reachable_binaries
from pharos.infra.settings import Settings
from pharos.ops.backup.dump import client_programs


def of_a_server(tmp_path: Path, url: str | None) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path, database_url=url)


@pytest.mark.contract("BK-08", part="a client of the server's own version, else of a newer one")
def test_a_server_is_dumped_with_its_own_clients_or_newer_ones(tmp_path: Path) -> None:
    ours = reachable_binaries(os.geteuid(), os.getegid()) / "bin"
    assert client_programs(of_a_server(tmp_path, None), 18) == ours
    elsewhere = of_a_server(tmp_path, "postgresql://pharos_app:x@db/pharos")
    for major in (16, 17, 18):
        assert (client_programs(elsewhere, major) / "pg_dump").exists()
    with pytest.raises(Unavailable, match="Install postgresql-client-99"):
        client_programs(elsewhere, 99)
