"""Projects: list, make, hide."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Select, Uuid, bindparam, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import HiddenProject, Project
from pharos.access.projects import (
    TIERS,
    Asker,
    Source,
    Tier,
    asker_of,
    asker_values,
    find_project_by_name,
    require,
    tiers_for,
)
from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.infra.database_errors import flush_unless_taken
from pharos.infra.errors import Conflict, Invalid, NotAllowed
from pharos.infra.ids import ProjectId
from pharos.library.models import Document

HANDBOOK_NAME = "Pharos handbook"
MAX_NAME_CHARACTERS = 120


@dataclass(frozen=True)
class ProjectView:
    """A project as one person sees it."""

    id: ProjectId
    name: str
    is_private: bool
    is_handbook: bool
    is_hidden: bool
    tier: Tier
    source: Source
    documents: int
    created_at: datetime


async def list_projects(session: AsyncSession, principal: Principal) -> list[ProjectView]:
    """What the principal can reach, the handbook last, hidden ones included and marked."""
    return await _find_views(session, principal, None)


async def get_project(session: AsyncSession, principal: Principal, *, project_id: ProjectId) -> ProjectView:
    """One project. Raises `NotFound` when it is not there or may not be known."""
    await require(session, principal, project_id, "use")
    (view,) = await _find_views(session, principal, project_id)
    return view


@cache
def _views(asker: Asker, *, is_one: bool) -> Select[*tuple[Any, ...]]:
    """All that can be reached, or `:project_id` alone; building it costs more than asking."""
    documents = (
        select(func.count())
        .where(Document.tenant_id == Project.tenant_id, Document.project_id == Project.id)
        .scalar_subquery()
    )
    me = bindparam("asker", type_=Uuid())
    is_hidden = exists().where(HiddenProject.project_id == Project.id, HiddenProject.user_id == me)
    tiers = tiers_for(asker)
    found = (
        select(
            Project,
            tiers.c.tier,
            tiers.c.source,
            documents.label("documents"),
            is_hidden.label("is_hidden"),
        )
        .join(tiers, tiers.c.id == Project.id)
        .where(tiers.c.tier.is_not(None))
        .order_by(Project.is_handbook, func.lower(Project.name))
    )
    return found.where(Project.id == bindparam("project_id")) if is_one else found


async def _find_views(session: AsyncSession, principal: Principal, project_id: ProjectId | None) -> list[ProjectView]:
    found = _views(asker_of(principal), is_one=project_id is not None)
    rows = await session.execute(found, {"project_id": project_id, **asker_values(principal)})
    return [
        ProjectView(
            id=ProjectId(row.Project.id),
            name=row.Project.name,
            is_private=row.Project.is_private,
            is_handbook=row.Project.is_handbook,
            is_hidden=row.is_hidden,
            tier=TIERS[row.tier - 1],
            source=row.source,
            documents=row.documents,
            created_at=row.Project.created_at,
        )
        for row in rows
    ]


async def create_project(
    session: AsyncSession, principal: Principal, *, name: str, is_private: bool = False, is_handbook: bool = False
) -> Project:
    """A new project owned by the principal. Raises `Conflict` when the name is taken, `NotAllowed`, `Invalid`."""
    if not principal.administrates:
        raise NotAllowed("Only administrators make projects. Ask one to make it and to add you.", code="not_an_admin")
    name = " ".join(name.split())
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise Invalid(f"A project's name has 1 to {MAX_NAME_CHARACTERS} characters.", code="bad_project_name")
    project = Project(
        tenant_id=principal.tenant_id,
        name=name,
        owner_id=principal.user_id,
        is_private=is_private,
        is_handbook=is_handbook,
    )
    taken = Conflict(f"There is a project called “{name}” already.", code="project_exists")
    if await find_project_by_name(session, principal, name=name) is not None:
        raise taken
    session.add(project)
    await flush_unless_taken(session, taken)
    await session.refresh(project)
    await record_audit(session, principal, action="project.created", subject=f"project:{project.id}", name=name)
    return project


async def set_hidden(session: AsyncSession, principal: Principal, *, project_id: ProjectId, is_hidden: bool) -> None:
    """Put a project out of one person's sight, or back; access does not change."""
    project = await require(session, principal, project_id, "use")
    if principal.user_id is None:
        raise Invalid("The operator at the machine has no list to hide a project from.", code="no_person")
    key = {"tenant_id": principal.tenant_id, "project_id": project.id, "user_id": principal.user_id}
    if is_hidden:
        await session.execute(insert(HiddenProject).values(**key).on_conflict_do_nothing())
    else:
        await session.execute(delete(HiddenProject).filter_by(**key))
