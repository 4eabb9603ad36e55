"""The people of a tenant: who they are there, and what an administrator may change about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.dismissal import ADMINISTRATORS, revoke_keys_made_by, withdraw_invitations_of
from pharos.identity.models import Department, Membership, SignInSession, User
from pharos.identity.principal import OrgPosition, PlatformRole, Principal
from pharos.identity.security import record_security_event
from pharos.infra.errors import Conflict, Invalid, NotAllowed, NotFound
from pharos.infra.ids import TenantId, UserId

PAGE_PEOPLE = 50


@dataclass(frozen=True)
class Person:
    """A person as their tenant sees them; `is_disabled`: they cannot sign in here."""

    id: UserId
    email: str
    name: str
    platform_role: PlatformRole
    org_position: OrgPosition
    department_id: UUID | None
    department: str | None
    is_disabled: bool
    created_at: datetime


class PlaceChanges(TypedDict, total=False):
    """What is left out stays as it is."""

    platform_role: PlatformRole
    org_position: OrgPosition
    department_id: UUID | None


async def list_people(
    session: AsyncSession,
    *,
    after: str = "",
    words: str = "",
    department_id: UUID | None = None,
    limit: int = PAGE_PEOPLE,
) -> tuple[list[Person], str | None]:
    """People by e-mail address, those behind `after`; and the address to go on from, None at the end.

    `words` is looked for in names and addresses; without a department those of all are listed.
    """
    pattern = f"%{words.lower().replace('%', '').replace('_', '')}%"
    matches = or_(User.email.like(pattern), func.lower(User.name).like(pattern))
    conditions = [User.email > after, matches]
    if department_id is not None:
        conditions.append(Membership.department_id == department_id)
    rows = await session.execute(_people(*conditions).order_by(User.email).limit(limit + 1))
    found = [_person(row) for row in rows]
    return found[:limit], found[limit - 1].email if len(found) > limit else None


async def get_person(session: AsyncSession, user_id: UUID) -> Person:
    """One person of the tenant. Raises `NotFound`."""
    return await _only(session, User.id == user_id, str(user_id))


async def get_person_by_email(session: AsyncSession, email: str) -> Person:
    """One person of the tenant by address, however it is capitalised. Raises `NotFound`."""
    return await _only(session, User.email == email.strip().lower(), email)


async def principal_of(session: AsyncSession, tenant_id: TenantId, person: Person) -> Principal:
    """The person as the one who acts, to see what they would see."""
    return Principal(
        tenant_id=tenant_id,
        user_id=person.id,
        name=person.email,
        platform_role=person.platform_role,
        org_position=person.org_position,
        department_id=person.department_id,
    )


async def change_place(
    session: AsyncSession, principal: Principal, *, user_id: UUID, **changes: Unpack[PlaceChanges]
) -> Person:
    """Give a person another role, position or department.

    Superadmin is handed over by the operator alone: whoever has it becomes an administrator in the same step.

    Raises `NotAllowed` (`forbidden_role` for superadmin by anybody else, or left to nobody), `Conflict` when the tenant
    has its ceo, somebody changes their own role or the heir is no administrator, `Invalid` for a ceo with a department
    or a manager without one.
    """
    require_administrator(principal)
    place = await _lock_place(session, user_id)
    old: dict[str, Any] = {name: getattr(place, name) for name in PlaceChanges.__annotations__}
    new: dict[str, Any] = {**old, **changes}
    if new["org_position"] == "ceo" and "department_id" not in changes:
        new["department_id"] = None
    if new["platform_role"] != old["platform_role"]:
        _check_role(principal, user_id, old=old["platform_role"], new=new["platform_role"])
    if new["platform_role"] == "superadmin" != old["platform_role"]:
        await _take_over(session, principal, place)
    await _check_position(session, user_id, position=new["org_position"], department_id=new["department_id"])
    changed = {name: {"old": _plain(old[name]), "new": _plain(new[name])} for name in old if old[name] != new[name]}
    if changed:
        for name in changed:
            setattr(place, name, new[name])
        try:
            await session.flush()
        except IntegrityError as error:  # two at once: the unique index lets one through
            raise (CEO_TAKEN if "org_position" in changed else SUPERADMIN_TAKEN) from error
        await record_audit(session, principal, action="person.changed", subject=f"user:{user_id}", **changed)
        if new["platform_role"] not in ADMINISTRATORS:
            await withdraw_invitations_of(session, principal, user_id=user_id)
    return await get_person(session, user_id)


async def set_disabled(session: AsyncSession, principal: Principal, *, user_id: UUID, is_disabled: bool) -> Person:
    """Close the tenant to a person, or open it again; other tenants are not touched.

    Closing ends their sessions, the invitations of theirs that wait, and the keys they made for programs.
    """
    require_administrator(principal)
    place = await _lock_place(session, user_id)
    if is_disabled and place.platform_role == "superadmin":
        raise NotAllowed(f"Whoever has the role superadmin cannot be disabled. {HAND_OVER}", code="forbidden_role")
    if user_id == principal.user_id:
        raise Conflict("You cannot disable yourself. Ask another administrator.", code="own_account")
    if (place.disabled_at is not None) != is_disabled:
        place.disabled_at = func.now() if is_disabled else None
        if is_disabled:
            sessions = update(SignInSession).where(SignInSession.user_id == user_id)
            await session.execute(sessions.where(SignInSession.revoked_at.is_(None)).values(revoked_at=func.now()))
            await withdraw_invitations_of(session, principal, user_id=user_id)
            await revoke_keys_made_by(session, principal, user_id=user_id)
        action = "person.disabled" if is_disabled else "person.enabled"
        await record_audit(session, principal, action=action, subject=f"user:{user_id}")
    return await get_person(session, user_id)


def require_administrator(principal: Principal) -> None:
    """Raise `NotAllowed` for anybody who does not manage people."""
    if not principal.administrates:
        raise NotAllowed("This is for administrators. Ask one of yours.", code="not_an_admin")


HAND_OVER = "Hand it to another administrator first, at the machine: `pharos user set OTHER --role superadmin`."
CEO_TAKEN = Conflict("There is a ceo already. Give that person another position first.", code="ceo_taken")
SUPERADMIN_TAKEN = Conflict(
    "Somebody else became superadmin just now. `pharos user list` shows who.", code="superadmin_taken"
)


def _check_role(principal: Principal, user_id: UUID, *, old: str, new: str) -> None:
    if old == "superadmin":
        raise NotAllowed(f"The role superadmin is not simply taken. {HAND_OVER}", code="forbidden_role")
    if new == "superadmin" and not principal.is_operator:
        raise NotAllowed(
            "The role superadmin is handed over at the machine: `pharos user set EMAIL --role superadmin`.",
            code="forbidden_role",
        )
    if user_id == principal.user_id:
        raise Conflict("You cannot change your own role. Ask another administrator.", code="own_account")


async def _take_over(session: AsyncSession, principal: Principal, heir: Membership) -> None:
    """Clear the way for an administrator who becomes superadmin: the one before is an administrator from now on."""
    if heir.platform_role != "admin" or heir.disabled_at is not None:
        raise Conflict(
            "Only an administrator who can sign in becomes superadmin. First `pharos user set EMAIL --role admin`, and "
            "for somebody who is disabled `pharos user enable EMAIL`.",
            code="not_an_admin",
        )
    holder = select(Membership).where(Membership.platform_role == "superadmin").with_for_update()
    former = (await session.execute(holder)).scalar_one_or_none()
    if former is not None:
        former.platform_role = "admin"
        role = {"old": "superadmin", "new": "admin"}
        await record_audit(
            session, principal, action="person.changed", subject=f"user:{former.user_id}", platform_role=role
        )
    await record_security_event(
        session, principal.tenant_id, event_type="superadmin_changed", severity="high", user_id=heir.user_id,
        subject=f"user:{heir.user_id}", former=str(former.user_id) if former is not None else None,
    )  # fmt: skip


async def _check_position(session: AsyncSession, user_id: UUID, *, position: str, department_id: UUID | None) -> None:
    if position == "ceo" and department_id is not None:
        raise Invalid("A ceo stands above the departments and has none. Leave it out.", code="ceo_has_no_department")
    if position == "manager" and department_id is None:
        raise Invalid("A manager leads a department. Say which.", code="manager_needs_department")
    if position == "ceo":
        other = exists().where(Membership.org_position == "ceo", Membership.user_id != user_id)
        if (await session.execute(select(other))).scalar_one():
            raise CEO_TAKEN
    if department_id is not None:
        known = exists().where(Department.id == department_id)
        if not (await session.execute(select(known))).scalar_one():
            raise NotFound("There is no such department. `GET /departments` lists them.", code="no_such_department")


async def _lock_place(session: AsyncSession, user_id: UUID) -> Membership:
    found = await session.execute(select(Membership).where(Membership.user_id == user_id).with_for_update())
    place = found.scalar_one_or_none()
    if place is None:
        raise _nobody(str(user_id))
    return place


def _people(*conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    people: Select[*tuple[Any, ...]] = (
        select(User, Membership, Department.name.label("department"))
        .join(Membership, Membership.user_id == User.id)
        .outerjoin(Department, Department.id == Membership.department_id)
        .where(*conditions)
    )
    return people


async def _only(session: AsyncSession, condition: ColumnElement[bool], asked: str) -> Person:
    row = (await session.execute(_people(condition))).one_or_none()
    if row is None:
        raise _nobody(asked)
    return _person(row)


def _person(row: Row[Any]) -> Person:
    return Person(
        id=UserId(row.User.id),
        email=row.User.email,
        name=row.User.name,
        platform_role=row.Membership.platform_role,
        org_position=row.Membership.org_position,
        department_id=row.Membership.department_id,
        department=row.department,
        is_disabled=row.User.disabled_at is not None or row.Membership.disabled_at is not None,
        created_at=row.Membership.created_at,
    )


def _nobody(asked: str) -> NotFound:
    return NotFound(f"Nobody here is {asked}. `pharos user list` shows who is.", code="no_such_user")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value
