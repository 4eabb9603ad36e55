"""Accounts and keys from the machine's command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.identity.recognise import find_by_api_key
from pharos.identity.sign_in import prove_by_password
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.errors import NotSignedIn, PharosError
from pharos.infra.settings import Settings
from pharos.runtime import open_runtime

CHIEF, PASSWORD = "chief@example.org", "four unrelated calm words"


@pytest.fixture
def database(fresh_urls: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh installation that the commands find in the environment."""
    monkeypatch.setenv("PHAROS_DATABASE_URL", fresh_urls.app)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    for variable in ("ADMIN_PASSWORD", "ADMIN_EMAIL"):
        monkeypatch.delenv(variable, raising=False)
    return fresh_urls.app


@pytest.fixture
def chief(database: str) -> str:
    run("user", "create-admin", "--email", CHIEF, ADMIN_PASSWORD=PASSWORD)
    run("user", "create-admin", "--email", "first@example.org", ADMIN_PASSWORD=PASSWORD)
    return "first@example.org"  # the second administrator: a superadmin cannot be disabled


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment)


def refusal(result: Result) -> str:
    assert isinstance(result.exception, PharosError)
    assert result.exception.exit_code != 0
    return result.exception.code


def can_sign_in(login: str, password: str = PASSWORD) -> bool:
    async def work() -> bool:
        async with open_runtime(Settings()) as runtime:
            try:
                await prove_by_password(runtime, login=login, password=password)
            except NotSignedIn:
                return False
            return True

    return asyncio.run(work())


def who_is_listed() -> dict[str, bool]:
    """Everybody by address, and whether they are shown as disabled."""
    return {person["email"]: person["disabled"] for person in json.loads(run("user", "list", "--json").stdout)}


