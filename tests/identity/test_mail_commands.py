"""`pharos mail` and `pharos user invite` at the machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.identity.tasks import deliver_mail
from pharos.identity.tenants import as_operator
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.errors import Conflict, Invalid, NotAllowed, NotFound

runner = CliRunner()


@pytest.fixture
def database(fresh_urls: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh installation that the commands find in the environment, with its default tenant."""
    monkeypatch.setenv("PHAROS_DATABASE_URL", fresh_urls.app)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    for unset in ("PHAROS_SMTP_URL", "PHAROS_MAIL_FROM", "SMTP_FROM"):
        monkeypatch.delenv(unset, raising=False)
    assert run("seed").exit_code == 0
    return fresh_urls.migrator


def run(*words: str, **environment: str) -> Result:
    return runner.invoke(app, list(words), env=environment)


def set_state(url: str, state: str) -> None:
    with psycopg.connect(url) as connection:
        tenant = connection.execute("select id from tenants").fetchone()
        assert tenant is not None
        connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant[0])])
        assert connection.execute("update mails set state = %s", [state]).rowcount == 1


def only_mail() -> dict[str, str]:
    (mail,) = json.loads(run("mail", "list", "--json").stdout)
    return dict(mail)


def test_an_invitation_at_the_machine_is_a_mail_whose_text_can_be_shown(database: str) -> None:
    invited = run("user", "invite", "Ada@Example.org", "--role", "engineer", "--json")
    assert invited.exit_code == 0, invited.output
    mail = only_mail()
    assert (mail["recipient"], mail["state"]) == ("ada@example.org", "queued")
    shown = json.loads(run("mail", "show", mail["id"], "--json").stdout)
    assert "http://localhost:8000/invitation?token=" in shown["text"]
    assert "/invitation?token=" in run("mail", "show", mail["id"]).stdout


def test_the_operator_gives_no_superadmin_and_no_role_that_is_none(database: str) -> None:
    assert isinstance(run("user", "invite", "a@b.example", "--role", "superadmin").exception, NotAllowed)
    assert isinstance(run("user", "invite", "a@b.example", "--role", "king").exception, Invalid)
    assert json.loads(run("mail", "list", "--json").stdout) == []


def test_failed_mails_are_found_and_sent_again(database: str) -> None:
    run("user", "invite", "ada@example.org")
    mail = only_mail()
    assert json.loads(run("mail", "list", "--state", "failed", "--json").stdout) == []
    set_state(database, "failed")
    assert [found["id"] for found in json.loads(run("mail", "list", "--state", "failed", "--json").stdout)] == [
        mail["id"]
    ]
    assert run("mail", "retry", mail["id"]).exit_code == 0
    assert only_mail()["state"] == "queued"


def test_a_mail_that_an_smtp_server_took_has_no_text_any_more(database: str) -> None:
    run("user", "invite", "ada@example.org")
    mail = only_mail()
    with psycopg.connect(database) as connection:
        connection.execute("select set_config('pharos.tenant_id', (select id::text from tenants), true)")
        connection.execute("update mails set state = 'sent', body_secret_id = null")
    assert isinstance(run("mail", "show", mail["id"]).exception, NotFound)
    assert isinstance(run("mail", "retry", mail["id"]).exception, Conflict)


def test_a_mail_in_the_outbox_is_not_said_to_be_sent(database: str, tmp_path: Path) -> None:
    said = run("user", "invite", "ada@example.org").stdout
    assert "No mail server is set" in said
    assert "pharos mail show ID" in said
    mail_id = only_mail()["id"]
    asyncio.run(send(mail_id))
    assert only_mail()["state"] == "outbox"
    listed = run("mail", "list", "--state", "sent").stdout
    assert "went to no mail server" in listed
    assert "/invitation?token=" in run("mail", "show", mail_id).stdout
    refused = run("mail", "retry", mail_id).exception
    assert isinstance(refused, Conflict)
    assert "lies in the file outbox" in refused.message
    server = {"PHAROS_SMTP_URL": "smtp://127.0.0.1:9", "PHAROS_MAIL_FROM": "pharos@example.org"}
    assert "the mail is on its way" in run("user", "invite", "bob@example.org", **server).stdout


async def send(mail_id: str) -> None:
    async with as_operator("default") as (runtime, me):
        await deliver_mail(runtime, me.tenant_id, mail_id=UUID(mail_id))


def test_what_is_not_there_is_said_with_its_kind(database: str) -> None:
    nobodys = "00000000-0000-7000-8000-000000000000"
    assert isinstance(run("mail", "show", nobodys).exception, NotFound)
    assert isinstance(run("mail", "retry", nobodys).exception, NotFound)
    assert isinstance(run("mail", "list", "--state", "lost").exception, Invalid)
    assert "There is no such mail." in run("mail", "list").stdout
