"""Colleagues by mail: an administrator invites an address, whoever reads its mail accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity import mail_texts
from pharos.identity.audit import record_audit
from pharos.identity.dismissal import inviter_still_administrates
from pharos.identity.models import Department, Group, GroupMember, Membership, OneTimeToken, Tenant, User
from pharos.identity.one_time import (
    BadLink,
    find_one_time,
    issue_one_time,
    tenant_of_link,
    use_one_time,
    void_one_time,
)
from pharos.identity.passwords import check_new_password, hash_apart
from pharos.identity.people import require_administrator
from pharos.identity.principal import PlatformRole, Principal
from pharos.identity.setup import check_email
from pharos.identity.sign_in import as_principal, normal_email
from pharos.infra.errors import Conflict, Invalid, NotAllowed, NotFound
from pharos.infra.ids import TenantId, new_id
from pharos.infra.mail import queue_mail
from pharos.infra.settings import Settings
from pharos.infra.vault import Vault
from pharos.runtime import Runtime

INVITATION_PATH = "/invitation"


@dataclass(frozen=True)
class Invited:
    """Who is invited, and as what; ids are of the tenant that invites."""

    email: str
    name: str = ""
    platform_role: PlatformRole = "none"
    department_id: UUID | None = None
    group_ids: Sequence[UUID] = ()


@dataclass(frozen=True)
class Seen:
    """What an invitation says to whoever holds its link; `has_account`: they need neither name nor password."""

    email: str
    name: str
    tenant: str
    slug: str
    has_account: bool


@dataclass(frozen=True)
class Accepted:
    """Who is in the tenant now; `is_new`: their account was made by accepting."""

    principal: Principal
    is_new: bool


async def invite(runtime: Runtime, principal: Principal, invited: Invited) -> UUID:
    """Invite somebody; an older invitation of theirs is void. Returns the invitation's id.

    Raises `NotAllowed` (`forbidden_role` for superadmin), `Invalid` for what is no address, `NotFound` for a department
    or group that is not there, `Conflict` for somebody who is here already, `MailFailed`.
    """
    require_administrator(principal)
    if invited.platform_role == "superadmin":
        raise NotAllowed("Nobody is invited as superadmin. Choose another role.", code="forbidden_role")
    email = normal_email(invited.email)
    check_email(email)
    await runtime.mail.check()
    async with runtime.db.transaction(principal.tenant_id) as session:
        return await _store(session, runtime.settings, runtime.vault, principal, invited, email)


async def list_invitations(session: AsyncSession) -> list[OneTimeToken]:
    """Invitations of the session's tenant that wait for an answer, newest first."""
    waiting = OneTimeToken.purpose == "invitation", OneTimeToken.used_at.is_(None), OneTimeToken.expires_at > func.now()
    return list(
        (await session.execute(select(OneTimeToken).where(*waiting).order_by(OneTimeToken.id.desc()))).scalars()
    )


async def withdraw_invitation(session: AsyncSession, principal: Principal, *, invitation_id: UUID) -> None:
    """Make an invitation's link worth nothing. Raises `NotFound`."""
    require_administrator(principal)
    mine = OneTimeToken.id == invitation_id, OneTimeToken.purpose == "invitation", OneTimeToken.used_at.is_(None)
    void = update(OneTimeToken).where(*mine).values(used_at=func.now()).returning(OneTimeToken.email)
    email = (await session.execute(void)).scalar_one_or_none()
    if email is None:
        raise NotFound("There is no such invitation that still waits.", code="no_such_invitation")
    subject = f"invitation:{invitation_id}"
    await record_audit(session, principal, action="invitation.withdrawn", subject=subject, email=email)


async def look_at_invitation(runtime: Runtime, token: str) -> Seen:
    """What the page of an invitation shows; uses nothing up. Raises `BadLink`."""
    async with runtime.db.transaction(tenant_of_link(token)) as session:
        row = await find_one_time(session, purpose="invitation", token=token)
        if row is None or not await inviter_still_administrates(session, row):
            raise BadLink
        tenant = (await session.execute(select(Tenant).where(Tenant.id == row.tenant_id))).scalar_one()
        has_account = (await session.execute(select(exists().where(User.email == row.email)))).scalar_one()
        name = str(row.detail["name"])
        return Seen(email=row.email, name=name, tenant=tenant.name, slug=tenant.slug, has_account=has_account)


