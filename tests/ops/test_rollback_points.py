"""What was live before a restore: listed, and removed when its time is over."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from tests.ops.installation import quiet
from tests.postgres import Server
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.settings import Settings
from pharos.ops.backup.restore_journal import Unfinished, keep_journal
from pharos.ops.backup.rollback_points import list_rollback_points, remove_old_rollback_points

NAME = f"points_{secrets.token_hex(4)}"


@pytest.fixture
def settings(database_server: Server, tmp_path: Path) -> Settings:
    """Of an installation whose live database matters to nobody here."""
    address = database_server.admin_url.rpartition("@")[2].partition("/")[0]
    return Settings(
        _env_file=None,
        data_dir=tmp_path,
        database_url=f"postgresql://{NAME}_app:of-the-test@{address}/{NAME}",
        database_admin_url=database_server.admin_url,
    )


def test_rollback_points_go_when_their_time_is_over(
    database_server: Server, settings: Settings, tmp_path: Path
) -> None:
    over = {f"{NAME}_{word}_20200101000000" for word in ("before", "failed")}
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        (tmp_path / "run").mkdir()
        for name in over:
            connection.execute(f"create database {name}")
        assert not [point for point in list_rollback_points(settings) if "failed" in point.database]
        (at_work, *_) = over
        with keep_journal(settings, Unfinished("undo", "", at_work, replaces=True, ran=None), tell=quiet) as journal:
            journal.step("secrets", "Opening every secret")
            assert set(remove_old_rollback_points(settings)) == over - {at_work}, "an undo wants to swap to it"
        assert remove_old_rollback_points(settings) == [at_work]
        left = connection.execute("select 1 from pg_database where datname = any(%s)", [list(over)]).fetchall()
    assert left == []


def test_what_is_kept_is_listed_with_its_end_and_forgotten_by_its_name_alone(
    database_server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, failed, foreign = (f"{NAME}_{word}_21200101000000" for word in ("before", "failed", "other"))
    monkeypatch.setenv("PHAROS_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("PHAROS_DATABASE_URL", str(settings.database_url))
    monkeypatch.setenv("PHAROS_DATABASE_ADMIN_URL", database_server.admin_url)

    def pharos(*words: str, typed: str = "") -> Result:
        return CliRunner().invoke(app, ["restore", *words], input=typed)

    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        for name in (before, failed, foreign):
            connection.execute(f"create database {name}")
        said = pharos("--list").stdout
        assert re.search(
            rf"Rollback point {before} \([\d.]+ MB\), kept until 2120-01-08 00:00 UTC: what was live", said
        )
        assert re.search(rf"Left by a failed restore: {failed} \([\d.]+ MB\), kept until 2120-01-08", said)
        assert "`pharos restore --undo`" in said
        assert foreign not in said
        assert isinstance(pharos("--forget", foreign, "--yes").exception, NotFound)
        assert isinstance(pharos("--forget", "postgres", "--yes").exception, NotFound)
        assert isinstance(pharos("--forget", before, typed=f"{NAME}\n").exception, Invalid)
        (settings.data_dir / "run").mkdir(exist_ok=True)
        with keep_journal(settings, Unfinished("undo", "", before, replaces=True, ran=None), tell=quiet) as journal:
            journal.step("secrets", "Opening every secret")
            assert isinstance(pharos("--forget", before, "--yes").exception, Conflict), "an undo wants to swap to it"
        unasked = pharos("--forget", before, "--json", typed=f"{before}\n")
        assert (type(unasked.exception), unasked.stdout) == (Invalid, ""), "a question is no JSON"
        assert databases(connection) == {before, failed, foreign}
        assert f"Removed {before}" in pharos("--forget", before, typed=f"{before}\n").stdout
        assert f"Removed {failed}" in pharos("--forget", failed, "--yes").stdout
        assert databases(connection) == {foreign}
        connection.execute(f"drop database {foreign}")


def databases(connection: psycopg.Connection[Any]) -> set[str]:
    names = (row[0] for row in connection.execute("select datname from pg_database"))
    return {name for name in names if name.startswith(f"{NAME}_")}


@pytest.fixture
def limited(database_server: Server, settings: Settings) -> Iterator[Settings]:
    """With an administrator who may not look into a database that lies on the same server."""
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        connection.execute(f"create role {NAME}_limited login password 'of-the-test'")
        connection.execute(f"create database {NAME}_closed")
        connection.execute(f"revoke connect on database {NAME}_closed from public")
        address = database_server.admin_url.rpartition("@")[2]
        url = SecretStr(f"postgresql://{NAME}_limited:of-the-test@{address}")
        yield settings.model_copy(update={"database_admin_url": url})
        connection.execute(f"drop database {NAME}_closed")
        connection.execute(f"drop role {NAME}_limited")


def test_rollback_points_are_listed_beside_databases_that_nobody_may_look_into(limited: Settings) -> None:
    assert list_rollback_points(limited) == []
