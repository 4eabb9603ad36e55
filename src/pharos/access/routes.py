"""Grants, explanations and share requests over HTTP."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access import explain, grants, schemas, shares
from pharos.access.projects import Tier, require
from pharos.identity.current import CurrentAdmin, CurrentPerson, CurrentRuntime
from pharos.identity.people import get_person, get_person_by_email, require_administrator
from pharos.infra.errors import NotFound
from pharos.infra.ids import ProjectId, UserId

router = APIRouter(tags=["access"])


@router.get("/projects/{project_id}/grants")
async def list_grants(project_id: ProjectId, principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Grants:
    """The grants of a project, expired ones too; for those who have all of it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await grants.list_grants(session, principal, project_id=project_id)
    return schemas.Grants(grants=[schemas.Grant.model_validate(grant) for grant in found])


@router.put("/projects/{project_id}/grants")
async def give_grant(
    project_id: ProjectId, body: schemas.NewGrant, principal: CurrentPerson, runtime: CurrentRuntime
) -> schemas.Grant:
    """Give a person, a group or a department a tier, or change what was given."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await require(session, principal, project_id, "full")  # before an address is looked up
        grantee_id = body.grantee_id or await _id_of(session, body.email or "")
        given = await grants.give(
            session,
            principal,
            project_id=project_id,
            kind=body.grantee_kind,
            grantee_id=grantee_id,
            tier=body.tier,
            expires_at=body.expires_at,
        )
    return schemas.Grant.model_validate(given)


@router.delete("/projects/{project_id}/grants/{grant_id}", status_code=204)
async def revoke_grant(
    project_id: ProjectId, grant_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime
) -> None:
    """Take a grant back."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await grants.revoke(session, principal, project_id=project_id, grant_id=grant_id)


@router.get("/projects/{project_id}/access")
async def who_can_see(project_id: ProjectId, principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.Who:
    """Everybody who can see a project, with tier and source; for those who have all of it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await require(session, principal, project_id, "full")
        found = await explain.list_who(session, project_id=project_id)
    return schemas.Who(users=[schemas.PersonAccess.model_validate(person) for person in found])


@router.get("/projects/{project_id}/access/{user_id}")
async def explain_access(
    project_id: ProjectId, user_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime
) -> schemas.Explanation:
    """Every rung tried for a person; for those who have all of the project, and of themselves for who sees it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        tier_needed: Tier = "use" if user_id == principal.user_id else "full"
        project = await require(session, principal, project_id, tier_needed)
        explained = await explain.explain_access(session, person=await get_person(session, user_id), project=project)
    return schemas.Explanation.model_validate(explained)


@router.get("/users/{user_id}/access")
async def what_can_be_seen(user_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> schemas.What:
    """The projects a person can see; everybody may ask of themselves, administrators of all."""
    if user_id != principal.user_id:
        require_administrator(principal)
    async with runtime.db.transaction(principal.tenant_id) as session:
        person = await get_person(session, user_id)
        found = await explain.list_what(session, principal.tenant_id, person=person)
    return schemas.What(projects=[schemas.ProjectAccess.model_validate(project) for project in found])


@router.get("/admin/share-requests")
async def list_share_requests(
    principal: CurrentAdmin,
    runtime: CurrentRuntime,
    state: Annotated[shares.RequestState | None, Query(description="Without it: all.")] = None,
) -> schemas.ShareRequests:
    """Requests to share a conversation with somebody without an account, the newest first."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await shares.list_requests(session, principal, state=state)
    return schemas.ShareRequests(requests=[schemas.ShareRequest.model_validate(request) for request in found])


@router.post("/admin/share-requests/{request_id}/approve", status_code=201)
async def approve_share_request(
    request_id: UUID, body: schemas.Approval, principal: CurrentAdmin, runtime: CurrentRuntime
) -> schemas.ApprovedShare:
    """The link, shown once. It opens the conversation as it is now, and questions in its project."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        link, token = await shares.approve(session, principal, request_id=request_id, days=body.days)
    return schemas.ApprovedShare(url=shares.share_url(runtime.settings, token), expires_at=link.expires_at)


@router.post("/admin/share-requests/{request_id}/reject", status_code=204)
async def reject_share_request(request_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """Nobody gets a link."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await shares.reject(session, principal, request_id=request_id)


@router.post("/admin/share-requests/{request_id}/revoke", status_code=204)
async def revoke_share_link(request_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """The link of an approved request opens nothing from now on."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await shares.revoke_link(session, principal, request_id=request_id)


async def _id_of(session: AsyncSession, email: str) -> UserId:
    """Whom an address belongs to, told to somebody at a page or a program. Raises `NotFound`."""
    try:
        return (await get_person_by_email(session, email)).id
    except NotFound as error:
        raise NotFound(
            f"Nobody here has the address {email}. Check it; an administrator can invite who is missing.",
            code="no_such_user",
        ) from error
