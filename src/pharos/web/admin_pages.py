"""The pages of an administrator: people, groups, shares, keys, secrets, audit and security events, and backups."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from pharos.access import explain, shares
from pharos.chat.history import list_titles
from pharos.identity import api_keys, audit, invitations, security, tenant_secrets
from pharos.identity.account_state import get_account_state
from pharos.identity.departments import list_departments
from pharos.identity.groups import list_groups, list_members
from pharos.identity.people import get_person, list_people, require_administrator
from pharos.identity.principal import ORG_POSITIONS, PLATFORM_ROLES
from pharos.identity.tenants import is_default_tenant, name_of
from pharos.infra.errors import NotAllowed, NotFound
from pharos.infra.render import render_markdown
from pharos.ops.backup.signing import own_key
from pharos.ops.standing import read_standing
from pharos.web.html import page
from pharos.web.visit import CurrentVisit, Visit

router = APIRouter(prefix="/admin", include_in_schema=False)

Words = Annotated[str, Query(max_length=200)]
SECTIONS = ("people", "organisation", "shares", "models", "keys", "secrets", "feedback", "audit", "security")
OF_THE_INSTALLATION = ("backups",)
GIVEN_ROLES = tuple(role for role in PLATFORM_ROLES if role != "superadmin")  # nobody is made one here (F-02)
PAGE_ROWS = 50
REPORT_DAYS = 90


def administrators_visit(visit: CurrentVisit) -> Visit:
    """A visit of somebody who administrates. Raises `NotAllowed` for anybody else."""
    require_administrator(visit.principal)
    return visit


def group_managers_visit(visit: CurrentVisit) -> Visit:
    """A visit of an administrator, or of a manager, who sees here what is their department's. Raises `NotAllowed`."""
    return visit if visit.led_department is not None else administrators_visit(visit)


async def operators_visit(visit: Annotated[Visit, Depends(administrators_visit)]) -> Visit:
    """A visit of an administrator of the installation's own organisation. Raises `NotAllowed` for anybody else."""
    if not await is_default_tenant(visit.runtime, visit.principal.tenant_id):
        raise NotAllowed("This is about the whole installation. Ask whoever runs it.", code="not_the_operator")
    return visit


AdminVisit = Annotated[Visit, Depends(administrators_visit)]
OperatorVisit = Annotated[Visit, Depends(operators_visit)]
GroupsVisit = Annotated[Visit, Depends(group_managers_visit)]


@router.get("")
async def first_page() -> Response:
    """The section that most come for."""
    return RedirectResponse("/admin/people", status_code=303)


@router.get("/people")
async def people_page(request: Request, visit: AdminVisit, q: Words = "", after: Words = "") -> Response:
    """Who belongs to the organisation, who is invited, and a form to invite."""
    async with visit.transaction() as session:
        people, following = await list_people(session, words=q, after=after, limit=PAGE_ROWS)
        invited = await invitations.list_invitations(session)
        departments = await list_departments(session)
    return await admin_page(
        request,
        visit,
        "people",
        people=people,
        following=following,
        invited=invited,
        has_mail_server=visit.runtime.settings.smtp_url is not None,
        departments=departments,
        words=q,
        roles=GIVEN_ROLES,
    )


@router.get("/people/{user_id}")
async def person_page(request: Request, user_id: UUID, visit: AdminVisit) -> Response:
    """One person: their place, which can be changed, and what they can see."""
    async with visit.transaction() as session:
        someone = await get_person(session, user_id)
        account = await get_account_state(session, user_id=user_id)
        departments = await list_departments(session)
        visible = await explain.list_what(session, visit.principal.tenant_id, person=someone)
    is_self = user_id == visit.principal.user_id
    return await admin_page(
        request,
        visit,
        "people",
        template="admin_person.html",
        someone=someone,
        account=account,
        departments=departments,
        visible=visible,
        roles=GIVEN_ROLES,
        positions=ORG_POSITIONS,
        is_self=is_self,
        role_is_fixed=is_self or someone.platform_role == "superadmin",
    )


@router.get("/organisation")
async def organisation_page(request: Request, visit: GroupsVisit) -> Response:
    """Departments and groups."""
    led = visit.led_department
    async with visit.transaction() as session:
        departments = [each for each in await list_departments(session) if led in {None, each.id}]
        groups = [each for each in await list_groups(session) if led in {None, each.department_id}]
        called = await name_of(session, visit.principal.tenant_id)
    return await admin_page(request, visit, "organisation", departments=departments, groups=groups, called=called)


