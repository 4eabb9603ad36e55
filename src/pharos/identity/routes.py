"""First setup, sign-in and sign-out over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from pharos.identity.current import (
    COOKIE,
    CSRF_HEADER,
    AnyVisitor,
    CurrentRuntime,
    CurrentVisitor,
    origin_of,
    refuse_cross_site,
)
from pharos.identity.principal import Principal
from pharos.identity.refresh import refresh
from pharos.identity.request_limits import count_try
from pharos.identity.schemas import BootstrapInit, BootstrapStatus, FormToken, Login, Refresh, Session, Tokens
from pharos.identity.setup import NewPerson, initialise, is_initialised
from pharos.identity.sign_in import (
    SESSION_DAYS,
    Door,
    Holder,
    IssuedTokens,
    open_session,
    prove_by_password,
    sign_out,
)
from pharos.infra.limits import GENERAL, LOGIN, REFRESH, SETUP, ip_subject
from pharos.runtime import Runtime

router = APIRouter(tags=["identity"])


@router.get("/bootstrap/status")
async def bootstrap_status(runtime: CurrentRuntime) -> BootstrapStatus:
    """Whether this installation has its first account."""
    return BootstrapStatus(is_initialized=await is_initialised(runtime))


@router.post("/bootstrap/init", status_code=201, response_model_exclude_none=True)
async def bootstrap_init(body: BootstrapInit, request: Request, response: Response, runtime: CurrentRuntime) -> Tokens:
    """Make the first account with the one-time token that `pharos setup-link` prints, and sign in as it."""
    refuse_cross_site(request)
    await runtime.limits.hit(SETUP, ip_subject(origin_of(request).ip))
    ceo = NewPerson(name=body.ceo.name, email=body.ceo.email, password=body.ceo.password) if body.ceo else None
    owner = NewPerson(name=body.name, email=body.email, password=body.password)
    principal = await initialise(runtime, token=body.token, owner=owner, ceo=ceo, organisation=body.organisation)
    return await hand_out(request, response, runtime, principal, door="setup")


@router.post("/auth/login", response_model_exclude_none=True)
async def login(body: Login, request: Request, response: Response, runtime: CurrentRuntime) -> Tokens:
    """Tokens for a program; for a page of ours (it sends `X-CSRF-Token`) the session cookie."""
    refuse_cross_site(request)
    principal = await _prove(request, runtime, login=body.email, password=body.password, tenant=body.tenant)
    return await hand_out(request, response, runtime, principal, door="password")


@router.post("/auth/token")
async def token(
    request: Request,
    runtime: CurrentRuntime,
    username: Annotated[str, Form(min_length=1, max_length=254, description="A user name or an e-mail address.")],
    password: Annotated[str, Form(min_length=1, max_length=200)],
) -> FormToken:
    """An access token for an OAuth2 password form."""
    refuse_cross_site(request)
    principal = await _prove(request, runtime, login=username, password=password)
    issued = await open_session(runtime, principal, door="form", holder="brief", origin=origin_of(request))
    return FormToken(access_token=issued.access_token)


@router.post("/auth/refresh", response_model_exclude_none=True)
async def refresh_tokens(body: Refresh, request: Request, runtime: CurrentRuntime) -> Tokens:
    """New tokens for a refresh token, which works once."""
    await count_try(request, runtime, REFRESH, None)
    issued = await refresh(runtime, body.refresh_token, origin=origin_of(request))
    return Tokens(
        access_token=issued.access_token, refresh_token=issued.refresh_token, expires_in=issued.expires_in_seconds
    )


@router.post("/auth/logout", status_code=204)
async def logout(response: Response, visitor: AnyVisitor, runtime: CurrentRuntime) -> None:
    """End the session: its cookie, its refresh token and its access tokens."""
    await sign_out(runtime, visitor.signed_in)
    clear_session_cookie(response)


@router.get("/auth/session")
async def session(visitor: CurrentVisitor) -> Session:
    """Who is signed in."""
    principal = visitor.principal
    assert principal.user_id is not None
    return Session(
        user_id=principal.user_id,
        tenant_id=principal.tenant_id,
        name=visitor.signed_in.display_name,
        email=principal.name,
        platform_role=principal.platform_role,
        org_position=principal.org_position,
    )


def set_session_cookie(response: Response, runtime: Runtime, issued: IssuedTokens) -> None:
    """Give a browser its session; no script can read it and no other site can send it with a form."""
    response.set_cookie(
        COOKIE,
        issued.session_token,
        max_age=SESSION_DAYS * 24 * 3600,
        httponly=True,
        secure=runtime.settings.base_url.startswith("https://"),
        samesite="lax",
        path="/",
    )


def clear_session_cookie(response: Response) -> None:
    """Take the session from a browser."""
    response.delete_cookie(COOKIE, path="/")


async def _prove(
    request: Request, runtime: Runtime, *, login: str, password: str, tenant: str | None = None
) -> Principal:
    """Who signs in. Wrong tries are limited by address; an office behind one may come in at once, each person of it as
    often as they may ask anything."""
    origin = origin_of(request)
    await runtime.limits.hit(LOGIN, ip_subject(origin.ip))
    principal = await prove_by_password(runtime, login=login, password=password, tenant=tenant, origin=origin)
    await runtime.limits.take_back(LOGIN, ip_subject(origin.ip))
    await count_try(request, runtime, GENERAL, principal)
    return principal


async def hand_out(
    request: Request, response: Response, runtime: Runtime, principal: Principal, *, door: Door
) -> Tokens:
    """Open a session for whoever has proved who they are: a cookie for a page of ours, else a refresh token."""
    is_page = CSRF_HEADER in request.headers
    holder: Holder = "browser" if is_page else "program"
    issued = await open_session(runtime, principal, door=door, holder=holder, origin=origin_of(request))
    if is_page:
        set_session_cookie(response, runtime, issued)
    return Tokens(
        access_token=issued.access_token,
        refresh_token=None if is_page else issued.refresh_token,
        expires_in=issued.expires_in_seconds,
    )
