"""Grants: a tier on one project for a person, a group or a department, with or without an end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, case, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import Project, ProjectGrant, ProjectMember
from pharos.access.projects import Source, Tier, is_live, require, tiers_of
from pharos.identity.audit import record_audit
from pharos.identity.models import Department, Group, GroupMember, Membership, User
from pharos.identity.principal import Principal
from pharos.infra.errors import Invalid, NotAllowed, NotFound
from pharos.infra.ids import ProjectId, new_id

GranteeKind = Literal["user", "group", "department"]


@dataclass(frozen=True)
class Grant:
    """`grantee` is an e-mail address or a name; an expired grant gives nothing and stays to be seen."""

    id: UUID
    grantee_kind: GranteeKind
    grantee_id: UUID
    grantee: str
    tier: Tier
    granted_by: str
    expires_at: datetime | None
    is_expired: bool
    created_at: datetime


async def list_grants(session: AsyncSession, principal: Principal, *, project_id: ProjectId) -> list[Grant]:
    """The grants of a project: people, groups, departments, each by name. Needs `full`; raises as `require` does."""
    await require(session, principal, project_id, "full")
    return await find_grants(session, ProjectGrant.project_id == project_id)


async def give(
    session: AsyncSession,
    principal: Principal,
    *,
    project_id: ProjectId,
    kind: GranteeKind,
    grantee_id: UUID,
    tier: Tier,
    expires_at: datetime | None = None,
) -> Grant:
    """Give a tier, or change what was given. Needs `full`.

    Raises as `require` does, `NotFound` for an unknown grantee, `Invalid` for an end in the past or the handbook,
    `NotAllowed` for what would outlast a `full` that itself ends, or change the grant that gives it.
    """
    project = await require(session, principal, project_id, "full")
    if project.is_handbook:
        raise Invalid("Everybody reads the handbook and nobody edits it. Choose another project.", code="handbook")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Invalid("The end of a grant lies in the future. Give a later time.", code="bad_expiry")
    grantee = await _name_of(session, kind, grantee_id)
    is_same = (
        ProjectGrant.project_id == project_id,
        ProjectGrant.grantee_kind == kind,
        ProjectGrant.grantee_id == grantee_id,
    )
    old = (await session.execute(select(ProjectGrant).where(*is_same).with_for_update())).scalar_one_or_none()
    await _refuse_outlasting(session, principal, project, changed=old, expires_at=expires_at)
    detail: dict[str, object] = {"grantee_kind": kind, "grantee_id": str(grantee_id), "grantee": grantee}
    detail["tier"] = {"old": old.tier if old else None, "new": tier}
    detail["expires_at"] = {"old": _iso(old.expires_at) if old else None, "new": _iso(expires_at)}
    values = {"tier": tier, "expires_at": expires_at, "granted_by": principal.name}
    key = {"tenant_id": principal.tenant_id, "project_id": project_id, "grantee_kind": kind, "grantee_id": grantee_id}
    row = insert(ProjectGrant).values(**key, **values, id=new_id())
    unique = ["tenant_id", "project_id", "grantee_kind", "grantee_id"]
    await session.execute(row.on_conflict_do_update(index_elements=unique, set_=values | {"created_at": func.now()}))
    await record_audit(session, principal, action="grant.given", subject=f"project:{project_id}", **detail)
    (grant,) = await find_grants(session, *is_same)
    return grant


async def revoke(session: AsyncSession, principal: Principal, *, project_id: ProjectId, grant_id: UUID) -> None:
    """Take a grant back. Needs `full`; raises as `require` does, `NotFound` for an unknown grant."""
    await require(session, principal, project_id, "full")
    is_this = (ProjectGrant.id == grant_id, ProjectGrant.project_id == project_id)
    grants = await find_grants(session, *is_this)
    if not grants:
        raise NotFound("There is no such grant. `GET /projects/{id}/grants` lists them.", code="no_such_grant")
    await session.execute(delete(ProjectGrant).where(*is_this))
    (grant,) = grants
    await record_audit(
        session,
        principal,
        action="grant.revoked",
        subject=f"project:{project_id}",
        grantee_kind=grant.grantee_kind,
        grantee_id=str(grant.grantee_id),
        grantee=grant.grantee,
        tier={"old": grant.tier, "new": None},
    )


async def find_grants(session: AsyncSession, *conditions: ColumnElement[bool]) -> list[Grant]:
    """Grants that match, expired ones too, people first; whoever calls has asked whether they may be seen."""
    name = func.coalesce(User.email, Group.name, Department.name, "")
    kind = case((ProjectGrant.grantee_kind == "user", 1), (ProjectGrant.grantee_kind == "group", 2), else_=3)
    rows = await session.execute(
        select(ProjectGrant, name.label("grantee"), (~is_live()).label("is_expired"))
        .outerjoin(User, User.id == ProjectGrant.grantee_id)
        .outerjoin(Group, Group.id == ProjectGrant.grantee_id)
        .outerjoin(Department, Department.id == ProjectGrant.grantee_id)
        .where(*conditions)
        .order_by(kind, name)
        .execution_options(populate_existing=True)
    )
    return [_grant(row) for row in rows]


async def get_named_project(session: AsyncSession, name_or_id: str) -> Project:
    """A project of the session's tenant by name or id, for the operator. Raises `NotFound`."""
    try:
        condition = Project.id == UUID(name_or_id)
    except ValueError:
        condition = Project.name == name_or_id
    found = (await session.execute(select(Project).where(condition))).scalar_one_or_none()
    if found is None:
        raise NotFound(f"There is no project “{name_or_id}”. `pharos access what EMAIL` lists some.")
    return found


