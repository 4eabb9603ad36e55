"""Security events: recorded without addresses, counted by type, shown to administrators."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from tests.make import MadeTenant
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.identity.models import SecurityEvent
from pharos.identity.security import record_security_event
from pharos.infra.errors import Invalid
from pharos.infra.limits import LOGIN
from pharos.runtime import Runtime


@pytest.fixture
async def events(runtime: Runtime, tenant: MadeTenant) -> MadeTenant:
    """Two failed sign-ins, one lockout, and one of long ago."""
    async with runtime.db.transaction(tenant.id) as session:
        for ip in ("203.0.113.77", "2001:db8:1:2::3"):
            await record_security_event(
                session, tenant.id, event_type="login_failed", severity="low", ip=ip, agent="x" * 500, door="password"
            )
        await record_security_event(
            session, tenant.id, event_type="account_locked", severity="high", user_id=tenant.admin.user_id
        )
        long_ago = datetime.now(UTC) - timedelta(days=100)
        session.add(
            SecurityEvent(tenant_id=tenant.id, event_type="token_reuse_detected", severity="high", created_at=long_ago)
        )
    return tenant


async def run(runtime: Runtime, *arguments: str) -> Result:
    assert runtime.settings.secret_key is not None
    environment = {
        "PHAROS_DATABASE_URL": runtime.settings.database_url,
        "PHAROS_DATA_DIR": str(runtime.settings.data_dir),
        "PHAROS_SECRET_KEY": runtime.settings.secret_key.get_secret_value(),
    }
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=environment)


@pytest.mark.contract("RL-10", part="the whole address is in memory only: a security event has the shortened one")
@pytest.mark.contract("LO-02", part="security events")
async def test_administrators_see_events_without_whole_addresses(
    as_admin: httpx.AsyncClient, events: MadeTenant
) -> None:
    params = {"eventType": "login_failed"}
    shown = (await as_admin.get("/security-events", params=params)).json()["events"]
    assert [event["ip"] for event in shown] == ["2001:db8:1::", "203.0.113.0"]
    assert [(len(event["agent"]), event["detail"]) for event in shown] == [(200, {"door": "password"})] * 2
    severe = (await as_admin.get("/security-events", params={"severity": "medium"})).json()["events"]
    assert {event["eventType"] for event in severe} == {"account_locked", "token_reuse_detected"}
    since = {"since": str(datetime.now(UTC) - timedelta(days=1)), "severity": "high", "limit": "1"}
    (one,) = (await as_admin.get("/security-events", params=since)).json()["events"]
    assert (one["eventType"], one["userId"]) == ("account_locked", str(events.admin.user_id))


@pytest.mark.contract("AU-03")
async def test_the_report_counts_by_type_and_the_most_frequent_comes_first(
    runtime: Runtime, events: MadeTenant
) -> None:
    ninety = json.loads((await run(runtime, "security", "report", "--tenant", events.slug, "--json")).stdout)
    assert [(row["event_type"], row["events"]) for row in ninety] == [("login_failed", 2), ("account_locked", 1)]
    longer = await run(runtime, "security", "report", "--tenant", events.slug, "--days", "120")
    assert [line.split()[0] for line in longer.stdout.splitlines()[1:]] == [
        "login_failed",
        "account_locked",
        "token_reuse_detected",
    ]


async def test_events_are_listed_by_severity(runtime: Runtime, events: MadeTenant) -> None:
    listed = await run(runtime, "security", "list", "--tenant", events.slug, "--severity", "high", "--since", "1d")
    assert [line.split()[3] for line in listed.stdout.splitlines()[1:]] == ["account_locked"]
    wrong = await run(runtime, "security", "list", "--severity", "dreadful")
    assert isinstance(wrong.exception, Invalid)


async def test_events_name_whom_they_concern_and_are_found_by_that(
    runtime: Runtime, events: MadeTenant, as_admin: httpx.AsyncClient
) -> None:
    theirs = (await as_admin.get("/security-events", params={"person": events.admin.name.upper()})).json()["events"]
    assert [(one["eventType"], one["person"]) for one in theirs] == [("account_locked", events.admin.name)]
    failed = (await as_admin.get("/security-events", params={"eventType": "login_failed"})).json()["events"]
    assert {one["person"] for one in failed} == {""}
    listed = await run(runtime, "security", "list", "--tenant", events.slug, "--person", events.admin.name)
    (line,) = listed.stdout.splitlines()[1:]
    assert line.split()[3:5] == ["account_locked", events.admin.name]


async def test_an_unknown_type_is_refused_with_those_there_are(runtime: Runtime, events: MadeTenant) -> None:
    of_type = ("security", "list", "--tenant", events.slug, "--type")
    assert "login_failed" in (await run(runtime, *of_type, "login_failed")).stdout
    wrong = await run(runtime, *of_type, "sign_in_failed")
    assert isinstance(wrong.exception, Invalid)
    assert "login_failed" in str(wrong.exception)


@pytest.mark.contract("RL-09", part="`pharos ratelimit reset` gives the effect of a restart")
async def test_an_operator_gives_somebody_their_tries_back(runtime: Runtime) -> None:
    for subject in ("ip:203.0.113.77", "email:locked@example.org", "ip:203.0.113.78"):
        await runtime.limits.hit(LOGIN, subject)
    for typed in ("203.0.113.77", "Locked@example.org"):
        reset = await run(runtime, "ratelimit", "reset", "--subject", typed, "--json")
        assert json.loads(reset.stdout)["windows_ended"] == 1
    assert "of everybody" in (await run(runtime, "ratelimit", "reset")).stdout
