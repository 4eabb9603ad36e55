"""The audit log: nobody writes over it, its seals tell what the owner of the database changed, and it can be asked."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import event, text
from sqlalchemy.exc import ProgrammingError
from tests.make import MadeTenant, make_group
from typer.testing import CliRunner, Result

from pharos import worker
from pharos.cli import app
from pharos.identity.audit import record_audit
from pharos.identity.audit_seals import ChainReport, Head, seal_logs, verify_audit
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.db import Database
from pharos.infra.errors import Conflict
from pharos.infra.ids import new_id
from pharos.runtime import Runtime


async def write_entries(runtime: Runtime, principal: Principal, *actions: str) -> None:
    for action in actions:
        async with runtime.db.transaction(principal.tenant_id) as session:
            await record_audit(session, principal, action=action, subject="thing:1", size=1.5, name="Größe", of=None)


async def seal(runtime: Runtime, tenant: MadeTenant) -> int:
    async with runtime.db.transaction(tenant.id) as session:
        return await seal_logs(session, tenant.id)


async def verify(runtime: Runtime, tenant: MadeTenant, *, noted: Head | None = None) -> ChainReport:
    async with runtime.db.transaction(tenant.id) as session:
        return await verify_audit(session, noted=noted)


def as_owner(urls: DatabaseUrls, tenant: MadeTenant, *statements: str) -> None:
    """What somebody who owns the database can do."""
    with psycopg.connect(urls.migrator) as connection:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(urls.owner_role)))
        connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant.id)])
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
async def sealed(runtime: Runtime, tenant: MadeTenant) -> MadeTenant:
    """A tenant with five sealed entries, "thing.a" to "thing.e"."""
    await write_entries(runtime, tenant.admin, "thing.a", "thing.b", "thing.c", "thing.d", "thing.e")
    assert await seal(runtime, tenant) >= 5  # a client that signed in left an entry too
    return tenant


@pytest.mark.contract("AU-01", part="append-only for the app role")
@pytest.mark.parametrize("table", ["audit_log", "audit_seals", "security_events"])
@pytest.mark.parametrize("verb", ["update {} set tenant_id = tenant_id", "delete from {}", "truncate {}"])
async def test_the_app_can_add_to_the_records_and_nothing_else(
    runtime: Runtime, tenant: MadeTenant, table: str, verb: str
) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        async with runtime.db.transaction(tenant.id) as session:
            await session.execute(text(verb.format(table)))


async def test_an_untouched_chain_holds_and_grows(runtime: Runtime, sealed: MadeTenant) -> None:
    before = await verify(runtime, sealed)
    assert (before.sealed, before.waiting, before.late, before.fault) == (5, 0, 0, None)
    await write_entries(runtime, sealed.admin, "thing.f")
    assert (await verify(runtime, sealed)).waiting == 1
    assert [await seal(runtime, sealed), await seal(runtime, sealed)] == [1, 0]
    after = await verify(runtime, sealed, noted=before.head)
    assert (after.sealed, after.waiting, after.fault) == (6, 0, None)
    assert after.head != before.head


@pytest.mark.contract("AU-01", part="hash chain: what was altered or removed is found and named")
@pytest.mark.parametrize(
    ("breach", "said"),
    [
        ("update audit_log set actor = 'somebody else' where action = 'thing.c'", "thing.c.* was altered"),
        ("update audit_log set detail = '{}' where action = 'thing.c'", "thing.c.* was altered"),
        ("update audit_log set at = at - interval '1 microsecond' where action = 'thing.c'", "thing.c.* was altered"),
        ("delete from audit_log where action = 'thing.c'", "of seal 3 was removed"),
        ("delete from audit_seals where number = 3", "Seal 3 is missing"),
        ("update audit_seals set hash = sha256('x') where number = 3", "thing.c.* was altered"),
        ("delete from audit_seals where number = 1", "Seal 1 is missing"),
    ],
)
async def test_a_breach_is_found_and_the_first_bad_entry_named(
    runtime: Runtime, database_urls: DatabaseUrls, sealed: MadeTenant, breach: str, said: str
) -> None:
    async with runtime.db.transaction(sealed.id) as session:
        query = text("select id from audit_log where action = 'thing.c'")
        bad_entry = (await session.execute(query)).scalar_one()
    as_owner(database_urls, sealed, breach)
    found = await verify(runtime, sealed)
    assert re.search(said, found.fault or "")
    if "delete from audit_seals" not in breach:
        assert (found.bad_entry, found.sealed) == (bad_entry, 2)


@pytest.mark.contract("AU-01", part="hash chain: security events too")
@pytest.mark.parametrize(
    ("breach", "said"),
    [
        ("update security_events set severity = 'low' where subject = 'c'", "Security event .* was altered"),
        ("update security_events set created_at = created_at - interval '1 day' where subject = 'c'", "was altered"),
        ("delete from security_events where subject = 'c'", "Security event .* was removed"),
        ("update audit_seals set log = 'audit' where log = 'security'", "of seal 6 was removed"),
    ],
)
async def test_security_events_are_sealed_in_the_same_chain(
    runtime: Runtime, database_urls: DatabaseUrls, sealed: MadeTenant, breach: str, said: str
) -> None:
    for subject in "bcd":
        async with runtime.db.transaction(sealed.id) as session:
            await record_security_event(
                session, sealed.id, event_type="token_reuse_detected", severity="critical", subject=subject
            )
    await write_entries(runtime, sealed.admin, "thing.f")
    assert (await verify(runtime, sealed)).waiting == 4
    assert [await seal(runtime, sealed), await seal(runtime, sealed)] == [4, 0]
    whole = await verify(runtime, sealed)
    assert (whole.sealed, whole.waiting, whole.fault) == (9, 0, None)
    as_owner(database_urls, sealed, breach)
    found = await verify(runtime, sealed)
    assert re.search(said, found.fault or "")
    assert found.sealed == (5 if "audit_seals" in breach else 6)


async def test_for_a_tenant_to_whom_nothing_happened_one_statement_is_enough(
    runtime: Runtime, sealed: MadeTenant
) -> None:
    asked: list[str] = []
    engine = runtime.db.engine.sync_engine

    def note(*values: Any) -> None:
        asked.append(values[2])

    event.listen(engine, "before_cursor_execute", note)
    await seal(runtime, sealed)
    event.remove(engine, "before_cursor_execute", note)
    assert len([query for query in asked if "audit_seals" in query]) == 1


async def test_only_a_noted_head_shows_that_the_newest_entries_went_with_their_seals(
    runtime: Runtime, database_urls: DatabaseUrls, sealed: MadeTenant
) -> None:
    noted = (await verify(runtime, sealed)).head
    last = "select entry_id from audit_seals where number = 5"
    as_owner(
        database_urls,
        sealed,
        f"delete from audit_log where id = ({last})",
        "delete from audit_seals where number = 5",
    )
    assert (await verify(runtime, sealed)).fault is None
    assert "newest entries were removed" in str((await verify(runtime, sealed, noted=noted)).fault)
    await write_entries(runtime, sealed.admin, "thing.instead")
    await seal(runtime, sealed)
    assert "made anew" in str((await verify(runtime, sealed, noted=noted)).fault)


async def test_an_entry_without_a_seal_for_five_minutes_is_late(
    runtime: Runtime, database_urls: DatabaseUrls, sealed: MadeTenant
) -> None:
    await write_entries(runtime, sealed.admin, "thing.f")
    as_owner(database_urls, sealed, "update audit_log set at = at - interval '6 minutes' where action = 'thing.f'")
    found = await verify(runtime, sealed)
    assert (found.waiting, found.late, found.fault) == (1, 1, None)


async def test_many_sealers_and_writers_at_once_make_one_chain(runtime: Runtime, tenant: MadeTenant) -> None:
    writers = [write_entries(runtime, tenant.admin, "thing.a", "thing.b", "thing.c") for _ in range(4)]
    sealers = [seal(runtime, tenant) for _ in range(8)]
    await asyncio.gather(*writers, *sealers)
    await worker.seal(runtime)
    found = await verify(runtime, tenant)
    assert (found.sealed, found.waiting, found.fault) == (12, 0, None)


async def test_seals_of_one_tenant_are_not_another_s(runtime: Runtime, sealed: MadeTenant, stranger: Principal) -> None:
    async with runtime.db.transaction(stranger.tenant_id) as session:
        assert (await verify_audit(session)).sealed == 0


@pytest.mark.contract("AU-02", part="`GET /audit-log`")
async def test_administrators_page_through_the_log_and_filter_it(
    as_admin: httpx.AsyncClient, runtime: Runtime, sealed: MadeTenant
) -> None:
    await write_entries(runtime, sealed.admin, "other.f")
    actions: list[str] = []
    before: dict[str, str] = {}
    while True:
        page = (await as_admin.get("/audit-log", params={"limit": 2, "action": "thing.", **before})).json()
        actions += [entry["action"] for entry in page["entries"]]
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    assert actions == ["thing.e", "thing.d", "thing.c", "thing.b", "thing.a"]
    (one,) = (await as_admin.get("/audit-log", params={"action": "other.f"})).json()["entries"]
    assert (one["actor"], one["subject"], one["detail"]["name"]) == (sealed.admin.name, "thing:1", "Größe")
    for nothing in ({"actor": "nobody@example.org"}, {"since": str(datetime.now(UTC) + timedelta(hours=1))}):
        assert (await as_admin.get("/audit-log", params=nothing)).json() == {"entries": [], "next": None}


async def test_the_log_says_whom_an_act_concerned(
    as_admin: httpx.AsyncClient, db: Database, tenant: MadeTenant, member: Principal, shell: Any
) -> None:
    group_id = await make_group(db, tenant_id=tenant.id)
    email = f"guest-{new_id().hex}@example.org"
    made = (await as_admin.post("/invitations", json={"email": email})).json()["id"]
    await as_admin.delete(f"/invitations/{made}")
    for method in ("PUT", "DELETE"):
        await as_admin.request(method, f"/groups/{group_id}/members/{member.user_id}")
    await as_admin.patch(f"/users/{member.user_id}", json={"platformRole": "engineer"})

    async def entry(action: str) -> dict[str, Any]:
        (one,) = (await as_admin.get("/audit-log", params={"action": action})).json()["entries"]
        return dict(one)

    for action in ("person.invited", "invitation.withdrawn"):
        assert (await entry(action))["detail"]["email"] == email
    for action in ("group.member_added", "group.member_removed"):
        assert (await entry(action))["detail"]["person"] == member.name
    assert (await entry("person.changed"))["person"] == member.name
    assert (await entry("person.invited"))["person"] == ""
    listed = (await shell("audit", "list", "--tenant", tenant.slug)).stdout
    (changed,) = (line for line in listed.splitlines() if "person.changed" in line)
    assert member.name in changed
    assert "platform role: none → engineer" in changed


@pytest.mark.parametrize("path", ["/audit-log", "/security-events"])
async def test_the_records_are_for_administrators_of_that_tenant(
    path: str, as_member: httpx.AsyncClient, as_stranger: httpx.AsyncClient, sealed: MadeTenant
) -> None:
    assert (await as_member.get(path)).status_code == 403
    assert "thing.a" not in (await as_stranger.get(path)).text
    assert (await as_stranger.get(path, params={"since": "yesterday"})).status_code == 422


@pytest.fixture
def shell(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The commands on this test's database."""
    monkeypatch.setenv("PHAROS_DATABASE_URL", runtime.settings.database_url or "")
    monkeypatch.setenv("PHAROS_DATA_DIR", str(runtime.settings.data_dir))

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))

    return run


