"""`pharos access`: who may do what, why, and giving and taking it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, get_args
from uuid import UUID

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access import explain, grants
from pharos.access.grants import GranteeKind, get_named_project
from pharos.access.projects import Tier
from pharos.identity.departments import get_department_by_name
from pharos.identity.groups import get_group_by_name
from pharos.identity.people import get_person_by_email
from pharos.identity.tenants import as_operator
from pharos.infra.errors import Invalid, NotFound
from pharos.infra.ids import ProjectId
from pharos.infra.terminal import AsJson, TenantSlug, echo_json, echo_line, echo_table, run_async

app = typer.Typer()
access_app = typer.Typer(help="Who may do what, and why.", no_args_is_help=True)
app.add_typer(access_app, name="access")

Email = Annotated[str, typer.Argument(help="E-mail address of the person.")]
Project = Annotated[str, typer.Argument(help="Name or id of the project.")]
ToUser = Annotated[str | None, typer.Option("--user", help="E-mail address of a person.")]
ToGroup = Annotated[str | None, typer.Option("--group", help="Name of a group.")]
ToDepartment = Annotated[str | None, typer.Option("--department", help="Name of a department.")]


@access_app.command("explain")
def explain_command(email: Email, project: Project, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """What a person may do in a project: every rung tried, its verdict, and the one that decides."""

    async def work() -> explain.Explanation:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            return await explain.explain_access(
                session,
                person=await get_person_by_email(session, email),
                project=await get_named_project(session, project),
            )

    found = run_async(work())
    if as_json:
        echo_json(found)
        return
    if found.is_disabled:
        echo_line(f"{found.email} is disabled and cannot sign in. If they could:")
    verdict = f"may {found.tier} “{found.project}” by {found.source}" if found.tier else f"cannot see “{found.project}”"
    echo_line(f"{found.email} {verdict}.")
    rows = [
        ["→" if rung.decides else "", rung.source, rung.tier or "-", rung.why, rung.audit_id] for rung in found.rungs
    ]
    echo_table(["", "rung", "gives", "why", "audit entry"], rows, empty="")


@access_app.command("who")
def who(project: Project, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Everybody who can see a project, with their tier and where it comes from."""

    async def work() -> list[explain.PersonAccess]:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            named = await get_named_project(session, project)
            return await explain.list_who(session, project_id=ProjectId(named.id))

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        rows = [[one.email, one.name, one.tier, one.source] for one in found]
        echo_table(["e-mail", "name", "tier", "source"], rows, empty="Nobody can see it.")


@access_app.command("what")
def what(email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """All projects a person can see, with their tier and where it comes from."""

    async def work() -> list[explain.ProjectAccess]:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            person = await get_person_by_email(session, email)
            return await explain.list_what(session, principal.tenant_id, person=person)

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        rows = [[one.name, "private" if one.is_private else "open", one.tier, one.source] for one in found]
        echo_table(["project", "", "tier", "source"], rows, empty="They can see no project.")


@access_app.command("grant")
def grant(
    project: Project,
    *,
    tier: Annotated[str, typer.Option(help="use (read and ask), edit (documents too) or full (grants too).")] = "use",
    user: ToUser = None,
    group: ToGroup = None,
    department: ToDepartment = None,
    until: Annotated[datetime | None, typer.Option(help="When it ends, in UTC; without it never.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Give a person, a group or a department a tier on a project, or change what was given."""
    if tier not in get_args(Tier):
        raise Invalid("A tier is use, edit or full.", code="bad_tier")

    async def work() -> grants.Grant:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            kind, grantee_id = await _grantee(session, user, group, department)
            named = await get_named_project(session, project)
            return await grants.give(
                session,
                principal,
                project_id=ProjectId(named.id),
                kind=kind,
                grantee_id=grantee_id,
                tier=tier,  # type: ignore[arg-type]  # checked above
                expires_at=until.replace(tzinfo=UTC) if until else None,
            )

    made = run_async(work())
    if as_json:
        echo_json(made)
    else:
        end = f" until {made.expires_at:%Y-%m-%d %H:%M} UTC" if made.expires_at else ""
        echo_line(f"{made.grantee_kind} {made.grantee} may {made.tier} “{project}”{end}.")


@access_app.command("revoke")
def revoke(
    project: Project,
    *,
    user: ToUser = None,
    group: ToGroup = None,
    department: ToDepartment = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Take back what was granted; access by another rung stays, as `pharos access explain` shows."""

    async def work() -> grants.Grant:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            kind, grantee_id = await _grantee(session, user, group, department)
            project_id = ProjectId((await get_named_project(session, project)).id)
            given = await grants.list_grants(session, principal, project_id=project_id)
            found = next((one for one in given if (one.grantee_kind, one.grantee_id) == (kind, grantee_id)), None)
            if found is None:
                raise NotFound(f"Nothing was granted to this {kind} on “{project}”.", code="no_such_grant")
            await grants.revoke(session, principal, project_id=project_id, grant_id=found.id)
            return found

    gone = run_async(work())
    if as_json:
        echo_json({"revoked": gone.id, "grantee_kind": gone.grantee_kind, "grantee": gone.grantee})
    else:
        echo_line(f"The grant of {gone.grantee_kind} {gone.grantee} on “{project}” is gone.")


async def _grantee(
    session: AsyncSession, user: str | None, group: str | None, department: str | None
) -> tuple[GranteeKind, UUID]:
    match (user, group, department):
        case (str(email), None, None):
            return "user", (await get_person_by_email(session, email)).id
        case (None, str(name), None):
            return "group", (await get_group_by_name(session, name)).id
        case (None, None, str(name)):
            return "department", (await get_department_by_name(session, name)).id
        case _:
            raise Invalid("Name one of --user, --group and --department.", code="bad_grantee")
