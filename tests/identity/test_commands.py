"""People and setup from the machine's command line."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.errors import PharosError


@pytest.fixture
def database(fresh_urls: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh installation that the commands find in the environment."""
    monkeypatch.setenv("PHAROS_DATABASE_URL", fresh_urls.app)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("ADMIN_PASSWORD", raising=False)
    return fresh_urls.app


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment)


def people(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("select email from users order by 1").fetchall()


@pytest.mark.contract("AC-11")
def test_seed_can_run_twice(database: str) -> None:
    first, second = run("seed", "--json"), run("seed", "--json")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert json.loads(first.stdout) == json.loads(second.stdout)


@pytest.mark.contract("ID-02", part="`pharos setup-link` prints a new one-time address")
def test_each_setup_link_is_new_and_leads_to_the_setup_page(database: str) -> None:
    links = [run("setup-link").stdout.strip() for _ in range(2)]
    assert all(link.startswith("http://localhost:8000/onboarding/first-login?token=") for link in links)
    assert links[0] != links[1]


@pytest.mark.contract("ID-08")
def test_an_administrator_needs_a_password_in_the_environment(database: str) -> None:
    refused = run("user", "create-admin")
    assert isinstance(refused.exception, PharosError)
    assert refused.exception.exit_code != 0
    assert "ADMIN_PASSWORD" in refused.exception.message
    assert people(database) == []


@pytest.mark.contract("ID-08")
def test_an_administrator_is_made_with_the_promised_defaults(database: str) -> None:
    made = run("user", "create-admin", "--json", ADMIN_PASSWORD="a long enough password")
    assert json.loads(made.stdout) == {"email": "admin@example.com", "created": True}
    listed = json.loads(run("user", "list", "--json").stdout)
    assert [(person["email"], person["name"], person["platform_role"]) for person in listed] == [
        ("admin@example.com", "admin", "superadmin")
    ]
    again = run("user", "create-admin", ADMIN_PASSWORD="another long password")
    assert "password of admin@example.com is changed" in again.stdout
    assert people(database) == [("admin@example.com",)]
    run("user", "create-admin", "--email", "second@example.com", ADMIN_PASSWORD="another long password")
    roles = {person["email"]: person["platform_role"] for person in json.loads(run("user", "list", "--json").stdout)}
    assert roles == {"admin@example.com": "superadmin", "second@example.com": "admin"}
