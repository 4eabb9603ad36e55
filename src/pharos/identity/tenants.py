"""Tenants: the default one, looking one up by its slug, and one for a measurement."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from pharos.identity.models import Tenant
from pharos.identity.principal import Principal, operator
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotFound
from pharos.infra.ids import TenantId, new_id
from pharos.infra.settings import Settings
from pharos.runtime import Runtime, open_runtime

DEFAULT_SLUG = "default"


async def ensure_default_tenant(runtime: Runtime) -> TenantId:
    """The tenant of an installation that serves one organisation, made if it is missing."""
    row = insert(Tenant).values(id=new_id(), slug=DEFAULT_SLUG, name="Default")
    async with system_transaction(runtime.db) as session:
        await session.execute(row.on_conflict_do_nothing(index_elements=["slug"]))
    return await find_tenant(runtime, DEFAULT_SLUG)


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
    """A tenant for a measurement, removed with all it holds at the end, whatever happens inside."""
    tenant = Tenant(id=new_id(), slug=f"scratch-{secrets.token_hex(6)}", name="Scratch")
    async with system_transaction(runtime.db) as session:
        session.add(tenant)
    try:
        yield TenantId(tenant.id)
    finally:
        async with system_transaction(runtime.db) as session:
            await session.execute(delete(Tenant).where(Tenant.id == tenant.id))
