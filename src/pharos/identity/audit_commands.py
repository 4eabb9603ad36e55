"""`pharos audit` and `pharos security`: what was done, whether the logs are whole, what looked like an attack."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import select

from pharos.identity.audit import AuditLine, detail_words, list_audit
from pharos.identity.audit_seals import LATE_SECONDS, ChainReport, Head, verify_audit
from pharos.identity.models import Tenant
from pharos.identity.security import (
    EVENT_TYPES,
    SEVERITIES,
    SecurityCount,
    SecurityLine,
    Severity,
    count_security_events,
    list_security_events,
)
from pharos.identity.tenants import find_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.durations import moment
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.ids import TenantId
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, TenantSlug, echo_json, echo_line, echo_table, run_async
from pharos.runtime import Runtime, open_runtime

app = typer.Typer()
audit_app = typer.Typer(help="What was done, by whom, and whether the log of it is whole.", no_args_is_help=True)
security_app = typer.Typer(help="Failed sign-ins, lockouts, tokens and keys.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(security_app, name="security")

Since = Annotated[str | None, typer.Option(help="Only newer ones: 24h, 30d or a date.")]
Limit = Annotated[int, typer.Option(help="At most so many, the newest first.", min=1, max=10_000)]


@audit_app.command("list")
def list_entries(
    *,
    since: Since = None,
    actor: Annotated[str | None, typer.Option(help="An e-mail address, `operator` or `key:NAME`.")] = None,
    action: Annotated[str | None, typer.Option(help="`project.created`, or `project.` for all of its kind.")] = None,
    limit: Limit = 50,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """What was done, the newest first."""
    after = moment(since) if since else None

    async def work() -> list[AuditLine]:
        async with open_runtime(Settings()) as runtime:
            tenant_id = await find_tenant(runtime, tenant)
            async with runtime.db.transaction(tenant_id) as session:
                return await list_audit(session, since=after, actor=actor, action=action, limit=limit)

    entries: list[AuditLine] = run_async(work())
    if as_json:
        echo_json(entries)
        return
    rows = [
        [
            f"{each.at:%Y-%m-%d %H:%M:%S}",
            each.actor,
            each.action,
            each.person or each.subject,
            detail_words(each.detail),
        ]
        for each in entries
    ]
    echo_table(["when (UTC)", "who", "what", "on", "details"], rows, empty="Nothing like that was done.")


@audit_app.command()
def verify(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Slug of the tenant; all of them if left out.")] = None,
    noted: Annotated[
        str | None, typer.Option("--noted", help="NUMBER:HASH, a head that was written down before; needs --tenant.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the audit log and the security events with their seals; ends as a conflict when one does not fit.

    Note the printed heads elsewhere: only a noted head shows that the newest entries were removed with their seals.
    """
    head = _head(noted) if noted else None
    if head is not None and tenant is None:
        raise Invalid("Say whose head that is: --tenant SLUG.", code="tenant_required")
    reports: dict[str, ChainReport] = run_async(_verify(tenant, head))
    if as_json:
        echo_json([{"tenant": slug, **vars(report)} for slug, report in reports.items()])
    else:
        for slug, report in reports.items():
            _say(slug, report)
    broken = [slug for slug, report in reports.items() if report.fault]
    if broken:
        raise Conflict(f"The log of {', '.join(broken)} is not what was sealed.", code="audit_altered")


async def _verify(slug: str | None, noted: Head | None) -> dict[str, ChainReport]:
    async with open_runtime(Settings()) as runtime:
        tenants = {slug: await find_tenant(runtime, slug)} if slug is not None else await _all_tenants(runtime)
        reports = {}
        for name, tenant_id in tenants.items():
            async with runtime.db.transaction(tenant_id) as session:
                reports[name] = await verify_audit(session, noted=noted)
        return reports


async def _all_tenants(runtime: Runtime) -> dict[str, TenantId]:
    async with system_transaction(runtime.db) as session:
        rows = await session.execute(select(Tenant.slug, Tenant.id).order_by(Tenant.slug))
        return {slug: TenantId(tenant_id) for slug, tenant_id in rows}


def _head(text: str) -> Head:
    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) != 64:
        raise Invalid("A noted head looks like 412:9f86d08…, as `pharos audit verify` prints it.", code="no_such_head")
    return Head(int(number), digest.lower())


def _say(slug: str, report: ChainReport) -> None:
    head = f"{report.head.number}:{report.head.hash}" if report.head else "none"
    echo_line(f"{slug}: {report.sealed} entries match their seals, {report.waiting} wait for one. Head: {head}")
    if report.late:
        minutes = LATE_SECONDS // 60
        echo_line(
            f"{slug}: warning: {report.late} entries have no seal after {minutes} minutes. The worker seals them; "
            "`pharos status` shows whether it runs."
        )
    if report.fault:
        echo_line(f"{slug}: {report.fault}")


@security_app.command()
def report(
    days: Annotated[int, typer.Option(help="How far back.", min=1, max=3660)] = 90,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """How often each type of event happened, the most frequent first."""

    async def work() -> list[SecurityCount]:
        async with open_runtime(Settings()) as runtime:
            tenant_id = await find_tenant(runtime, tenant)
            async with runtime.db.transaction(tenant_id) as session:
                return await count_security_events(session, since=moment(f"{days}d"))

    counts: list[SecurityCount] = run_async(work())
    if as_json:
        echo_json(counts)
        return
    rows = [[count.event_type, count.events, f"{count.last_at:%Y-%m-%d %H:%M:%S}"] for count in counts]
    echo_table(["event", "times", "last (UTC)"], rows, empty=f"Nothing of the kind in {days} days.")


@security_app.command("list")
def list_events(
    *,
    since: Since = None,
    event_type: Annotated[str | None, typer.Option("--type", help="Only this type.")] = None,
    severity: Annotated[str | None, typer.Option(help="At least low, medium, high or critical.")] = None,
    person: Annotated[str | None, typer.Option(help="Only what concerns this e-mail address.")] = None,
    limit: Limit = 50,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """The events themselves, the newest first."""
    after, least = moment(since) if since else None, _severity(severity)
    if event_type is not None and event_type not in EVENT_TYPES:
        raise Invalid(f"There is no type “{event_type}”. There are: {', '.join(EVENT_TYPES)}.", code="no_such_type")

    async def work() -> list[SecurityLine]:
        async with open_runtime(Settings()) as runtime:
            tenant_id = await find_tenant(runtime, tenant)
            async with runtime.db.transaction(tenant_id) as session:
                return await list_security_events(
                    session, since=after, event_type=event_type, severity=least, person=person, limit=limit
                )

    events: list[SecurityLine] = run_async(work())
    if as_json:
        echo_json(events)
        return
    rows = [
        [f"{each.at:%Y-%m-%d %H:%M:%S}", each.severity, each.event_type, each.person, each.subject, each.ip]
        for each in events
    ]
    echo_table(["when (UTC)", "severity", "event", "person", "on", "from"], rows, empty="Nothing of the kind.")


def _severity(text: str | None) -> Severity | None:
    for severity in SEVERITIES:
        if severity == text:
            return severity
    if text is not None:
        raise Invalid(f"There is no severity {text}. There are {', '.join(SEVERITIES)}.", code="no_such_severity")
    return None
