"""The doors that open by mail, over HTTP: magic link, forgotten password, invitation, change of address.

Nothing here tells whether an address has an account: neither the answer nor the time it takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from pharos.identity import invitations, magic_link, password_reset
from pharos.identity.current import (
    CurrentAdmin,
    CurrentRuntime,
    CurrentVisitor,
    any_visitor,
    origin_of,
    refuse_cross_site,
)
from pharos.identity.email_change import confirm_email_change, request_email_change
from pharos.identity.mail_door_schemas import (
    Accepted,
    CurrentSession,
    EmailChange,
    EmailChanged,
    Invitation,
    InvitationAcceptance,
    InvitationId,
    Invitations,
    Joined,
    LinkUse,
    MagicLinkRequest,
    MagicLinkSeen,
    MagicLinkTokens,
    NewInvitation,
    PasswordForgotten,
    PasswordReset,
)
from pharos.identity.one_time import BadLink, Purpose, record_bad_link
from pharos.identity.routes import hand_out, session
from pharos.identity.same_time import same_time
from pharos.identity.sign_in import normal_email
from pharos.infra.errors import NotSignedIn
from pharos.infra.limits import (
    INVITATION_EMAIL,
    INVITATION_USER,
    MAGIC_LINK_CONSUME,
    MAGIC_LINK_EMAIL,
    MAGIC_LINK_IP,
    PASSWORD_FORGOTTEN,
    PASSWORD_RESET,
    Policy,
    ip_subject,
)
from pharos.runtime import Runtime

router = APIRouter(tags=["mail doors"])

Token = Annotated[str, Query(max_length=200)]


@router.post("/api/auth/magic-link/request", status_code=202)
async def request_magic_link(body: MagicLinkRequest, request: Request, runtime: CurrentRuntime) -> Accepted:
    """Ask for a sign-in link by mail; one for an address in 60 seconds, one from a place in 20."""
    refuse_cross_site(request)
    origin = origin_of(request)
    await runtime.mail.check()
    await runtime.limits.hit(MAGIC_LINK_IP, ip_subject(origin.ip))
    await runtime.limits.hit(MAGIC_LINK_EMAIL, f"email:{normal_email(body.email)}")
    async with same_time():
        await magic_link.request_magic_link(
            runtime, email=body.email, next_path=body.next, tenant=body.tenant, origin=origin
        )
    return Accepted()


@router.head("/api/auth/magic-link/verify", response_model=MagicLinkSeen, include_in_schema=False)
@router.get("/api/auth/magic-link/verify", response_model=MagicLinkSeen)
async def look_at_magic_link(request: Request, runtime: CurrentRuntime, token: Token) -> MagicLinkSeen | Response:
    """What a link would do. Looking uses nothing up, so scanners of mail may; a browser gets the page to confirm."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{magic_link.LINK_PATH}?{request.url.query}", status_code=303)
    async with _bad_links_counted(request, runtime, token, purpose="magic_link", policy=MAGIC_LINK_CONSUME):
        email, next_path = await magic_link.look_at_magic_link(runtime, token)
    return MagicLinkSeen(email=email, next=next_path)


@router.post("/api/auth/magic-link/verify", response_model_exclude_none=True)
async def use_magic_link(
    body: LinkUse, request: Request, response: Response, runtime: CurrentRuntime
) -> MagicLinkTokens:
    """Sign in with a link; it works once. A page of ours gets the cookie, a program its tokens."""
    refuse_cross_site(request)
    async with _bad_links_counted(request, runtime, body.token, purpose="magic_link", policy=MAGIC_LINK_CONSUME):
        principal, next_path = await magic_link.use_magic_link(runtime, body.token, origin=origin_of(request))
    tokens = await hand_out(request, response, runtime, principal, door="magic_link")
    return MagicLinkTokens(**tokens.model_dump(), next=next_path)


@router.get("/api/auth/session")
async def current_session(request: Request) -> CurrentSession:
    """Who is signed in, if anybody."""
    try:
        visitor = await any_visitor(request)
    except NotSignedIn:
        return CurrentSession(user=None)
    return CurrentSession(user=await session(visitor))


@router.post("/auth/password/forgot", status_code=202)
async def forgot_password(body: PasswordForgotten, request: Request, runtime: CurrentRuntime) -> Accepted:
    """Ask for a link with which a new password can be chosen; three an hour."""
    refuse_cross_site(request)
    origin = origin_of(request)
    await runtime.mail.check()
    await runtime.limits.hit(PASSWORD_FORGOTTEN, ip_subject(origin.ip))
    await runtime.limits.hit(PASSWORD_FORGOTTEN, f"email:{normal_email(body.email)}")
    async with same_time():
        await password_reset.request_password_reset(runtime, email=body.email, origin=origin)
    return Accepted()


