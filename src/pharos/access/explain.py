"""Why somebody may do something: every rung of the ladder, who sees a project, what a person sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.grants import Grant, find_grants
from pharos.access.models import Project, ProjectGrant, ProjectMember
from pharos.access.projects import ORDER, TIERS, Source, Tier, tiers_of, tiers_on
from pharos.identity.models import AuditEntry, GroupMember, Membership, User
from pharos.identity.people import Person, principal_of
from pharos.infra.ids import ProjectId, TenantId, UserId


@dataclass(frozen=True)
class Rung:
    """One rung: what it gives (None: nothing), why, and the audit entry of the act that gave it, if one is known.

    `decides`: it is the first that gives anything, so its tier counts.
    """

    source: Source
    tier: Tier | None
    decides: bool
    why: str
    audit_id: UUID | None


@dataclass(frozen=True)
class Explanation:
    """`tier` is None when no rung gives anything; `rungs` are in the order in which they are tried."""

    user_id: UserId
    email: str
    is_disabled: bool
    project_id: ProjectId
    project: str
    tier: Tier | None
    source: Source | None
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class PersonAccess:
    user_id: UserId
    email: str
    name: str
    tier: Tier
    source: Source


@dataclass(frozen=True)
class ProjectAccess:
    project_id: ProjectId
    name: str
    is_private: bool
    tier: Tier
    source: Source


async def explain_access(session: AsyncSession, *, person: Person, project: Project) -> Explanation:
    """Every rung tried for a person on a project. Whoever calls has asked whether it may be seen."""
    tiers = tiers_of(await principal_of(session, TenantId(project.tenant_id), person))
    row = (await session.execute(select(tiers).where(tiers.c.id == project.id))).one()
    grants = await _grants_for(session, person, project)
    entries = await _entries(session, person, project)
    rungs = []
    for source in ORDER:
        number = getattr(row, source)
        tier = TIERS[number - 1] if number is not None else None
        why = await _why(session, source, person, project, grants)
        entry = _entry_for(source, person, grants, entries) if tier is not None else None
        rungs.append(Rung(source, tier, decides=row.source == source, why=why, audit_id=entry))
    return Explanation(
        user_id=person.id,
        email=person.email,
        is_disabled=person.is_disabled,
        project_id=ProjectId(project.id),
        project=project.name,
        tier=TIERS[row.tier - 1] if row.tier is not None else None,
        source=row.source,
        rungs=tuple(rungs),
    )


async def list_who(session: AsyncSession, *, project_id: ProjectId) -> list[PersonAccess]:
    """Who can see a project, the highest tier first, then by address; the disabled cannot."""
    tiers = tiers_on(project_id)
    rows = await session.execute(
        select(User, tiers.c.tier, tiers.c.source)
        .join(tiers, tiers.c.user_id == User.id)
        .join(Membership, Membership.user_id == User.id)
        .where(tiers.c.tier.is_not(None), User.disabled_at.is_(None), Membership.disabled_at.is_(None))
        .order_by(tiers.c.tier.desc(), User.email)
    )
    return [
        PersonAccess(UserId(row.User.id), row.User.email, row.User.name, TIERS[row.tier - 1], row.source)
        for row in rows
    ]


async def list_what(session: AsyncSession, tenant_id: TenantId, *, person: Person) -> list[ProjectAccess]:
    """What a person can see, by name."""
    tiers = tiers_of(await principal_of(session, tenant_id, person))
    rows = await session.execute(
        select(Project, tiers.c.tier, tiers.c.source)
        .join(tiers, tiers.c.id == Project.id)
        .where(tiers.c.tier.is_not(None))
        .order_by(Project.name)
    )
    return [
        ProjectAccess(
            ProjectId(row.Project.id), row.Project.name, row.Project.is_private, TIERS[row.tier - 1], row.source
        )
        for row in rows
    ]


async def _grants_for(session: AsyncSession, person: Person, project: Project) -> list[Grant]:
    """The grants of a project that reach a person, expired ones too."""
    groups = select(GroupMember.group_id).where(GroupMember.user_id == person.id)
    kind, grantee = ProjectGrant.grantee_kind, ProjectGrant.grantee_id
    reaches = or_(
        and_(kind == "user", grantee == person.id),
        and_(kind == "group", grantee.in_(groups)),
        and_(kind == "department", grantee == person.department_id),
    )
    return await find_grants(session, ProjectGrant.project_id == project.id, reaches)


async def _why(session: AsyncSession, source: Source, person: Person, project: Project, grants: Sequence[Grant]) -> str:
    match source:
        case "platform":
            return f"the platform role is {person.platform_role}"
        case "owner":
            return await _why_owner(session, person, project)
        case "ceo":
            return f"the position is {person.org_position}"
        case "public":
            if project.is_handbook:
                return "everybody reads the handbook"
            return "the project is private" if project.is_private else f"everybody may {project.baseline_tier} it"
        case _:
            return await _why_given(session, source, person, project, grants)


async def _why_owner(session: AsyncSession, person: Person, project: Project) -> str:
    if project.owner_id == person.id:
        return "owns the project"
    owner = (await session.execute(select(User.email).where(User.id == project.owner_id))).scalar_one_or_none()
    return f"the owner is {owner}" if owner else "the project has no owner"


async def _why_given(
    session: AsyncSession, source: Source, person: Person, project: Project, grants: Sequence[Grant]
) -> str:
    kind = "user" if source == "direct" else source
    words = [_grant_words(grant) for grant in grants if grant.grantee_kind == kind]
    if source == "direct":
        mine = select(ProjectMember.tier).where(
            ProjectMember.project_id == project.id, ProjectMember.user_id == person.id
        )
        tier = (await session.execute(mine)).scalar_one_or_none()
        words += [f"a member of the project with {tier}"] if tier else []
    nothing = {
        "direct": "no grant of their own",
        "group": "no grant to a group they are in",
        "department": "no grant to their department" if person.department else "in no department",
    }
    return "; ".join(words) or nothing[source]


def _grant_words(grant: Grant) -> str:
    to = "" if grant.grantee_kind == "user" else f" to {grant.grantee_kind} {grant.grantee}"
    by = f" by {grant.granted_by}" if grant.granted_by else ""
    if grant.expires_at is None:
        return f"granted {grant.tier}{to}{by}"
    end = f"{grant.expires_at:%Y-%m-%d %H:%M} UTC"
    return f"granted {grant.tier}{to}{by}, " + (f"expired {end}" if grant.is_expired else f"until {end}")


async def _entries(session: AsyncSession, person: Person, project: Project) -> list[Row[Any]]:
    """What the audit log says of the project's grants and owner and of the person's place, the newest first."""
    about = or_(
        and_(
            AuditEntry.subject == f"project:{project.id}",
            AuditEntry.action.in_(("grant.given", "project.created", "project.owner_changed")),
        ),
        and_(AuditEntry.subject == f"user:{person.id}", AuditEntry.action == "person.changed"),
    )
    columns = (AuditEntry.id, AuditEntry.action, AuditEntry.detail)
    return list(
        await session.execute(select(*columns).where(about).order_by(AuditEntry.at.desc(), AuditEntry.id.desc()))
    )


def _entry_for(source: Source, person: Person, grants: Sequence[Grant], entries: Sequence[Row[Any]]) -> UUID | None:
    match source:
        case "platform" | "ceo":
            field = "platform_role" if source == "platform" else "org_position"
            matching = (e for e in entries if e.action == "person.changed" and field in e.detail)
        case "owner":
            matching = (e for e in entries if e.action in {"project.created", "project.owner_changed"})
        case "public":
            return None
        case _:
            kind = "user" if source == "direct" else source
            live = [grant for grant in grants if grant.grantee_kind == kind and not grant.is_expired]
            best = max(live, key=lambda grant: TIERS.index(grant.tier), default=None)
            wanted = str(best.grantee_id) if best else None
            matching = (e for e in entries if e.action == "grant.given" and e.detail.get("grantee_id") == wanted)
    entry = next(matching, None)
    return entry.id if entry is not None else None
