"""Who sees what inside a tenant: one query, used inside the statement that reads."""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, case, exists, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import Project, ProjectGrant, ProjectMember
from pharos.identity.principal import Principal
from pharos.infra.errors import NotAllowed, NotFound
from pharos.infra.ids import ProjectId

Tier = Literal["use", "edit", "full"]
Source = Literal["platform", "owner", "ceo", "direct", "public"]
TIERS: tuple[Tier, ...] = ("use", "edit", "full")


def visible_projects(principal: Principal) -> Select[UUID]:
    """Ids of the projects the principal may at least use, as a subquery; never fetched before it is needed."""
    return select(Project.id).where(_tier_number(principal) > 0)


def tier_column(principal: Principal) -> ColumnElement[int]:
    """The principal's tier on the `Project` of the surrounding query: 0 nothing, 1 use, 2 edit, 3 full."""
    return _tier_number(principal)


def source_column(principal: Principal) -> ColumnElement[str]:
    """Which rung of the ladder gave that tier."""
    if principal.sees_everything:
        return literal("platform")
    return case(*((rung.holds, literal(rung.source)) for rung in _ladder(principal)), else_=literal(""))


async def require(session: AsyncSession, principal: Principal, project_id: ProjectId, tier: Tier) -> Project:
    """The project, if the principal has at least this tier on it.

    Raises `NotFound` when it is not there or may not be known, `NotAllowed` when it is seen but the tier is too low.
    """
    row = (
        await session.execute(select(Project, _tier_number(principal).label("tier")).where(Project.id == project_id))
    ).one_or_none()
    if row is None or row.tier == 0:
        raise NotFound(
            "There is no such project. `GET /projects` lists the ones you can reach.", code="no_such_project"
        )
    if row.tier < TIERS.index(tier) + 1:
        raise NotAllowed(
            f"You may {TIERS[row.tier - 1]} this project; this needs {tier}. Ask its owner for access.",
            code="tier_too_low",
            tier=TIERS[row.tier - 1],
        )
    project: Project = row.Project
    return project


def _tier_number(principal: Principal) -> ColumnElement[int]:
    if principal.sees_everything:
        return literal(3)
    return case(*((rung.holds, rung.tier) for rung in _ladder(principal)), else_=literal(0))


class Rung(NamedTuple):
    """If `holds` for the `Project` of the surrounding query, the principal has `tier` there, because of `source`."""

    holds: SQLColumnExpression[bool]
    tier: ColumnElement[int]
    source: Source


def _ladder(principal: Principal) -> list[Rung]:
    """Platform, owner, ceo, direct, public; the first that holds counts, so an owning CEO gets full (C-04)."""
    rungs = [Rung(Project.owner_id == principal.user_id, literal(3), "owner")]
    if principal.org_position == "ceo":
        rungs.append(Rung(literal(value=True), literal(1), "ceo"))
    return [
        *rungs,
        Rung(Project.is_handbook, literal(1), "public"),
        Rung(_has_direct_tier(principal), _direct_tier(principal), "direct"),
        Rung(Project.is_private.is_(other=False), _as_number(Project.baseline_tier), "public"),
    ]


def _grants_of(principal: Principal) -> ColumnElement[bool]:
    return and_(
        ProjectGrant.project_id == Project.id,
        ProjectGrant.grantee_kind == "user",
        ProjectGrant.grantee_id == principal.user_id,
        or_(ProjectGrant.expires_at.is_(None), ProjectGrant.expires_at > func.now()),
    )


def _membership_of(principal: Principal) -> ColumnElement[bool]:
    return and_(ProjectMember.project_id == Project.id, ProjectMember.user_id == principal.user_id)


def _has_direct_tier(principal: Principal) -> ColumnElement[bool]:
    return or_(exists().where(_grants_of(principal)), exists().where(_membership_of(principal)))


def _direct_tier(principal: Principal) -> ColumnElement[int]:
    granted = select(func.max(_as_number(ProjectGrant.tier))).where(_grants_of(principal)).scalar_subquery()
    member = select(func.max(_as_number(ProjectMember.tier))).where(_membership_of(principal)).scalar_subquery()
    return func.greatest(granted, member)


def _as_number(tier: SQLColumnExpression[str]) -> ColumnElement[int]:
    return case(*((tier == name, literal(number + 1)) for number, name in enumerate(TIERS)), else_=literal(0))
