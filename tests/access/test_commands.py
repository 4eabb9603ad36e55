"""Access and organisations from the machine's command line."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import Server
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra.errors import PharosError

PASSWORD = {"ADMIN_PASSWORD": "four unrelated calm words"}
CHIEF, READER = "chief@example.org", "reader@example.org"


@pytest.fixture
def database(database_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh installation that the commands find in the environment."""
    name = f"test_{secrets.token_hex(6)}"
    monkeypatch.setenv("PHAROS_DATABASE_URL", database_server.clone(name).app)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    yield
    database_server.drop(name)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment)


def done(*arguments: str, **environment: str) -> Any:
    """What a command prints as JSON; it must end well."""
    result = run(*arguments, "--json", **environment)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    error = run(*arguments).exception
    assert isinstance(error, PharosError)
    return error.code


@pytest.mark.slow
@pytest.mark.contract("AC-07", part="one command explains a tier, rung by rung")
@pytest.mark.usefixtures("database")
def test_access_is_given_explained_and_taken_back_by_commands(tmp_path: Path) -> None:
    for email in (CHIEF, READER):
        done("user", "create-admin", "--email", email, **PASSWORD)
    placed = done("user", "set", READER, "--role", "none")
    assert (placed["platform_role"], placed["org_position"]) == ("none", "member")
    (tmp_path / "vault.txt").write_text("The vault opens at noon.")
    done("ingest", str(tmp_path / "vault.txt"), "--project", "Ledger")
    done("group", "create", "Auditors")
    done("group", "add", "Auditors", READER)
    done("access", "grant", "Ledger", "--group", "Auditors", "--tier", "edit", "--until", "2099-01-01")
    explained = done("access", "explain", READER, "Ledger")
    assert (explained["tier"], explained["source"]) == ("edit", "group")
    assert [rung["source"] for rung in explained["rungs"] if rung["decides"]] == ["group"]
    who = {one["email"]: (one["tier"], one["source"]) for one in done("access", "who", "Ledger")}
    assert who == {CHIEF: ("full", "platform"), READER: ("edit", "group")}
    assert [(one["name"], one["tier"]) for one in done("access", "what", READER)] == [("Ledger", "edit")]
    assert done("group", "rename", "Auditors", "Inspectors")["group"] == "Inspectors"
    assert done("access", "explain", READER, "Ledger")["source"] == "group"
    done("access", "revoke", "Ledger", "--group", "Inspectors")
    assert done("access", "explain", READER, "Ledger")["source"] == "public"
    assert refused("access", "revoke", "Ledger", "--group", "Inspectors") == "no_such_grant"
    assert refused("access", "grant", "Ledger") == "bad_grantee"
    assert refused("access", "grant", "Ledger", "--user", READER, "--tier", "own") == "bad_tier"
    assert refused("access", "explain", "nobody@example.org", "Ledger") == "no_such_user"


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_two_tenants_live_side_by_side_and_share_a_person() -> None:
    done("seed")
    done("tenant", "create", "harbour", "--name", "Harbour Office")
    done("user", "create-admin", "--email", CHIEF, "--tenant", "harbour", **PASSWORD)
    assert refused("tenant", "create", "harbour", "--name", "Again") == "tenant_exists"
    assert refused("tenant", "create", "No slug", "--name", "X") == "bad_slug"
    assert [one["slug"] for one in done("tenant", "list")] == ["default", "harbour"]
    assert [done("tenant", "show", slug)["people"] for slug in ("default", "harbour")] == [0, 1]
    assert [done("tenant", "add-person", "default", CHIEF)["added"] for _ in range(2)] == [True, False]
    done("tenant", "create", "quay", "--name", "Quay")
    again = run("user", "create-admin", "--email", CHIEF, "--tenant", "quay", **PASSWORD)
    assert f"`pharos tenant add-person quay {CHIEF}`" in str(again.exception)
    assert f"`pharos user set {CHIEF} --role admin --tenant quay`" in str(again.exception)
    done("tenant", "add-person", "quay", CHIEF)
    for role in ("admin", "superadmin"):
        done("user", "set", CHIEF, "--tenant", "quay", "--role", role)
    assert done("user", "list", "--tenant", "quay")[0]["platform_role"] == "superadmin"
    roles = [done("user", "list", "--tenant", slug)[0]["platform_role"] for slug in ("default", "harbour")]
    assert roles == ["none", "superadmin"]
    assert done("tenant", "rename", "harbour", "Harbour and Quay") == {"tenant": "harbour", "name": "Harbour and Quay"}
    assert done("tenant", "show", "harbour")["name"] == "Harbour and Quay"
    department = done("department", "create", "Quay", "--tenant", "harbour")
    assert [one["id"] for one in done("department", "list", "--tenant", "harbour")] == [department["id"]]
    assert refused("department", "rename", "Quay", "   ", "--tenant", "harbour") == "bad_name"
    assert done("department", "rename", "Quay", "Dock", "--tenant", "harbour")["department"] == "Dock"
    assert [one["name"] for one in done("department", "list", "--tenant", "harbour")] == ["Dock"]
    assert done("department", "list") == []
    assert refused("group", "create", "Crew", "--department", "Quay") == "no_such_department"
    assert refused("user", "set", CHIEF, "--role", "superadmin") == "not_an_admin"
