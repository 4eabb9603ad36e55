"""The departments of a tenant; a person belongs to one at most."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import Department, Membership
from pharos.identity.people import require_administrator
from pharos.identity.principal import Principal
from pharos.infra.database_errors import flush_unless_taken
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.ids import new_id

MAX_NAME_CHARACTERS = 120


@dataclass(frozen=True)
class DepartmentView:
    id: UUID
    name: str
    people: int


async def list_departments(session: AsyncSession) -> list[DepartmentView]:
    """All departments by name, with how many people they have."""
    people = select(func.count()).where(Membership.department_id == Department.id).scalar_subquery()
    rows = await session.execute(select(Department.id, Department.name, people).order_by(func.lower(Department.name)))
    return [DepartmentView(*row) for row in rows]


async def get_department_by_name(session: AsyncSession, name: str) -> Department:
    """Raises `NotFound`."""
    found = (await session.execute(select(Department).where(Department.name == name))).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"There is no department “{name}”. `pharos department list` shows them.", code="no_such_department"
        )
    return found


async def create_department(session: AsyncSession, principal: Principal, *, name: str) -> Department:
    """Raises `NotAllowed`, `Conflict` when the name is taken, `Invalid`."""
    require_administrator(principal)
    name = checked_name(name)
    await _refuse_taken(session, name)
    department = Department(tenant_id=principal.tenant_id, id=new_id(), name=name)
    session.add(department)
    await flush_unless_taken(session, _taken(name))
    await record_audit(
        session, principal, action="department.created", subject=f"department:{department.id}", name=name
    )
    return department


async def rename_department(
    session: AsyncSession, principal: Principal, *, department_id: UUID, name: str
) -> Department:
    """Raises `NotAllowed`, `NotFound`, `Conflict` when the name is taken, `Invalid`."""
    require_administrator(principal)
    department = await _get(session, department_id)
    name, old = checked_name(name), department.name
    if name != old:
        await _refuse_taken(session, name)
        department.name = name
        await flush_unless_taken(session, _taken(name))
        change = {"old": old, "new": name}
        subject = f"department:{department_id}"
        await record_audit(session, principal, action="department.renamed", subject=subject, name=change)
    return department


async def delete_department(session: AsyncSession, principal: Principal, *, department_id: UUID) -> None:
    """Its people and groups stay, without a department; what was granted to it is gone."""
    require_administrator(principal)
    department = await _get(session, department_id)
    await session.delete(department)
    subject = f"department:{department_id}"
    await record_audit(session, principal, action="department.deleted", subject=subject, name=department.name)


def checked_name(name: str) -> str:
    """A name without needless blanks. Raises `Invalid`."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise Invalid(f"A name has 1 to {MAX_NAME_CHARACTERS} characters.", code="bad_name")
    return name


async def _get(session: AsyncSession, department_id: UUID) -> Department:
    found = await session.execute(select(Department).where(Department.id == department_id).with_for_update())
    department = found.scalar_one_or_none()
    if department is None:
        raise NotFound("There is no such department. `GET /departments` lists them.", code="no_such_department")
    return department


async def _refuse_taken(session: AsyncSession, name: str) -> None:
    if (await session.execute(select(Department.id).where(Department.name == name))).scalar_one_or_none():
        raise _taken(name)


def _taken(name: str) -> Conflict:
    return Conflict(f"There is a department “{name}” already.", code="department_exists")