@pytest.mark.contract("AU-02", part="`pharos audit list`")
async def test_the_log_is_listed_for_operators(shell: Any, sealed: MadeTenant) -> None:
    listed = await shell("audit", "list", "--tenant", sealed.slug, "--action", "thing.", "--since", "1h", "--json")
    assert [entry["action"][-1] for entry in json.loads(listed.stdout)] == list("edcba")
    none = await shell("audit", "list", "--tenant", sealed.slug, "--actor", "nobody")
    assert "Nothing like that was done" in none.stdout


@pytest.mark.contract("AU-02", part="`pharos audit verify`")
async def test_verify_prints_the_head_and_ends_as_a_conflict_after_a_breach(
    shell: Any, sealed: MadeTenant, database_urls: DatabaseUrls
) -> None:
    fine = await shell("audit", "verify", "--tenant", sealed.slug)
    assert fine.exit_code == 0, fine.output
    head = fine.stdout.split("Head: ")[1].strip()
    assert (await shell("audit", "verify", "--tenant", sealed.slug, "--noted", head)).exit_code == 0
    as_owner(database_urls, sealed, "delete from audit_log where action = 'thing.b'")
    broken = await shell("audit", "verify", "--json")
    assert isinstance(broken.exception, Conflict)
    (report,) = [report for report in json.loads(broken.stdout) if report["tenant"] == sealed.slug]
    assert "of seal 2 was removed" in report["fault"]