@router.post("/auth/password/reset", status_code=204)
async def reset_password(body: PasswordReset, request: Request, runtime: CurrentRuntime) -> None:
    """Choose a new password with the link; every session of the person ends."""
    refuse_cross_site(request)
    async with _bad_links_counted(request, runtime, body.token, purpose="password_reset", policy=PASSWORD_RESET):
        await password_reset.reset_password(
            runtime, token=body.token, password=body.password, origin=origin_of(request)
        )


@router.post("/auth/email", status_code=202)
async def change_email(
    body: EmailChange, request: Request, visitor: CurrentVisitor, runtime: CurrentRuntime
) -> Accepted:
    """Ask for another e-mail address; it counts once the link mailed to it was confirmed."""
    await runtime.mail.check()
    await request_email_change(
        runtime, visitor.signed_in, new_email=body.new_email, password=body.password, origin=origin_of(request)
    )
    return Accepted()


@router.post("/auth/email/confirm")
async def confirm_email(body: LinkUse, request: Request, runtime: CurrentRuntime) -> EmailChanged:
    """Give the account its new address; other sessions end and the old address is told."""
    refuse_cross_site(request)
    async with _bad_links_counted(request, runtime, body.token, purpose="email_change", policy=PASSWORD_RESET):
        return EmailChanged(email=await confirm_email_change(runtime, token=body.token, origin=origin_of(request)))


@router.post("/invitations", status_code=201)
async def invite(body: NewInvitation, principal: CurrentAdmin, runtime: CurrentRuntime) -> InvitationId:
    """Invite somebody by mail; an older invitation of theirs is void. Thirty an hour, three to one address."""
    await runtime.limits.hit(INVITATION_USER, f"user:{principal.user_id}")
    await runtime.limits.hit(INVITATION_EMAIL, f"email:{normal_email(body.email)}")
    invited = invitations.Invited(**body.model_dump())
    return InvitationId(id=await invitations.invite(runtime, principal, invited))


@router.get("/invitations")
async def list_invitations(principal: CurrentAdmin, runtime: CurrentRuntime) -> Invitations:
    """Invitations that wait for an answer, newest first."""
    async with runtime.db.transaction(principal.tenant_id) as db_session:
        rows = await invitations.list_invitations(db_session)
    return Invitations(
        invitations=[
            Invitation(
                id=row.id,
                email=row.email,
                name=str(row.detail["name"]),
                platform_role=str(row.detail["platform_role"]),
                invited_by=str(row.detail["invited_by"]),
                created_at=row.created_at,
                expires_at=row.expires_at,
            )
            for row in rows
        ]
    )


@router.delete("/invitations/{invitation_id}", status_code=204)
async def withdraw_invitation(invitation_id: UUID, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """Make an invitation's link worth nothing."""
    async with runtime.db.transaction(principal.tenant_id) as db_session:
        await invitations.withdraw_invitation(db_session, principal, invitation_id=invitation_id)


@router.post("/invitations/accept", status_code=201, response_model_exclude_none=True)
async def accept_invitation(
    body: InvitationAcceptance, request: Request, response: Response, runtime: CurrentRuntime
) -> Joined:
    """Join the tenant: a new account with its name and password, or the one that has this address."""
    refuse_cross_site(request)
    async with _bad_links_counted(request, runtime, body.token, purpose="invitation", policy=PASSWORD_RESET):
        accepted = await invitations.accept_invitation(
            runtime, token=body.token, name=body.name or "", password=body.password
        )
    if not accepted.is_new:
        return Joined(is_new=False)
    tokens = await hand_out(request, response, runtime, accepted.principal, door="invitation")
    return Joined(is_new=True, **tokens.model_dump())


@asynccontextmanager
async def _bad_links_counted(
    request: Request, runtime: Runtime, token: str, *, purpose: Purpose, policy: Policy
) -> AsyncIterator[None]:
    """Only what does not work counts, so that an office behind one address can use its good links."""
    try:
        yield
    except BadLink:
        origin = origin_of(request)
        await runtime.limits.hit(policy, ip_subject(origin.ip))
        await record_bad_link(runtime, token, purpose=purpose, origin=origin)
        raise