def show(email: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(run("user", "show", email, "--json").stdout)
    return found


@pytest.mark.contract("ID-09", part="made once with a random password, which is printed once")
def test_the_first_administrator_is_made_once_with_a_random_password(database: str) -> None:
    first = run("bootstrap-admin", "--json")
    made = json.loads(first.stdout)
    assert made["password"] not in first.stderr, "what is logged goes there"
    assert (made["email"], made["username"], len(made["password"])) == ("admin@localhost", "admin", 24)
    with psycopg.connect(database) as connection:
        before = connection.execute("select * from users").fetchall()
        assert connection.execute("select is_initialized from bootstrap_state").fetchone() == (True,)
    for email in ("admin@localhost", "other@example.org"):
        again = run("user", "bootstrap-admin", "--json", ADMIN_EMAIL=email)
        assert refusal(again) == "already_initialized"
        assert again.stdout == ""
    with psycopg.connect(database) as connection:
        assert connection.execute("select * from users").fetchall() == before
    assert can_sign_in("admin", made["password"])
    person = show("admin@localhost")
    assert (person["platform_role"], person["must_change_password"]) == ("superadmin", True)
    run("tenant", "create", "harbour", "--name", "Harbour Office")
    other = json.loads(run("bootstrap-admin", "--tenant", "harbour", "--json", ADMIN_EMAIL="Chief@Example.org").stdout)
    assert (other["email"], other["username"]) == (CHIEF, None)


@pytest.mark.contract("ID-08", part="the user name is admin")
def test_the_administrator_of_the_machine_is_called_admin(database: str) -> None:
    run("user", "create-admin", ADMIN_PASSWORD=PASSWORD)
    assert can_sign_in("admin")
    assert refusal(run("user", "create-admin", "--email", CHIEF, "--username", "admin", ADMIN_PASSWORD=PASSWORD)) == (
        "username_taken"
    )
    assert refusal(run("user", "create-admin", "--email", CHIEF, "--username", "a@b", ADMIN_PASSWORD=PASSWORD)) == (
        "bad_username"
    )


@pytest.mark.contract("ID-17")
def test_an_operator_can_look_somebody_up_by_address(chief: str) -> None:
    person = show(CHIEF.upper())
    assert {"id", "email", "platform_role", "org_position", "department_id"} <= person.keys()
    assert (person["email"], person["platform_role"], person["org_position"]) == (CHIEF, "superadmin", "member")
    assert CHIEF in run("user", "show", CHIEF).stdout
    assert refusal(run("user", "show", "nobody@example.org")) == "no_such_user"


def test_somebody_is_locked_out_and_let_in_again(chief: str, database: str) -> None:
    assert "cannot sign in" in run("user", "disable", chief).stdout
    assert not can_sign_in(chief)
    assert who_is_listed() == {CHIEF: False, chief: True}
    run("user", "enable", chief)
    assert can_sign_in(chief)
    assert who_is_listed() == {CHIEF: False, chief: False}
    with psycopg.connect(database) as connection:
        connection.execute("update users set locked_until = now() + interval '1 minute'")
    assert show(chief)["locked_until"] is not None
    assert "is unlocked" in run("user", "unlock", chief).stdout
    assert "was not locked" in run("user", "unlock", chief).stdout
    assert can_sign_in(chief)
    assert json.loads(run("user", "sign-out", chief, "--json").stdout) == {"email": chief, "sessions": 0}


def test_a_superadmin_who_leaves_hands_the_role_over(chief: str, database: str) -> None:
    for refused in (("disable", CHIEF), ("set", CHIEF, "--role", "none")):
        failed = run("user", *refused)
        assert refusal(failed) == "forbidden_role"
        assert "pharos user set OTHER --role superadmin" in str(failed.exception)
    assert "can sign in" in run("user", "enable", CHIEF).stdout
    run("user", "set", chief, "--role", "none")
    assert refusal(run("user", "set", chief, "--role", "superadmin")) == "not_an_admin"
    run("user", "set", chief, "--role", "admin")
    assert "role superadmin" in run("user", "set", chief, "--role", "superadmin").stdout
    assert (show(chief)["platform_role"], show(CHIEF)["platform_role"]) == ("superadmin", "admin")
    audited = [
        entry for entry in json.loads(run("audit", "list", "--json").stdout) if "platform_role" in entry["detail"]
    ]
    assert {(one["subject"], one["detail"]["platform_role"]["new"]) for one in audited[:2]} == {
        (f"user:{show(chief)['id']}", "superadmin"),
        (f"user:{show(CHIEF)['id']}", "admin"),
    }
    events = json.loads(run("security", "list", "--type", "superadmin_changed", "--json").stdout)
    assert [(one["severity"], one["detail"]["former"]) for one in events] == [("high", show(CHIEF)["id"])]
    run("user", "disable", CHIEF)
    assert not can_sign_in(CHIEF)
    assert refusal(run("user", "set", CHIEF, "--role", "superadmin")) == "not_an_admin"


def test_a_key_ends_by_itself_unless_it_is_asked_not_to(chief: str) -> None:
    for choice in ([], ["--expires-days", "0"]):
        made = json.loads(run("apikey", "create", "--name", "a robot", "--json", *choice).stdout)
        assert (made["expires_at"] is None) == bool(choice)


@pytest.mark.contract("ID-07", part="keys are made, listed and ended at the machine")
def test_a_key_is_shown_once_and_ends(chief: str) -> None:
    made = json.loads(
        run(
            "apikey", "create", "--name", "a robot", "--scope", "read", "--user", chief, "--expires-days", "9", "--json"
        ).stdout
    )
    listed = run("apikey", "list", "--json").stdout
    assert made["key"] not in listed
    assert [(row["name"], row["scopes"], row["id"], row["acts_as"]) for row in json.loads(listed)] == [
        ("a robot", ["read"], made["id"], chief)
    ]
    assert opens(made["key"])
    assert "is revoked" in run("apikey", "revoke", "a robot").stdout
    assert not opens(made["key"])
    assert refusal(run("apikey", "revoke", "a robot")) == "no_such_api_key"
    assert refusal(run("apikey", "create", "--name", "x", "--scope", "admin")) == "bad_scope"
    for _ in range(2):
        run("apikey", "create", "--name", "twice")
    assert refusal(run("apikey", "revoke", "twice")) == "ambiguous_name"


def opens(key: str) -> bool:
    async def work() -> bool:
        async with open_runtime(Settings()) as runtime:
            try:
                await find_by_api_key(runtime, key)
            except NotSignedIn:
                return False
            return True

    return asyncio.run(work())
