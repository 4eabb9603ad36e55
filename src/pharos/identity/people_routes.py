"""People, departments and groups over HTTP, and going from one tenant to another.

They are managed by administrators; engineers manage other things.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from pharos.identity import departments, groups, people, tenants
from pharos.identity import people_schemas as schemas
from pharos.identity.account_state import get_account_state, sign_out_person, unlock_account
from pharos.identity.current import CurrentAdmin, CurrentPerson, CurrentRuntime, CurrentVisitor, origin_of
from pharos.identity.places import go_to_place
from pharos.identity.recognise import forget_person
from pharos.identity.routes import set_session_cookie
from pharos.identity.schemas import Tokens
from pharos.infra.errors import NotAllowed
from pharos.infra.ids import UserId

router = APIRouter(tags=["people"])

PageSize = Annotated[int, Query(ge=1, le=200)]
Words = Annotated[str, Query(max_length=200)]


@router.get("/users")
async def list_users(
    principal: CurrentAdmin,
    runtime: CurrentRuntime,
    after: Words = "",
    q: Words = "",
    limit: PageSize = people.PAGE_PEOPLE,
) -> schemas.People:
    """The people of the tenant by e-mail address; `q` is looked for in names and addresses."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found, after_last = await people.list_people(session, after=after, words=q, limit=limit)
    return schemas.People(users=[schemas.Person.model_validate(person) for person in found], next=after_last)


