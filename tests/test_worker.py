"""What the worker tends beside the jobs: every lasting tenant, and of a measurement only what a killed one left."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, text
from tests.make import MadeTenant, make_tenant

from pharos import worker
from pharos.identity.audit import record_audit
from pharos.identity.models import Tenant
from pharos.identity.principal import operator
from pharos.identity.tenants import create_tenant, remove_abandoned_tenants, scratch_tenant
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Invalid, StorageFull
from pharos.infra.ids import TenantId, new_id
from pharos.ops.backup.scratch_folder import scratch_folder
from pharos.runtime import Runtime


async def abandoned_tenant(runtime: Runtime, *, days: int = 2) -> TenantId:
    """As `scratch_tenant` leaves one when it is killed."""
    tenant = Tenant(id=new_id(), slug=f"scratch-{new_id().hex[-12:]}", name="Scratch")
    async with system_transaction(runtime.db) as session:
        session.add(tenant)
        await session.flush()
        await session.execute(
            text("update tenants set created_at = now() - make_interval(days => :days) where id = :id"),
            {"days": days, "id": tenant.id},
        )
    return TenantId(tenant.id)


async def known_tenants(runtime: Runtime) -> set[TenantId]:
    async with system_transaction(runtime.db) as session:
        return {TenantId(row) for row in (await session.execute(select(Tenant.id))).scalars()}


@pytest.fixture
def runtime(fresh_runtime: Runtime) -> Runtime:
    """An installation of its own: what is swept is swept in every tenant there is."""
    return fresh_runtime


@pytest.fixture
async def tenant(runtime: Runtime) -> MadeTenant:
    return await make_tenant(runtime.db)


async def test_a_running_measurement_is_left_to_itself(runtime: Runtime, tenant: MadeTenant) -> None:
    async with scratch_tenant(runtime) as scratch:
        listed = await worker.tenant_ids(runtime)
        assert tenant.id in listed
        assert scratch not in listed
        await worker.sweep(runtime)
        assert scratch in await known_tenants(runtime)


async def test_what_a_killed_measurement_left_is_removed_after_a_day(runtime: Runtime, tenant: MadeTenant) -> None:
    old, fresh = await abandoned_tenant(runtime), await abandoned_tenant(runtime, days=0)
    audited = await abandoned_tenant(runtime)
    async with runtime.db.transaction(audited) as session:
        await record_audit(session, operator(audited), action="project.created", subject="project:none")
    await worker.sweep(runtime)
    known = await known_tenants(runtime)
    assert old not in known
    assert {fresh, audited, tenant.id} <= known  # what is in an audit log stays, and keeps nothing else
    assert await remove_abandoned_tenants(runtime) == 0


async def test_what_a_killed_verification_left_goes_and_a_running_one_stays(runtime: Runtime) -> None:
    left = runtime.settings.data_dir / "tmp" / "scratch-left"
    with scratch_folder(runtime.settings.data_dir, prefix="drill-") as in_use:
        (left / "postgres" / "data").mkdir(parents=True)
        await worker.sweep(runtime)
        assert (left.exists(), in_use.exists()) == (False, True)


async def test_nobodys_tenant_is_named_like_a_measurement(runtime: Runtime) -> None:
    with pytest.raises(Invalid, match="are removed"):
        await create_tenant(runtime, slug="scratch-pad", name="Pad")


async def test_a_round_that_fails_is_followed_by_the_next(runtime: Runtime) -> None:
    """A loop that ended would be missed days later: by backups that nobody made."""
    rounds: list[int] = []

    async def fail(_: Runtime) -> None:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise StorageFull("The disk is full.")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await worker._every(0, fail, runtime)
    assert rounds == [0, 1]