@router.get("/groups/{group_id}")
async def group_page(request: Request, group_id: UUID, visit: GroupsVisit, q: Words = "") -> Response:
    """The members of a group, and people to add."""
    led = visit.led_department
    async with visit.transaction() as session:
        members = await list_members(session, group_id=group_id)
        group = next((each for each in await list_groups(session) if each.id == group_id), None)
        found, _ = await list_people(session, words=q, department_id=led, limit=PAGE_ROWS)
    if group is None or led not in {None, group.department_id}:
        raise NotFound("There is no such group.", code="no_such_group")
    inside = {member.user_id for member in members}
    others = [person for person in found if person.id not in inside]
    return await admin_page(
        request,
        visit,
        "organisation",
        template="admin_group.html",
        group=group,
        members=members,
        others=others,
        words=q,
    )


@router.get("/shares")
async def shares_page(request: Request, visit: AdminVisit) -> Response:
    """Who asked to share a conversation, and the links that are open."""
    async with visit.transaction() as session:
        asked = await shares.list_requests(session, visit.principal)
        titles = await list_titles(session, conversation_ids=[each.conversation_id for each in asked])
    waiting = [each for each in asked if each.state == "pending"]
    decided = [each for each in asked if each.state != "pending"]
    return await admin_page(request, visit, "shares", waiting=waiting, decided=decided, titles=titles)


@router.get("/keys")
async def keys_page(request: Request, visit: AdminVisit) -> Response:
    """API keys of programs and people."""
    async with visit.transaction() as session:
        keys = await api_keys.list_keys(session, visit.principal)
        owners = await api_keys.list_owners(session, keys)
    return await admin_page(
        request,
        visit,
        "keys",
        keys=keys,
        owners=owners,
        scopes=api_keys.SCOPES,
        chosen=api_keys.DEFAULT_SCOPES,
        for_program=True,
        default_days=api_keys.DEFAULT_DAYS,
    )


@router.get("/secrets")
async def secrets_page(request: Request, visit: AdminVisit) -> Response:
    """Keys of model providers and other services, with age and last use; never a value."""
    async with visit.transaction() as session:
        kept = await tenant_secrets.list_tenant_secrets(session, visit.principal.tenant_id)
    return await admin_page(request, visit, "secrets", secrets=kept, kinds=tenant_secrets.KINDS)


@router.get("/audit")
async def audit_page(
    request: Request, visit: AdminVisit, actor: Words = "", action: Words = "", before: UUID | None = None
) -> Response:
    """What was done and by whom, newest first."""
    async with visit.transaction() as session:
        entries = await audit.list_audit(
            session, actor=actor or None, action=action or None, before=before, limit=PAGE_ROWS
        )
    return await admin_page(
        request, visit, "audit", entries=entries, actor=actor, action=action, following=_following(entries)
    )


@router.get("/security")
async def security_page(
    request: Request,
    visit: AdminVisit,
    *,
    event_type: Words = "",
    severity: security.Severity = "low",
    who: Words = "",
    before: UUID | None = None,
) -> Response:
    """Sign-ins that failed, locked accounts, tokens used twice, keys made and changed."""
    since = datetime.now(UTC) - timedelta(days=REPORT_DAYS)
    kind = "_".join(event_type.lower().split())  # the page shows "api key created"
    async with visit.transaction() as session:
        events = await security.list_security_events(
            session, event_type=kind or None, severity=severity, person=who or None, before=before, limit=PAGE_ROWS
        )
        counts = await security.count_security_events(session, since=since)
    return await admin_page(
        request,
        visit,
        "security",
        events=events,
        counts=counts,
        event_type=event_type,
        severity=severity,
        who=who,
        severities=security.SEVERITIES,
        days=REPORT_DAYS,
        following=_following(events),
    )


@router.get("/backups")
async def backups_page(request: Request, visit: OperatorVisit) -> Response:
    """Backups with their state and age, drills with their log, what would be lost now and how long a restore takes."""
    standing = await read_standing(visit.runtime, fresh=True)
    drills = [(drill, Markup(render_markdown(drill.report))) for drill in standing.drills]  # noqa: S704 - sanitised
    signer = await asyncio.to_thread(own_key, visit.runtime.settings)
    return await admin_page(request, visit, "backups", standing=standing, drills=drills, signer=signer)


def _following(rows: list[Any]) -> UUID | None:
    """Where the next page begins; None on the last one."""
    return rows[-1].id if len(rows) == PAGE_ROWS else None


async def admin_page(request: Request, visit: Visit, section: str, *, template: str = "", **context: Any) -> Response:
    """A page of a section, `admin_SECTION.html` unless another template is named."""
    name = template or f"admin_{section}.html"
    sections = await _sections(visit)
    return page(request, name, **visit.context, sections=sections, section=section, **context)


async def _sections(visit: Visit) -> tuple[str, ...]:
    """Those the person may open: a manager has one, and what is of all tenants is the first organisation's."""
    if not visit.principal.administrates:
        return ("organisation",)
    has_all = await is_default_tenant(visit.runtime, visit.principal.tenant_id)
    return SECTIONS + OF_THE_INSTALLATION if has_all else SECTIONS