@router.get("/users/{user_id}")
async def get_user(user_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Person:
    """One person; everybody may see themselves, administrators see all."""
    if user_id != principal.user_id:
        people.require_administrator(principal)
    async with runtime.db.transaction(principal.tenant_id) as session:
        return schemas.Person.model_validate(await people.get_person(session, user_id))


@router.patch("/users/{user_id}")
async def change_user(
    user_id: UUID, body: schemas.PlaceChange, principal: CurrentAdmin, runtime: CurrentRuntime
) -> schemas.Person:
    """Another role, position or department. Nobody is made or unmade superadmin here (`forbidden_role`)."""
    changes = body.model_dump(exclude_unset=True)
    async with runtime.db.transaction(principal.tenant_id) as session:
        changed = await people.change_place(session, principal, user_id=user_id, **changes)
    forget_person(runtime, UserId(user_id))
    return schemas.Person.model_validate(changed)


@router.post("/users/{user_id}/disable")
async def disable_user(user_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> schemas.Person:
    """Close this tenant to a person; their sessions in it end."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        changed = await people.set_disabled(session, principal, user_id=user_id, is_disabled=True)
    forget_person(runtime, UserId(user_id))
    return schemas.Person.model_validate(changed)


@router.post("/users/{user_id}/enable")
async def enable_user(user_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> schemas.Person:
    """Open this tenant to a person again."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        changed = await people.set_disabled(session, principal, user_id=user_id, is_disabled=False)
    forget_person(runtime, UserId(user_id))
    return schemas.Person.model_validate(changed)


@router.get("/users/{user_id}/account")
async def get_account(user_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> schemas.Account:
    """Why somebody cannot get in: whether they are locked out, have a password, when they were last here."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        return schemas.Account.model_validate(await get_account_state(session, user_id=user_id))


@router.post("/users/{user_id}/unlock", status_code=204)
async def unlock_user(user_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """Let somebody in who mistyped their password too often; changes nothing for whoever is not locked out."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await unlock_account(session, principal, user_id=user_id)


@router.delete("/users/{user_id}/sessions", status_code=204)
async def sign_user_out(user_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """End all sessions of a person in this tenant."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await sign_out_person(session, principal, user_id=user_id)
    forget_person(runtime, UserId(user_id))


@router.get("/departments")
async def list_departments(principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Departments:
    """All departments by name; whoever gives access needs them."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await departments.list_departments(session)
    return schemas.Departments(departments=[schemas.Department.model_validate(one) for one in found])


@router.post("/departments", status_code=201)
async def create_department(body: schemas.Named, principal: CurrentAdmin, runtime: CurrentRuntime) -> schemas.Id:
    """A new department, without people."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        made = await departments.create_department(session, principal, name=body.name)
    return schemas.Id(id=made.id)


@router.patch("/departments/{department_id}", status_code=204)
async def rename_department(
    department_id: UUID, body: schemas.Named, principal: CurrentAdmin, runtime: CurrentRuntime
) -> None:
    """Another name."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await departments.rename_department(session, principal, department_id=department_id, name=body.name)


@router.delete("/departments/{department_id}", status_code=204)
async def delete_department(department_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """Its people and groups stay, without a department; what was granted to it is gone."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await departments.delete_department(session, principal, department_id=department_id)


@router.get("/groups")
async def list_groups(principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Groups:
    """All groups by name; whoever gives access needs them."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await groups.list_groups(session)
    return schemas.Groups(groups=[schemas.Group.model_validate(one) for one in found])


@router.post("/groups", status_code=201)
async def create_group(body: schemas.NewGroup, principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Id:
    """A new group, without members; a manager makes groups of their own department."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        made = await groups.create_group(session, principal, name=body.name, department_id=body.department_id)
    return schemas.Id(id=made.id)


@router.patch("/groups/{group_id}", status_code=204)
async def rename_group(group_id: UUID, body: schemas.Named, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """Another name."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await groups.rename_group(session, principal, group_id=group_id, name=body.name)


@router.delete("/groups/{group_id}", status_code=204)
async def delete_group(group_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """Its members stay; what was granted to it is gone."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await groups.delete_group(session, principal, group_id=group_id)


@router.get("/groups/{group_id}/members")
async def list_group_members(group_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.GroupMembers:
    """The people of a group; for administrators and managers."""
    if not principal.administrates and principal.org_position != "manager":
        raise NotAllowed("Who is in a group is for administrators and managers to see.", code="not_a_manager")
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await groups.list_members(session, group_id=group_id)
    return schemas.GroupMembers(members=[schemas.GroupMember.model_validate(one) for one in found])


@router.put("/groups/{group_id}/members/{user_id}", status_code=204)
async def add_group_member(group_id: UUID, user_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """Changes nothing when they are in it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await groups.add_member(session, principal, group_id=group_id, user_id=user_id)


@router.delete("/groups/{group_id}/members/{user_id}", status_code=204)
async def remove_group_member(group_id: UUID, user_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """Changes nothing when they are not in it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await groups.remove_member(session, principal, group_id=group_id, user_id=user_id)


@router.patch("/tenant", status_code=204)
async def rename_tenant(body: schemas.Named, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """Call the organisation something else; its slug stays."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await tenants.rename_tenant(session, principal, name=body.name)


@router.get("/auth/tenants")
async def own_tenants(principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Tenants:
    """Where the person may sign in."""
    assert principal.user_id is not None
    found = await tenants.list_tenants_of(runtime, principal.user_id)
    return schemas.Tenants(tenants=[schemas.Tenant.model_validate(tenant) for tenant in found])


@router.post("/auth/tenant", response_model_exclude_none=True)
async def go_to_tenant(
    body: schemas.TenantChoice, request: Request, response: Response, visitor: CurrentVisitor, runtime: CurrentRuntime
) -> Tokens:
    """A session in another tenant of the same person, which lasts no longer than the one that asks.

    A browser leaves the one it had; a program gets an access token alone, and asks again when it has run out.
    """
    issued = await go_to_place(
        runtime, visitor.signed_in, slug=body.slug, is_browser=visitor.by_cookie, origin=origin_of(request)
    )
    if visitor.by_cookie:
        set_session_cookie(response, runtime, issued)
    return Tokens(access_token=issued.access_token, expires_in=issued.expires_in_seconds)