async def _name_of(session: AsyncSession, kind: GranteeKind, grantee_id: UUID) -> str:
    names = {
        "user": select(User.email).join(Membership, Membership.user_id == User.id).where(User.id == grantee_id),
        "group": select(Group.name).where(Group.id == grantee_id),
        "department": select(Department.name).where(Department.id == grantee_id),
    }
    name = (await session.execute(names[kind])).scalar_one_or_none()
    if name is None:
        raise NotFound(f"There is no such {kind} here.", code=f"no_such_{kind}")
    return str(name)


async def _refuse_outlasting(
    session: AsyncSession,
    principal: Principal,
    project: Project,
    *,
    changed: ProjectGrant | None,
    expires_at: datetime | None,
) -> None:
    """Whoever has a project for a time cannot give it for longer, to themselves or to somebody who gives it back."""
    lent = await _lent_full(session, principal, project)
    if not lent:
        return
    end = max(lent.values())
    if changed is not None and changed.id in lent:
        raise NotAllowed(
            "Your own access rests on this grant. Ask the project's owner or an administrator to change it.",
            code="own_grant",
        )
    if expires_at is None or expires_at > end:
        raise NotAllowed(
            f"Your own access ends {end:%Y-%m-%d %H:%M} UTC. Give a grant that ends no later.", code="outlasts_own"
        )


async def _lent_full(session: AsyncSession, principal: Principal, project: Project) -> dict[UUID, datetime]:
    """The grants that give the principal `full`, with their ends; empty when it does not end."""
    tiers = tiers_of(principal)
    source: Source = (await session.execute(select(tiers.c.source).where(tiers.c.id == project.id))).scalar_one()
    if source not in {"direct", "group", "department"}:
        return {}
    own = exists().where(
        ProjectMember.project_id == project.id, ProjectMember.user_id == principal.user_id, ProjectMember.tier == "full"
    )
    if source == "direct" and (await session.execute(select(own))).scalar_one():
        return {}
    kind, grantee = ProjectGrant.grantee_kind, ProjectGrant.grantee_id
    groups = select(GroupMember.group_id).where(GroupMember.user_id == principal.user_id)
    department = select(Membership.department_id).where(Membership.user_id == principal.user_id)
    reaches = {
        "direct": and_(kind == "user", grantee == principal.user_id),
        "group": and_(kind == "group", grantee.in_(groups)),
        "department": and_(kind == "department", grantee.in_(department)),
    }[source]
    full = select(ProjectGrant.id, ProjectGrant.expires_at).where(
        ProjectGrant.project_id == project.id, ProjectGrant.tier == "full", is_live(), reaches
    )
    ends = {row.id: row.expires_at for row in await session.execute(full)}
    return {} if None in ends.values() else ends


def _grant(row: Row[ProjectGrant, str, bool]) -> Grant:
    grant: ProjectGrant = row.ProjectGrant
    return Grant(
        id=grant.id,
        grantee_kind=grant.grantee_kind,  # type: ignore[arg-type]  # a check constraint holds the values
        grantee_id=grant.grantee_id,
        grantee=row.grantee,
        tier=grant.tier,  # type: ignore[arg-type]  # so does another
        granted_by=grant.granted_by,
        expires_at=grant.expires_at,
        is_expired=row.is_expired,
        created_at=grant.created_at,
    )


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
