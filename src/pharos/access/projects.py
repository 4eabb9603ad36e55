"""Who sees what inside a tenant: one query, used inside the statement that reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    SQLColumnExpression,
    Subquery,
    Uuid,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import Project, ProjectGrant, ProjectMember
from pharos.identity.models import GroupMember, Membership
from pharos.identity.principal import Kind, Principal
from pharos.infra.errors import NotAllowed, NotFound
from pharos.infra.ids import ProjectId

Tier = Literal["use", "edit", "full"]
Source = Literal["platform", "owner", "ceo", "direct", "group", "department", "public"]
TIERS: tuple[Tier, ...] = ("use", "edit", "full")
ORDER: tuple[Source, ...] = ("platform", "owner", "ceo", "direct", "group", "department", "public")
"""The rungs of the ladder; the first that gives anything decides, the others are not looked at. So an owning CEO has
full access, no grant lifts a CEO above `use`, and a person's own grant counts before their groups' (C-04, C-05)."""

DIALECT = PGDialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it without annotations
Rungs = Mapping[str, ColumnElement[Any]]

NOTHING: ColumnElement[int | None] = null().cast(Integer)
NO_PROJECT = NotFound("There is no such project. `GET /projects` lists the ones you can reach.", code="no_such_project")


@dataclass(frozen=True)
class Asker:
    """What of a principal shapes a statement, which is built once for all who are alike; who they are is a value."""

    kind: Kind
    is_somebody: bool
    is_ceo: bool
    sees_everything: bool


def asker_values(principal: Principal) -> dict[str, UUID | None]:
    """The values of `:asker` and `:guests_project`."""
    return {"asker": principal.user_id, "guests_project": principal.guest_project_id}


def visible_projects(principal: Principal) -> Select[UUID]:
    """Ids of the projects the principal may at least use, as a subquery; never fetched before it is needed."""
    return _visible(asker_of(principal), literal(principal.user_id), literal(principal.guest_project_id))


def visible_projects_sql(principal: Principal) -> str:
    """`visible_projects` for a statement that is written as text and given `asker_values`."""
    return _visible_sql(asker_of(principal))


@cache
def _visible_sql(asker: Asker) -> str:
    found = _visible(asker, literal_column(":asker", Uuid()), literal_column(":guests_project", Uuid()))
    return str(found.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))


def asker_of(principal: Principal) -> Asker:
    return Asker(
        kind=principal.kind,
        is_somebody=principal.user_id is not None,
        is_ceo=principal.org_position == "ceo",
        sees_everything=principal.sees_everything,
    )


def _visible(asker: Asker, me: ColumnElement[Any], guests_project: ColumnElement[Any]) -> Select[UUID]:
    ids = select(Project.id)
    if asker.kind == "guest":
        return ids.where(Project.id == guests_project)
    if asker.sees_everything or (asker.is_somebody and asker.is_ceo):
        return ids
    if not asker.is_somebody:
        return ids.where(_is_open())
    given = _given()
    mine = select(given.c.project_id).where(given.c.user_id == me)
    return ids.where(or_(_is_open(), Project.owner_id == me, Project.id.in_(mine)))


def tiers_of(principal: Principal) -> Subquery:
    """A row for each project: `id`, what each rung of `ORDER` gives the principal, and by them `tier` and `source`.

    Tiers are numbers from 1 (use) to 3 (full); a rung that gives nothing is null, and so are `tier` and `source` when
    all are. It goes into a statement once, joined on `Project.id`.
    """
    return _tiers(asker_of(principal), literal(principal.user_id), literal(principal.guest_project_id))


def tiers_for(asker: Asker) -> Subquery:
    """`tiers_of` for a statement that is kept for all who are alike, and given `asker_values` of each."""
    return _tiers(asker, bindparam("asker", type_=Uuid()), bindparam("guests_project", type_=Uuid()))


def _tiers(asker: Asker, me: ColumnElement[Any], guests_project: ColumnElement[Any]) -> Subquery:
    if asker.kind == "guest":
        rungs: Rungs = {"direct": case((Project.id == guests_project, literal(1)))}
        return _ladder(select(Project.id), rungs)
    if not asker.is_somebody:
        rungs = {"platform": _platform_tier(asker), "public": _public_tier()}
        return _ladder(select(Project.id), rungs)
    given = _given()
    held = _by_kind(given, given.c.user_id == me)
    return _ladder(
        select(Project.id).outerjoin(held, held.c.project_id == Project.id),
        {
            "platform": _platform_tier(asker),
            "owner": case((Project.owner_id == me, literal(3))),
            "ceo": case((literal(asker.is_ceo), literal(1))),
            **_held_tiers(held),
            "public": _public_tier(),
        },
    )


def tiers_on(project_id: ProjectId) -> Subquery:
    """A row for each person of the tenant: `user_id`, and the same columns as `tiers_of` for this one project."""
    given = _given()
    held = _by_kind(given, given.c.project_id == project_id)
    people = (
        select(Membership.user_id)
        .select_from(Membership)
        .join(Project, Project.id == project_id)
        .outerjoin(held, held.c.user_id == Membership.user_id)
    )
    return _ladder(
        people,
        {
            "platform": case((Membership.platform_role != "none", _everything_but_the_handbook())),
            "owner": case((Project.owner_id == Membership.user_id, literal(3))),
            "ceo": case((Membership.org_position == "ceo", literal(1))),
            **_held_tiers(held),
            "public": _public_tier(),
        },
    )


async def require(session: AsyncSession, principal: Principal, project_id: ProjectId, tier: Tier) -> Project:
    """The project, if the principal has at least this tier on it.

    Raises `NotFound` when the tenant has no such project or a guest asks for another than theirs, `NotAllowed` when
    the tier is too low or there is none (AC-06).
    """
    found = _project_and_tier(asker_of(principal))
    row = (await session.execute(found, {"project_id": project_id, **asker_values(principal)})).one_or_none()
    if row is None or (row.tier is None and principal.kind == "guest"):
        raise NO_PROJECT
    if row.tier is None:
        raise NotAllowed("You have no access to this project. Ask its owner or an administrator.", code="no_access")
    if row.tier < TIERS.index(tier) + 1:
        raise NotAllowed(
            f"You may {TIERS[row.tier - 1]} this project; this needs {tier}. Ask its owner for access.",
            code="tier_too_low",
            tier=TIERS[row.tier - 1],
        )
    project: Project = row.Project
    return project


@cache
def _project_and_tier(asker: Asker) -> Select[Project, int | None]:
    tiers = tiers_for(asker)
    one = select(Project, tiers.c.tier).join(tiers, tiers.c.id == Project.id)
    return one.where(Project.id == bindparam("project_id"))


async def find_project_by_name(session: AsyncSession, principal: Principal, *, name: str) -> Project | None:
    """The project of this exact name, if the principal can reach it."""
    found = select(Project).where(Project.name == name, Project.id.in_(visible_projects(principal)))
    return (await session.execute(found)).scalar_one_or_none()


def is_live() -> ColumnElement[bool]:
    """Whether the `ProjectGrant` of the surrounding query still counts."""
    return or_(ProjectGrant.expires_at.is_(None), ProjectGrant.expires_at > func.now())


def _given() -> Subquery:
    """Every tier that was given, once for each person it reaches; a condition on a column reaches all four indexes."""

    def reaching(person: SQLColumnExpression[UUID], kind: str, source: Source) -> Any:
        tier = _as_number(ProjectGrant.tier)
        rows: Select[*tuple[Any, ...]] = select(
            ProjectGrant.project_id, person.label("user_id"), literal(source).label("kind"), tier.label("tier")
        )
        return rows.select_from(ProjectGrant).where(ProjectGrant.grantee_kind == kind, is_live())

    members = select(
        ProjectMember.project_id,
        ProjectMember.user_id,
        literal("direct").label("kind"),
        _as_number(ProjectMember.tier).label("tier"),
    )
    groups = reaching(GroupMember.user_id, "group", "group")
    departments = reaching(Membership.user_id, "department", "department")
    return union_all(
        members,
        reaching(ProjectGrant.grantee_id, "user", "direct"),
        groups.join(GroupMember, GroupMember.group_id == ProjectGrant.grantee_id),
        departments.join(Membership, Membership.department_id == ProjectGrant.grantee_id),
    ).subquery("given")


def _by_kind(given: Subquery, condition: ColumnElement[bool]) -> Subquery:
    """The highest tier of each kind, a row for each project and person."""
    kinds = [func.max(given.c.tier).filter(given.c.kind == kind).label(kind) for kind in _GIVEN_KINDS]
    rows = select(given.c.project_id, given.c.user_id, *kinds).where(condition)
    return rows.group_by(given.c.project_id, given.c.user_id).subquery("held")


_GIVEN_KINDS: tuple[Source, ...] = ("direct", "group", "department")


def _held_tiers(held: Subquery) -> Rungs:
    return {kind: held.c[kind] for kind in _GIVEN_KINDS}


def _ladder(rows: Select[Any], rungs: Rungs) -> Subquery:
    columns = [rungs.get(source, NOTHING).label(source) for source in ORDER]
    each = rows.add_columns(*columns).subquery("rungs")
    by_order = [each.c[source] for source in ORDER]
    tier = func.coalesce(*by_order).label("tier")
    source = case(*((each.c[source].is_not(None), literal(source)) for source in ORDER)).label("source")
    return select(each, tier, source).subquery("tiers")


def _platform_tier(asker: Asker) -> ColumnElement[int | None]:
    if asker.kind == "product":
        return literal(3)
    return case((literal(asker.sees_everything), _everything_but_the_handbook()))


def _everything_but_the_handbook() -> ColumnElement[int]:
    """Full, but the handbook is only read: each version brings its own, and takes away what else lies there."""
    return case((Project.is_handbook, 1), else_=3)


def _is_open() -> ColumnElement[bool]:
    return or_(Project.is_private.is_(other=False), Project.is_handbook)


def _public_tier() -> ColumnElement[int | None]:
    """The baseline of a project that is not private; the handbook is there to be read."""
    return case(
        (Project.is_handbook, literal(1)), (Project.is_private.is_(other=False), _as_number(Project.baseline_tier))
    )


def _as_number(tier: SQLColumnExpression[str]) -> ColumnElement[int]:
    return case(*((tier == name, literal(number + 1)) for number, name in enumerate(TIERS)), else_=literal(0))
