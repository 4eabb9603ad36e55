"""Groups: people who are given access together, across the tenant or inside a department."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.departments import checked_name
from pharos.identity.models import Department, Group, GroupMember, User
from pharos.identity.people import get_person
from pharos.identity.principal import Principal
from pharos.infra.database_errors import flush_unless_taken
from pharos.infra.errors import Conflict, Invalid, NotAllowed, NotFound
from pharos.infra.ids import UserId, new_id


@dataclass(frozen=True)
class GroupView:
    """`department` is None for a group of the whole tenant."""

    id: UUID
    name: str
    department_id: UUID | None
    department: str | None
    members: int


@dataclass(frozen=True)
class GroupMemberView:
    user_id: UserId
    email: str
    name: str


async def list_groups(session: AsyncSession) -> list[GroupView]:
    """All groups by name, with how many members they have."""
    members = select(func.count()).where(GroupMember.group_id == Group.id).scalar_subquery()
    rows = await session.execute(
        select(Group.id, Group.name, Group.department_id, Department.name, members)
        .outerjoin(Department, Department.id == Group.department_id)
        .order_by(func.lower(Group.name))
    )
    return [GroupView(*row) for row in rows]


async def list_members(session: AsyncSession, *, group_id: UUID) -> list[GroupMemberView]:
    """The people of a group by e-mail address. Raises `NotFound`."""
    await _get(session, group_id)
    rows = await session.execute(
        select(User.id, User.email, User.name)
        .join(GroupMember, GroupMember.user_id == User.id)
        .where(GroupMember.group_id == group_id)
        .order_by(User.email)
    )
    return [GroupMemberView(UserId(row.id), row.email, row.name) for row in rows]


async def get_group_by_name(session: AsyncSession, name: str) -> Group:
    """Raises `NotFound`."""
    found = (await session.execute(select(Group).where(Group.name == name))).scalar_one_or_none()
    if found is None:
        raise NotFound(f"There is no group “{name}”. `pharos group list` shows them.", code="no_such_group")
    return found


async def create_group(
    session: AsyncSession, principal: Principal, *, name: str, department_id: UUID | None = None
) -> Group:
    """Made by an administrator, or by a manager in the department they lead.

    Raises `NotAllowed`, `NotFound` for the department, `Conflict` when the name is taken, `Invalid`.
    """
    _require_manages(principal, department_id)
    name = checked_name(name)
    if department_id is not None and await session.get(Department, (principal.tenant_id, department_id)) is None:
        raise NotFound("There is no such department. `GET /departments` lists them.", code="no_such_department")
    await _refuse_taken(session, name)
    group = Group(tenant_id=principal.tenant_id, id=new_id(), name=name, department_id=department_id)
    session.add(group)
    await flush_unless_taken(session, _taken(name))
    await record_audit(
        session,
        principal,
        action="group.created",
        subject=f"group:{group.id}",
        name=name,
        department_id=str(department_id) if department_id else None,
    )
    return group


async def rename_group(session: AsyncSession, principal: Principal, *, group_id: UUID, name: str) -> Group:
    """Raises `NotAllowed`, `NotFound`, `Conflict` when the name is taken, `Invalid`."""
    group = await _get_managed(session, principal, group_id)
    name, old = checked_name(name), group.name
    if name != old:
        await _refuse_taken(session, name)
        group.name = name
        await flush_unless_taken(session, _taken(name))
        change = {"old": old, "new": name}
        await record_audit(session, principal, action="group.renamed", subject=f"group:{group_id}", name=change)
    return group


async def delete_group(session: AsyncSession, principal: Principal, *, group_id: UUID) -> None:
    """Its members stay; what was granted to it is gone."""
    group = await _get_managed(session, principal, group_id)
    await session.delete(group)
    await record_audit(session, principal, action="group.deleted", subject=f"group:{group_id}", name=group.name)


async def add_member(session: AsyncSession, principal: Principal, *, group_id: UUID, user_id: UUID) -> None:
    """Changes nothing when they are in it. A manager adds people of their own department only.

    Raises `NotAllowed`, `NotFound` for the group or the person, `Invalid` for a person of another department.
    """
    group = await _get_managed(session, principal, group_id)
    person = await get_person(session, user_id)
    if not principal.administrates and person.department_id != group.department_id:
        raise Invalid(
            f"{person.email} is not of your department. Ask an administrator to add them.", code="not_in_department"
        )
    row = insert(GroupMember).values(tenant_id=principal.tenant_id, group_id=group_id, user_id=user_id)
    added = await session.execute(row.on_conflict_do_nothing().returning(GroupMember.user_id))
    if added.scalar_one_or_none() is not None:
        await _record_member(session, principal, group, action="group.member_added", user_id=user_id)


async def remove_member(session: AsyncSession, principal: Principal, *, group_id: UUID, user_id: UUID) -> None:
    """Changes nothing when they are not in it. Raises `NotAllowed`, `NotFound` for the group."""
    group = await _get_managed(session, principal, group_id)
    row = delete(GroupMember).where(GroupMember.group_id == group_id, GroupMember.user_id == user_id)
    removed = await session.execute(row.returning(GroupMember.user_id))
    if removed.scalar_one_or_none() is not None:
        await _record_member(session, principal, group, action="group.member_removed", user_id=user_id)


async def _record_member(
    session: AsyncSession, principal: Principal, group: Group, *, action: str, user_id: UUID
) -> None:
    """Who came or went, by name: ids alone say nothing to who reads the log."""
    email = (await session.execute(select(User.email).where(User.id == user_id))).scalar_one_or_none()
    await record_audit(
        session, principal, action=action, subject=f"group:{group.id}", group=group.name, person=email,
        user_id=str(user_id),
    )  # fmt: skip


def _require_manages(principal: Principal, department_id: UUID | None) -> None:
    leads = principal.kind == "person" and principal.org_position == "manager" and department_id is not None
    if not principal.administrates and not (leads and principal.department_id == department_id):
        raise NotAllowed(
            "Groups are managed by administrators, and by a manager in their own department.", code="not_a_manager"
        )


async def _get_managed(session: AsyncSession, principal: Principal, group_id: UUID) -> Group:
    group = await _get(session, group_id)
    _require_manages(principal, group.department_id)
    return group


async def _get(session: AsyncSession, group_id: UUID) -> Group:
    found = (await session.execute(select(Group).where(Group.id == group_id))).scalar_one_or_none()
    if found is None:
        raise NotFound("There is no such group. `GET /groups` lists them.", code="no_such_group")
    return found


async def _refuse_taken(session: AsyncSession, name: str) -> None:
    if (await session.execute(select(Group.id).where(Group.name == name))).scalar_one_or_none():
        raise _taken(name)


def _taken(name: str) -> Conflict:
    return Conflict(f"There is a group “{name}” already.", code="group_exists")
