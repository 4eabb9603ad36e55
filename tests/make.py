"""What tests need to exist, made the short way: plain functions, each in a transaction of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import Project
from pharos.identity.models import Department, Group, GroupMember, Membership, Tenant, User
from pharos.identity.passwords import hash_password
from pharos.identity.principal import OrgPosition, PlatformRole, Principal
from pharos.identity.sign_in import open_session
from pharos.infra.db import Database
from pharos.infra.ids import ProjectId, TenantId, UserId, new_id
from pharos.library.models import Document
from pharos.library.upload import receive
from pharos.runtime import Runtime

PASSWORD = "a password for tests"


@dataclass(frozen=True)
class MadeTenant:
    """A tenant and its superadmin."""

    id: TenantId
    slug: str
    admin: Principal


@cache
def password_hash() -> str:
    """Hashing is slow on purpose; once is enough for all tests."""
    return hash_password(PASSWORD)


async def make_tenant(db: Database) -> MadeTenant:
    tenant = Tenant(id=new_id(), slug=f"t-{secrets.token_hex(6)}", name="A tenant")
    tenant_id = TenantId(tenant.id)
    async with db.transaction(tenant_id) as session:
        session.add(tenant)
        admin = await _add_person(session, tenant_id, platform_role="superadmin")
    return MadeTenant(tenant_id, tenant.slug, admin)


async def make_person(
    db: Database,
    tenant_id: TenantId,
    *,
    platform_role: PlatformRole = "none",
    org_position: OrgPosition = "member",
    department_id: UUID | None = None,
) -> Principal:
    """A person who can sign in with `PASSWORD` and the e-mail address that is the principal's name."""
    async with db.transaction(tenant_id) as session:
        return await _add_person(
            session, tenant_id, platform_role=platform_role, org_position=org_position, department_id=department_id
        )


async def _add_person(
    session: AsyncSession,
    tenant_id: TenantId,
    *,
    platform_role: PlatformRole,
    org_position: OrgPosition = "member",
    department_id: UUID | None = None,
) -> Principal:
    user = User(
        id=new_id(), email=f"p-{secrets.token_hex(6)}@example.org", name="A Person", password_hash=password_hash()
    )
    session.add(user)
    await session.flush()
    session.add(
        Membership(
            tenant_id=tenant_id,
            user_id=user.id,
            platform_role=platform_role,
            org_position=org_position,
            department_id=department_id,
        )
    )
    return Principal(
        tenant_id=tenant_id,
        user_id=UserId(user.id),
        name=user.email,
        platform_role=platform_role,
        org_position=org_position,
        department_id=department_id,
    )


async def make_department(db: Database, tenant_id: TenantId) -> UUID:
    department = Department(tenant_id=tenant_id, id=new_id(), name=f"Department {secrets.token_hex(4)}")
    async with db.transaction(tenant_id) as session:
        session.add(department)
    return department.id


async def make_group(db: Database, *members: Principal, tenant_id: TenantId, department_id: UUID | None = None) -> UUID:
    group = Group(tenant_id=tenant_id, id=new_id(), name=f"Group {secrets.token_hex(4)}", department_id=department_id)
    async with db.transaction(tenant_id) as session:
        session.add(group)
        await session.flush()
        session.add_all(
            GroupMember(tenant_id=tenant_id, group_id=group.id, user_id=member.user_id) for member in members
        )
    return group.id


async def make_project(
    db: Database,
    owner: Principal,
    *,
    name: str | None = None,
    is_private: bool = False,
    baseline_tier: str = "use",
    is_handbook: bool = False,
) -> ProjectId:
    project = Project(
        tenant_id=owner.tenant_id,
        id=new_id(),
        name=name or f"Project {secrets.token_hex(4)}",
        owner_id=owner.user_id,
        is_private=is_private,
        baseline_tier=baseline_tier,
        is_handbook=is_handbook,
    )
    async with db.transaction(owner.tenant_id) as session:
        session.add(project)
    return ProjectId(project.id)


async def make_document(
    runtime: Runtime,
    owner: Principal,
    project_id: ProjectId,
    *,
    name: str = "note.txt",
    content: bytes = b"The lighthouse of Alexandria was built on the island of Pharos.",
) -> Document:
    """A document as an upload leaves it: pending; `run_jobs` indexes it."""
    return await receive(runtime, owner, project_id=project_id, name=name, chunks=stream(content))


async def stream(content: bytes, *, chunk_bytes: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(content), chunk_bytes):
        yield content[start : start + chunk_bytes]


async def make_token(runtime: Runtime, principal: Principal) -> str:
    """An access token as signing in gives it."""
    return (await open_session(runtime, principal)).access_token
