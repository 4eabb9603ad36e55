"""What a person at the machine can meet ends a command with one sentence and the exit code of its kind."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from tests.postgres import Server
from typer.main import get_group

from pharos.cli import COMMANDS, as_pharos_error, main
from pharos.infra import logs
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.infra.ids import new_id

INVALID, NOT_ALLOWED, CONFLICT, UNAVAILABLE = 2, 4, 5, 7


class Ended:
    """A command that was run in this process: its exit code and what it said on stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.chdir(place)
        monkeypatch.setenv("PHAROS_DATA_DIR", str(place / "data"))

    def __call__(self, *words: str, **settings: str) -> tuple[object, str]:
        for name, value in settings.items():
            self.monkeypatch.setenv(name, value)
        self.monkeypatch.setattr(sys, "argv", ["pharos", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, self.capsys.readouterr().err


@pytest.fixture
def pharos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ended:
    monkeypatch.setattr(logs, "_at_first_event", None)  # what a command sets for its process ends with the test
    return Ended(monkeypatch, capsys, tmp_path)


@pytest.mark.parametrize("command", [("up",), ("status",), ("seed",), ("config", "list")])
def test_a_setting_that_cannot_be_read_is_named_by_every_command(pharos: Ended, command: tuple[str, ...]) -> None:
    code, said = pharos(*command, PHAROS_PORT="noon")
    assert code == INVALID
    assert "PHAROS_PORT cannot be read: it is a whole number from 1 to 65535." in said
    assert len(said.splitlines()) == 1


def test_an_embedded_database_that_nobody_started_is_said_to_be_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = psycopg.OperationalError("connection refused")
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("PHAROS_DATABASE_URL", raising=False)
    stopped = as_pharos_error(gone)
    assert stopped is not None
    assert stopped.message == f"Pharos is not running on {tmp_path}. Start it with `pharos up`."
    monkeypatch.setenv("PHAROS_DATABASE_URL", "postgresql://pharos_app@127.0.0.1/pharos")
    assert "`pharos doctor db` says why" in str(as_pharos_error(gone))


@pytest.mark.parametrize("command", [("db", "check"), ("db", "init"), ("seed",), ("migrate", "--plan")])
def test_a_server_that_cannot_be_reached_leads_to_the_doctor(pharos: Ended, command: tuple[str, ...]) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    code, said = pharos(
        *command,
        PHAROS_DATABASE_URL=f"postgresql://pharos_app:word@{nowhere}/pharos",
        PHAROS_DATABASE_ADMIN_URL=f"postgresql://postgres:word@{nowhere}/postgres",
    )
    assert code == UNAVAILABLE
    assert "`pharos doctor db` says why" in said
    assert "word" not in said


def test_a_database_without_tables_leads_to_the_migration(
    pharos: Ended, database_server: Server, database_urls: DatabaseUrls
) -> None:
    name = f"empty_{new_id().hex[-12:]}"
    with psycopg.connect(database_server.admin_url, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    try:
        code, said = pharos("seed", PHAROS_DATABASE_URL=database_server.urls(name).app)
    finally:
        database_server.drop(name)
    assert code == CONFLICT
    assert "`pharos migrate --apply`" in said


def test_an_administrator_without_rights_is_told_what_was_refused(pharos: Ended, database_urls: DatabaseUrls) -> None:
    code, said = pharos(
        "db",
        "init",
        PHAROS_DATABASE_URL=database_urls.app.replace("pharos_template_app", "other_app").rpartition("/")[0] + "/other",
        PHAROS_DATABASE_ADMIN_URL=database_urls.monitor,
    )
    assert code == NOT_ALLOWED
    assert "The database refuses: permission denied" in said


def test_the_table_of_commands_is_what_the_modules_hold() -> None:
    for module, names in COMMANDS.items():
        held = set(get_group(importlib.import_module(module).app).commands)
        assert held == set(names), module


@pytest.mark.parametrize(
    ("commands", "left_out"),
    [
        ("pharos.ops.commands", ("sqlalchemy", "numpy", "alembic")),
        ("pharos.identity.account_commands, pharos.providers.catalog", ("numpy", "httpx", "aiosmtplib", "jwt")),
    ],
)
def test_a_command_does_not_load_what_it_does_not_use(commands: str, left_out: tuple[str, ...]) -> None:
    asked = f"import sys, pharos.cli, {commands}; sys.exit(bool(set({left_out!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
