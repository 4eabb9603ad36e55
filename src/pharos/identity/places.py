"""A person across tenants: where they belong."""

from __future__ import annotations

from sqlalchemy import select

from pharos.identity.models import Membership, Tenant, User
from pharos.identity.principal import Principal
from pharos.identity.sign_in import as_principal, normal_email
from pharos.infra.db_system import system_transaction
from pharos.infra.ids import UserId
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
