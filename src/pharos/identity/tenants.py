"""Tenants: making one, looking one up by its slug, the people who belong to several, and one for a measurement."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import Membership, Tenant, User
from pharos.identity.people import require_administrator
from pharos.identity.principal import Principal, operator
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.ids import TenantId, UserId, new_id
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.runtime import Runtime, open_runtime

log = get_logger(__name__)

DEFAULT_SLUG = "default"
SCRATCH = "scratch-"
"""How the slug of a tenant for a measurement begins; nobody else's may."""
ABANDONED_AFTER = timedelta(days=1)
"""No measurement takes longer; a scratch tenant that is still there was left by a killed one."""
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


async def ensure_default_tenant(runtime: Runtime) -> TenantId:
    """The tenant of an installation that serves one organisation, made if it is missing."""
    row = insert(Tenant).values(id=new_id(), slug=DEFAULT_SLUG, name="Default")
    async with system_transaction(runtime.db) as session:
        await session.execute(row.on_conflict_do_nothing(index_elements=["slug"]))
    return await find_tenant(runtime, DEFAULT_SLUG)


async def create_tenant(runtime: Runtime, *, slug: str, name: str) -> TenantId:
    """A new, empty tenant. Raises `Conflict` when the slug is taken, `Invalid` for a slug or a name that is none."""
    name = _checked_name(name)
    if SLUG.fullmatch(slug) is None:
        raise Invalid("A slug has 3 to 63 small letters, digits and hyphens between them.", code="bad_slug")
    if slug.startswith(SCRATCH):
        raise Invalid(
            f"{SCRATCH} begins the slugs of measurements, which are removed. Choose another.", code="bad_slug"
        )
    tenant_id = TenantId(new_id())
    row = insert(Tenant).values(id=tenant_id, slug=slug, name=name)
    async with runtime.db.transaction(tenant_id) as session:
        made = await session.execute(row.on_conflict_do_nothing(index_elements=["slug"]).returning(Tenant.id))
        if made.scalar_one_or_none() is None:
            raise Conflict(f"There is a tenant “{slug}” already.", code="tenant_exists")
        await record_audit(
            session, operator(tenant_id), action="tenant.created", subject=f"tenant:{tenant_id}", slug=slug, name=name
        )
    return tenant_id


async def name_of(session: AsyncSession, tenant_id: TenantId) -> str:
    """What the tenant is called."""
    return (await session.execute(select(Tenant.name).where(Tenant.id == tenant_id))).scalar_one()


async def rename_tenant(session: AsyncSession, principal: Principal, *, name: str) -> str:
    """Call the principal's tenant something else; its slug stays. Returns the name as it is kept; raises `Invalid`."""
    require_administrator(principal)
    old, new = await name_of(session, principal.tenant_id), _checked_name(name)
    if new != old:
        await session.execute(update(Tenant).where(Tenant.id == principal.tenant_id).values(name=new))
        subject = f"tenant:{principal.tenant_id}"
        await record_audit(session, principal, action="tenant.renamed", subject=subject, old=old, new=new)
    return new


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not 1 <= len(name) <= 200:
        raise Invalid("A tenant's name has 1 to 200 characters.", code="bad_name")
    return name


async def list_tenants(runtime: Runtime) -> list[Tenant]:
    """All tenants of the installation by slug, for the operator and the worker; none of a measurement, which tends
    itself and may vanish meanwhile."""
    lasting = select(Tenant).where(~Tenant.slug.startswith(SCRATCH, autoescape=True)).order_by(Tenant.slug)
    async with system_transaction(runtime.db) as session:
        return list((await session.execute(lasting)).scalars())


async def list_tenants_of(runtime: Runtime, user_id: UserId) -> list[Tenant]:
    """Where a person may sign in, by name."""
    mine = select(Membership.tenant_id).where(Membership.user_id == user_id, Membership.disabled_at.is_(None))
    found = select(Tenant).where(Tenant.id.in_(mine)).order_by(Tenant.name, Tenant.slug)
    async with system_transaction(runtime.db, user_id=user_id) as session:
        return list((await session.execute(found)).scalars())


