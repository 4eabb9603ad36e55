"""Who is asking, as a route's dependency: a bearer token or a session cookie, checked anew on each request.

A request with an `Authorization` header is judged by it alone; its cookies count for nothing. A change that comes
with a cookie must prove that one of our own pages sent it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request

from pharos.identity.principal import Principal
from pharos.identity.request_limits import count_request
from pharos.identity.sign_in import SignedIn, find_by_claims, find_by_session_token
from pharos.identity.tokens import csrf_token, read_access_token
from pharos.infra.errors import NotAllowed, NotSignedIn
from pharos.runtime import Runtime

COOKIE = "pharos_session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
ADMIN_ROLES = {"admin", "superadmin"}
ENGINEER_ROLES = {"engineer", *ADMIN_ROLES}


@dataclass(frozen=True)
class Visitor:
    """A signed-in person and, for pages, the token their forms must carry."""

    signed_in: SignedIn
    csrf_token: str
    by_cookie: bool

    @property
    def principal(self) -> Principal:
        return self.signed_in.principal


def get_runtime(request: Request) -> Runtime:
    """The runtime of this process."""
    runtime: Runtime = request.app.state.runtime
    return runtime


async def current_visitor(request: Request) -> Visitor:
    """Whoever is signed in. Raises `NotSignedIn`, or `NotAllowed` for a change that may be forged."""
    runtime = get_runtime(request)
    authorization = request.headers.get("authorization")
    try:
        signed_in = await _identify(request, runtime)
    except NotSignedIn:
        await count_request(request, runtime, None)
        raise
    await count_request(request, runtime, signed_in.principal)
    visitor = Visitor(
        signed_in=signed_in,
        csrf_token=csrf_token(runtime.settings, signed_in.session_id),
        by_cookie=authorization is None,
    )
    if visitor.by_cookie and request.method not in SAFE_METHODS:
        refuse_cross_site(request)
        check_csrf_token(visitor, await _sent_csrf_token(request))
    structlog.contextvars.bind_contextvars(tenant_id=str(signed_in.principal.tenant_id))
    return visitor


async def current_principal(visitor: Annotated[Visitor, Depends(current_visitor)]) -> Principal:
    """The signed-in person as the slices see them."""
    return visitor.principal


async def current_person(visitor: Annotated[Visitor, Depends(current_visitor)]) -> Principal:
    """A signed-in person, never a program. Raises `NotAllowed` for a program's key."""
    return visitor.principal


async def current_admin(principal: Annotated[Principal, Depends(current_person)]) -> Principal:
    """A signed-in administrator. Raises `NotAllowed` for anybody else."""
    if principal.platform_role not in ADMIN_ROLES:
        raise NotAllowed("This is for administrators. Ask one of yours.", code="not_an_admin")
    return principal


async def current_engineer(principal: Annotated[Principal, Depends(current_person)]) -> Principal:
    """A signed-in engineer or administrator. Raises `NotAllowed` for anybody else."""
    if principal.platform_role not in ENGINEER_ROLES:
        raise NotAllowed("This is for engineers and administrators. Ask one of yours.", code="not_an_engineer")
    return principal


CurrentRuntime = Annotated[Runtime, Depends(get_runtime)]
CurrentVisitor = Annotated[Visitor, Depends(current_visitor)]
CurrentPerson = Annotated[Principal, Depends(current_person)]
CurrentAdmin = Annotated[Principal, Depends(current_admin)]
CurrentEngineer = Annotated[Principal, Depends(current_engineer)]
CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
CurrentAsker = Annotated[Principal, Depends(current_principal)]
CurrentIngester = Annotated[Principal, Depends(current_principal)]


def refuse_cross_site(request: Request) -> None:
    """Raise `NotAllowed` when a browser says that another site made this request."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign_origin = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign_origin or site not in {None, "same-origin", "none"}:
        raise NotAllowed("This request comes from another site and was refused.", code="cross_site")


def check_csrf_token(visitor: Visitor, sent: str) -> None:
    """Raise `NotAllowed` unless `sent` is the token of the visitor's session."""
    if not hmac.compare_digest(sent.encode(), visitor.csrf_token.encode()):
        raise NotAllowed("The page is out of date. Load it again and repeat what you did.", code="bad_csrf_token")


async def _identify(request: Request, runtime: Runtime) -> SignedIn:
    authorization = request.headers.get("authorization")
    if authorization is not None:
        return await _by_bearer(runtime, authorization)
    if token := request.cookies.get(COOKIE):
        return await find_by_session_token(runtime, token)
    raise NotSignedIn("Sign in first: send `Authorization: Bearer …` from `POST /auth/login`.")


async def _by_bearer(runtime: Runtime, authorization: str) -> SignedIn:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotSignedIn("Send the token as `Authorization: Bearer TOKEN`.", code="bad_token")
    return await find_by_claims(runtime, read_access_token(runtime.settings, token.strip()))


async def _sent_csrf_token(request: Request) -> str:
    header = request.headers.get(CSRF_HEADER)
    if header is not None:
        return header
    # Only this kind of form is small and already read; an upload stays a stream and brings the header.
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return str((await request.form()).get(CSRF_FIELD, ""))
    return ""