async def accept_invitation(runtime: Runtime, *, token: str, name: str, password: str | None) -> Accepted:
    """Let the holder of the link in; an account they have already is added to the tenant and stays as it is.

    Raises `BadLink`, or `Invalid` for a bad name or password, which leaves the link good.
    """
    seen = await look_at_invitation(runtime, token)
    hashed, name = None, " ".join((name or seen.name).split())
    if not seen.has_account:
        check_new_password(password or "")
        if not 1 <= len(name) <= 200:
            raise Invalid("A name has 1 to 200 characters.", code="bad_name")
        hashed = await hash_apart(password or "")
    tenant_id = tenant_of_link(token)
    async with runtime.db.transaction(tenant_id) as session:
        row = await use_one_time(session, purpose="invitation", token=token)
        if not await inviter_still_administrates(session, row):
            raise BadLink
        user = (await session.execute(select(User).where(User.email == row.email))).scalar_one_or_none()
        is_new = user is None
        if user is None:
            if hashed is None:  # the account was there a moment ago and is gone
                raise BadLink
            user = User(id=new_id(), email=row.email, name=name, password_hash=hashed)
            session.add(user)
            await session.flush()
        if user.disabled_at is not None:
            raise BadLink
        place = await _join(session, tenant_id, user, row)
        principal = as_principal(user, place, proved_at=row.used_at)
        await void_one_time(session, email=row.email, purposes=("invitation",))
        await record_audit(session, principal, action="invitation.accepted", subject=f"user:{user.id}", is_new=is_new)
    return Accepted(principal=principal, is_new=is_new)


async def _store(  # noqa: PLR0917 - two parts of the world, who, and what
    session: AsyncSession, settings: Settings, vault: Vault, principal: Principal, invited: Invited, email: str
) -> UUID:
    await _refuse_unknown(session, invited)
    here = select(Membership.disabled_at).join(User, User.id == Membership.user_id).where(User.email == email)
    place = (await session.execute(here)).one_or_none()
    if place is not None and place.disabled_at is not None:
        raise Conflict(
            "This person is here already and is shut out. Find them under “People” and choose “Let in again”, or "
            f"`pharos user enable {email}`.",
            code="already_member",
        )
    if place is not None:
        raise Conflict("This person is here already.", code="already_member")
    await void_one_time(session, email=email, purposes=("invitation",))
    token = await issue_one_time(
        session, tenant_id=principal.tenant_id, purpose="invitation", email=email, name=invited.name,
        platform_role=invited.platform_role, department_id=str(invited.department_id or ""),
        group_ids=[str(group_id) for group_id in invited.group_ids], invited_by=principal.name,
        invited_by_id=str(principal.user_id or ""),
    )  # fmt: skip
    tenant = (await session.execute(select(Tenant.name).where(Tenant.id == principal.tenant_id))).scalar_one()
    inviter = "An administrator" if principal.is_operator else principal.name
    letter = mail_texts.invitation(
        f"{settings.base_url}{INVITATION_PATH}?token={token}", tenant=tenant, inviter=inviter
    )
    await queue_mail(
        session, vault, tenant_id=principal.tenant_id, recipient=email, subject=letter.subject, text=letter.text
    )
    stored = await find_one_time(session, purpose="invitation", token=token)
    assert stored is not None
    subject, role = f"invitation:{stored.id}", invited.platform_role
    await record_audit(session, principal, action="person.invited", subject=subject, email=email, role=role)
    return stored.id


async def _refuse_unknown(session: AsyncSession, invited: Invited) -> None:
    if invited.department_id is not None:
        there = select(exists().where(Department.id == invited.department_id))
        if not (await session.execute(there)).scalar_one():
            raise NotFound("There is no such department.", code="no_such_department")
    wanted = set(invited.group_ids)
    found = set((await session.execute(select(Group.id).where(Group.id.in_(wanted)))).scalars())
    if wanted - found:
        raise NotFound("There is no such group.", code="no_such_group")


async def _join(session: AsyncSession, tenant_id: TenantId, user: User, row: OneTimeToken) -> Membership:
    """The membership and groups that the invitation promises, as far as department and groups still exist."""
    place = await session.get(Membership, (tenant_id, user.id))
    if place is not None:
        if place.disabled_at is not None:
            raise BadLink
        return place
    wanted = row.detail["department_id"] or None
    department = select(Department.id).where(Department.id == (UUID(str(wanted)) if wanted else None))
    place = Membership(
        tenant_id=tenant_id,
        user_id=user.id,
        platform_role=str(row.detail["platform_role"]),
        department_id=(await session.execute(department)).scalar_one_or_none(),
    )
    session.add(place)
    await session.flush()
    await session.refresh(place)
    group_ids = row.detail["group_ids"]
    assert isinstance(group_ids, list)
    groups = select(Group.id).where(Group.id.in_([UUID(str(group_id)) for group_id in group_ids]))
    for group_id in (await session.execute(groups)).scalars():
        session.add(GroupMember(tenant_id=tenant_id, group_id=group_id, user_id=user.id))
    await session.flush()
    return place
