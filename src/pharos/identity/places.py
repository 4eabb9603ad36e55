"""A person across tenants: where they belong, and ending what is open there."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from sqlalchemy import select

from pharos.identity.models import Membership, Tenant, User
from pharos.identity.principal import Principal
from pharos.identity.recognise import forget_person
from pharos.identity.sessions import end_sessions
from pharos.identity.sign_in import as_principal, normal_email
from pharos.infra.db_system import system_transaction
from pharos.infra.ids import TenantId, UserId
from pharos.runtime import Runtime


async def find_place(runtime: Runtime, email: str, *, tenant: str | None = None) -> Principal | None:
    """Whoever may sign in with this address, in their first tenant or the one named by its slug."""
    wanted = select(User).where(User.email == normal_email(email), User.disabled_at.is_(None))
    async with system_transaction(runtime.db) as session:
        user = (await session.execute(wanted)).scalar_one_or_none()
    if user is None:
        return None
    mine = select(Membership).where(Membership.user_id == user.id, Membership.disabled_at.is_(None))
    if tenant is not None:
        mine = mine.join(Tenant, Tenant.id == Membership.tenant_id).where(Tenant.slug == tenant)
    async with system_transaction(runtime.db, user_id=UserId(user.id)) as session:
        place = (await session.execute(mine.order_by(Membership.created_at).limit(1))).scalar_one_or_none()
    return None if place is None else as_principal(user, place)


async def end_sessions_everywhere(runtime: Runtime, person: Principal, *, keep: UUID | None = None) -> None:
    """End a person's sessions in every tenant they belong to, except the one to `keep`."""
    assert person.user_id is not None
    mine = select(Membership.tenant_id).where(Membership.user_id == person.user_id)
    async with system_transaction(runtime.db, user_id=person.user_id) as session:
        everywhere = [TenantId(row) for row in (await session.execute(mine)).scalars()]
    for tenant_id in everywhere:
        async with runtime.db.transaction(tenant_id) as session:
            await end_sessions(session, replace(person, tenant_id=tenant_id), user_id=person.user_id, keep=keep)
    forget_person(runtime, person.user_id)
