"""`pharos doctor` and `pharos config` as commands: what is wrong, what to do about it, and the exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psycopg
import pytest
from tests.postgres import Server
from tests.redis_server import RedisServer, needs_redis

from pharos import cli
from pharos.infra import migrate
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.ops import doctor_commands

UNAVAILABLE, INVALID = 7, 2


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def pharos(place: Path, *words: str, **settings: str) -> Done:
    """A `pharos` command in a directory of its own, with these settings and nobody else's, in this process."""
    environment = {"PATH": os.environ["PATH"], "PHAROS_DATA_DIR": str(place / "data"), **settings}
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["pharos", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def finding(done: Done) -> tuple[str, str, str]:
    (found,) = json.loads(done.stdout)
    return found["check"], found["result"], found["cause"]


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.mark.contract("DE-16")
def test_a_variable_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    done = pharos(tmp_path, "doctor", "variables", "--json", PHAROS_PORT="many")
    assert done.returncode == UNAVAILABLE
    check, result, cause = finding(done)
    assert (check, result) == ("variables", "FAIL")
    assert "port cannot be read" in cause.lower()
    assert "pharos.env" in cause
    done = pharos(tmp_path, "doctor", "variables", "--json", PHAROS_SECRET_KEY="short")
    assert finding(done)[1] == "FAIL"
    assert "PHAROS_SECRET_KEY must be at least 32 bytes" in finding(done)[2]
    assert "`pharos secrets generate jwt`" in finding(done)[2]


@pytest.mark.contract("DE-16")
def test_a_database_that_is_not_there_is_named_with_the_command_that_starts_it(tmp_path: Path) -> None:
    done = pharos(tmp_path, "doctor", "db", "--json")
    assert done.returncode == UNAVAILABLE
    assert finding(done)[1] == "FAIL"
    assert finding(done)[2].endswith("Start Pharos: pharos up")


@pytest.mark.slow
@pytest.mark.contract("DE-16")
def test_pending_migrations_are_named_with_the_command_that_applies_them(
    database_server: Server, tmp_path: Path
) -> None:
    name = f"doctor_{secrets.token_hex(6)}"
    urls = database_server.clone(name)
    try:
        migrate.downgrade(urls.migrator, owner=urls.owner_role, revision="base")
        done = pharos(tmp_path, "doctor", "migrations", "--json", PHAROS_DATABASE_URL=urls.app)
        assert done.returncode == UNAVAILABLE
        assert finding(done)[1] == "FAIL"
        assert finding(done)[2].endswith("Run: pharos migrate --apply")
        migrate.upgrade(urls.migrator, owner=urls.owner_role)
        done = pharos(tmp_path, "doctor", "migrations", "--json", PHAROS_DATABASE_URL=urls.app)
        assert (done.returncode, finding(done)[1]) == (0, "PASS")
    finally:
        database_server.drop(name)


@pytest.mark.contract("DE-16")
def test_a_busy_port_is_named_with_its_holder_and_a_free_one(tmp_path: Path, listener: int) -> None:
    done = pharos(tmp_path, "doctor", "port", "--json", PHAROS_PORT=str(listener))
    assert done.returncode == UNAVAILABLE
    cause = finding(done)[2]
    assert f"Port {listener} is in use by process {os.getpid()}" in cause
    assert "pharos up" in cause


@pytest.mark.contract("DE-17")
def test_a_refusing_database_leads_to_the_questions_to_ask(tmp_path: Path, database_urls: DatabaseUrls) -> None:
    wrong_port = f"postgresql://pharos_app:x@127.0.0.1:{free_port()}/pharos"
    wrong_host = "postgresql://pharos_app:x@no-such-host.invalid/pharos"
    wrong_word = database_urls.app.replace("app-of-the-tests", "guess")
    for url in (wrong_port, wrong_host, wrong_word):
        done = pharos(tmp_path, "doctor", "db", "--json", PHAROS_DATABASE_URL=url)
        assert done.returncode == UNAVAILABLE
        check, result, cause = finding(done)
        assert (check, result) == ("db", "FAIL")
        assert "Is it running, is the host name right, can this machine reach it?" in cause
        assert "guess" not in cause
    done = pharos(tmp_path, "doctor", "db", "--json", PHAROS_DATABASE_URL=database_urls.app)
    assert (done.returncode, finding(done)[2]) == (0, "Postgres 18 answers")


def test_redis_is_looked_at_where_one_is_named_and_its_loss_is_no_failure(tmp_path: Path) -> None:
    assert finding(pharos(tmp_path, "doctor", "redis", "--json"))[1:] == (
        "PASS",
        "none is configured: the database counts rate limits",
    )
    done = pharos(tmp_path, "doctor", "redis", "--json", PHAROS_REDIS_URL=f"redis://:hidden@127.0.0.1:{free_port()}/0")
    assert (done.returncode, finding(done)[1]) == (0, "WARN")
    assert "mend PHAROS_REDIS_URL, or unset it" in finding(done)[2]
    assert "hidden" not in done.stdout
    for url in ("http://:hidden@cache:6379", "redis://:hidden@cache:many/0", "cache:6379", "redis://"):
        refused = pharos(tmp_path, "doctor", "variables", "--json", PHAROS_REDIS_URL=url)
        assert finding(refused)[1] == "FAIL"
        assert "a Redis address is redis://host:port/0" in finding(refused)[2]
        assert "hidden" not in refused.stdout


@needs_redis
def test_redis_that_counts_passes(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        done = pharos(tmp_path, "doctor", "redis", "--json", PHAROS_REDIS_URL=server.url)
    finally:
        server.kill()
    assert finding(done)[1:] == ("PASS", "Redis counts rate limits")


@pytest.mark.contract("ID-08", part="doctor warns of the placeholder address")
def test_an_account_with_the_placeholder_address_is_a_warning_and_no_failure(
    database_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"doctor_{secrets.token_hex(6)}"
    urls = database_server.clone(name)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PHAROS_DATABASE_URL", urls.app)
    try:
        (found,) = doctor_commands.examine(["people"])
        assert (found.result, found.check) == ("PASS", "people")
        with psycopg.connect(urls.app) as connection:
            connection.execute(
                "insert into users (id, email, name) values (gen_random_uuid(), %s, 'admin')",
                [doctor_commands.PLACEHOLDER_EMAIL],
            )
        done = pharos(tmp_path, "doctor", "people", "--json", PHAROS_DATABASE_URL=urls.app)
        assert (done.returncode, finding(done)[1]) == (0, "WARN")
        assert "pharos user create-admin --email" in finding(done)[2]
    finally:
        database_server.drop(name)


def test_mail_that_goes_nowhere_is_a_warning_and_no_failure(tmp_path: Path) -> None:
    for variables, words in (
        ({}, "No mail server is set"),
        ({"PHAROS_SMTP_URL": "smtp://127.0.0.1:9"}, "PHAROS_MAIL_FROM is missing"),
        ({"PHAROS_SMTP_URL": "smtp://127.0.0.1:9", "PHAROS_MAIL_FROM": "p@example.org"}, "does not answer"),
    ):
        done = pharos(tmp_path, "doctor", "mail", "--json", **variables)
        assert (done.returncode, finding(done)[1]) == (0, "WARN")
        assert words in finding(done)[2]


def test_what_rests_on_a_failed_check_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    results = [found.result for found in doctor_commands.examine(["db", "migrations", "fence"])]
    assert results == ["FAIL", "SKIP", "SKIP"]


def test_a_check_that_does_not_exist_is_refused_with_the_list(tmp_path: Path) -> None:
    done = pharos(tmp_path, "doctor", "weather")
    assert done.returncode == INVALID
    assert "The checks are variables, db" in done.stderr


@pytest.mark.contract("DE-18", part="set, list and check of pharos.env")
def test_a_setting_is_checked_before_it_is_written_and_lasts(tmp_path: Path) -> None:
    env_file = tmp_path / "pharos.env"
    env_file.write_text("# ours\nPHAROS_PORT=8001\nPHAROS_LOG_LEVEL=DEBUG\n")
    refused = pharos(tmp_path, "config", "set", "PHAROS_PORT", "many")
    assert (refused.returncode, env_file.read_text().count("8001")) == (INVALID, 1)
    assert "PHAROS_PORT cannot be 'many'" in refused.stderr
    assert pharos(tmp_path, "config", "set", "PHAROS_PROT", "1").returncode == INVALID
    assert pharos(tmp_path, "config", "set", "PHAROS_PORT", "8123", "--dry-run").returncode == 0
    assert "8001" in env_file.read_text()
    assert "next start" in pharos(tmp_path, "config", "set", "PHAROS_PORT", "8123").stdout
    assert env_file.read_text() == "# ours\nPHAROS_LOG_LEVEL=DEBUG\nPHAROS_PORT=8123\n"
    assert (env_file.stat().st_mode & 0o777) == 0o600
    assert json.loads(pharos(tmp_path, "config", "list", "--json").stdout)["PHAROS_PORT"] == "8123"


@pytest.mark.contract("DE-18", part="secrets are not shown, misspelt variables are named")
def test_the_list_keeps_secrets_and_the_check_names_what_has_no_effect(tmp_path: Path) -> None:
    settings = {
        "PHAROS_SECRET_KEY": "k" * 40,
        "PHAROS_DATABASE_URL": "postgresql://pharos_app:hidden@db.example/pharos",
        "PHAROS_PROT": "1",
    }
    listed = pharos(tmp_path, "config", "list", "--json", **settings)
    assert json.loads(listed.stdout)["PHAROS_SECRET_KEY"] == "(set)"
    assert "hidden" not in listed.stdout
    assert "k" * 40 not in listed.stdout
    checked = pharos(tmp_path, "config", "check", **settings)
    assert checked.returncode == 0
    assert "PHAROS_PROT is no setting and has no effect" in checked.stdout
    (tmp_path / "pharos.env").write_text("PHAROS_PORT=many\n")
    broken = pharos(tmp_path, "config", "check")
    assert broken.returncode == INVALID
    assert "port cannot be read" in broken.stderr.lower()