async def is_default_tenant(runtime: Runtime, tenant_id: TenantId) -> bool:
    """Whether it is the installation's own organisation: its administrators also see what is of all tenants."""
    async with system_transaction(runtime.db) as session:
        slug = (await session.execute(select(Tenant.slug).where(Tenant.id == tenant_id))).scalar_one_or_none()
    return slug == DEFAULT_SLUG


async def get_tenant(runtime: Runtime, slug: str) -> Tenant:
    """Raises `NotFound`."""
    async with system_transaction(runtime.db) as session:
        found = (await session.execute(select(Tenant).where(Tenant.slug == slug))).scalar_one_or_none()
    if found is None:
        raise NotFound(f"There is no tenant “{slug}”. `pharos tenant list` shows them.", code="no_such_tenant")
    return found


async def add_place(runtime: Runtime, principal: Principal, *, email: str) -> bool:
    """Give a person who has an account a place in the principal's tenant; False when they have one.

    Raises `NotFound` when nobody has this address.
    """
    async with system_transaction(runtime.db) as session:
        wanted = select(User.id).where(User.email == email.strip().lower())
        user_id = (await session.execute(wanted)).scalar_one_or_none()
    if user_id is None:
        raise NotFound(f"Nobody has the address {email}. Invite them, or make the account first.", code="no_such_user")
    row = insert(Membership).values(tenant_id=principal.tenant_id, user_id=user_id)
    async with runtime.db.transaction(principal.tenant_id) as session:
        added = await session.execute(row.on_conflict_do_nothing().returning(Membership.user_id))
        is_new = added.scalar_one_or_none() is not None
        if is_new:
            await record_audit(session, principal, action="person.added", subject=f"user:{user_id}")
    return is_new


async def find_tenant(runtime: Runtime, slug: str) -> TenantId:
    """The id of a tenant. Raises `NotFound`."""
    async with system_transaction(runtime.db) as session:
        found = (await session.execute(select(Tenant.id).where(Tenant.slug == slug))).scalar_one_or_none()
    if found is None:
        raise NotFound(f"There is no tenant “{slug}”. `pharos seed` makes the default one.", code="no_such_tenant")
    return TenantId(found)


@asynccontextmanager
async def as_operator(tenant: str) -> AsyncIterator[tuple[Runtime, Principal]]:
    """The runtime, and the operator at this machine inside one tenant."""
    async with open_runtime(Settings()) as runtime:
        yield runtime, operator(await find_tenant(runtime, tenant))


@asynccontextmanager
async def scratch_tenant(runtime: Runtime) -> AsyncIterator[TenantId]:
    """A tenant for a measurement, removed with all it holds at the end, whatever happens inside.

    Nothing inside may be audited: the audit log cannot be deleted, and would keep the tenant.
    """
    tenant = Tenant(id=new_id(), slug=f"{SCRATCH}{secrets.token_hex(6)}", name="Scratch")
    async with system_transaction(runtime.db) as session:
        session.add(tenant)
    try:
        yield TenantId(tenant.id)
    finally:
        async with system_transaction(runtime.db) as session:
            await session.execute(delete(Tenant).where(Tenant.id == tenant.id))


async def remove_abandoned_tenants(runtime: Runtime) -> int:
    """Remove the scratch tenants that a killed measurement left behind; returns how many."""
    is_abandoned = Tenant.created_at < func.now() - ABANDONED_AFTER
    abandoned = select(Tenant.id).where(Tenant.slug.startswith(SCRATCH, autoescape=True), is_abandoned)
    async with system_transaction(runtime.db) as session:
        ids = (await session.execute(abandoned)).scalars().all()
    removed = 0
    for tenant_id in ids:
        try:
            async with system_transaction(runtime.db) as session:
                await session.execute(delete(Tenant).where(Tenant.id == tenant_id))
        except IntegrityError:  # it has something in its audit log
            log.warning("tenant.not_removed", tenant_id=str(tenant_id))
        else:
            removed += 1
    return removed
