"""Who is asking, as a route's dependency: a bearer token, a program's key or a session cookie.

The first of them that a request brings decides alone. A change that comes with a cookie must prove that one of our own
pages sent it. A key opens what its scopes say and nothing that administrates (ID-07); every route names what it takes
by the type of its first parameter.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request

from pharos.identity.api_keys import Scope
from pharos.identity.principal import Principal
from pharos.identity.recognise import SignedIn, find_by_api_key, find_by_claims, find_by_session_token
from pharos.identity.request_limits import count_request
from pharos.identity.sign_in import Origin
from pharos.identity.tokens import API_KEY_PREFIX, csrf_token, read_access_token
from pharos.infra.errors import NotAllowed, NotSignedIn
from pharos.infra.http import client_ip
from pharos.runtime import Runtime

COOKIE = "pharos_session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
API_KEY_HEADER = "x-api-key"
KEY_REFUSED = "key_not_allowed"
PASSWORD_CHANGE_REQUIRED = "password_change_required"  # noqa: S105 - a code, not a password
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
ADMIN_ROLES = {"admin", "superadmin"}


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


async def any_visitor(request: Request) -> Visitor:
    """Whoever is signed in, even if they must first choose a new password.

    Raises `NotSignedIn`, or `NotAllowed` for a program's key and for a change that may be forged.
    """
    runtime = get_runtime(request)
    if _offered_key(request) is not None:
        await count_request(request, runtime, None)
        raise NotAllowed("An API key does not open this. Sign in and send `Authorization: Bearer …`.", code=KEY_REFUSED)
    try:
        signed_in = await _identify(request, runtime)
    except NotSignedIn:
        await count_request(request, runtime, None)
        raise
    await count_request(request, runtime, signed_in.principal)
    visitor = visitor_of(runtime, signed_in, by_cookie="authorization" not in request.headers)
    if visitor.by_cookie and request.method not in SAFE_METHODS:
        refuse_cross_site(request)
        check_csrf_token(visitor, await _sent_csrf_token(request))
    structlog.contextvars.bind_contextvars(tenant_id=str(signed_in.principal.tenant_id))
    return visitor


def visitor_of(runtime: Runtime, signed_in: SignedIn, *, by_cookie: bool) -> Visitor:
    """Somebody signed in with the token that their forms must carry."""
    return Visitor(signed_in, csrf_token(runtime.settings, signed_in.session_id), by_cookie)


async def current_visitor(request: Request) -> Visitor:
    """Whoever is signed in. Raises as `any_visitor`, and `NotAllowed` for a password that was only handed out."""
    visitor = await any_visitor(request)
    if visitor.signed_in.must_change_password:
        raise NotAllowed(
            "Choose a password of your own first, with `POST /auth/password`.", code=PASSWORD_CHANGE_REQUIRED
        )
    return visitor


async def current_person(visitor: Annotated[Visitor, Depends(current_visitor)]) -> Principal:
    """A signed-in person, never a program. Raises `NotAllowed` for a program's key."""
    return visitor.principal


async def current_admin(principal: Annotated[Principal, Depends(current_person)]) -> Principal:
    """A signed-in administrator. Raises `NotAllowed` for anybody else."""
    if principal.platform_role not in ADMIN_ROLES:
        raise NotAllowed("This is for administrators. Ask one of yours.", code="not_an_admin")
    return principal


async def current_principal(request: Request) -> Principal:
    """A person, or a program whose key may read; a program changes nothing where the route names no other scope."""
    return await _principal(request, scope="read" if request.method in SAFE_METHODS else None)


async def current_reader(request: Request) -> Principal:
    """A person, or a program whose key may read; for questions that are asked with POST."""
    return await _principal(request, scope="read")


async def current_asker(request: Request) -> Principal:
    """A person, or a program whose key may ask."""
    return await _principal(request, scope="ask")


async def current_client(request: Request) -> Principal:
    """As `current_asker`; a key may also come as `Authorization: Bearer`, the only way OpenAI's clients know."""
    return await _principal(request, scope="ask", is_key_a_bearer=True)


async def current_ingester(request: Request) -> Principal:
    """A person, or a program whose key may put documents in and take them out."""
    return await _principal(request, scope="ingest")


CurrentRuntime = Annotated[Runtime, Depends(get_runtime)]
AnyVisitor = Annotated[Visitor, Depends(any_visitor)]
CurrentVisitor = Annotated[Visitor, Depends(current_visitor)]
CurrentPerson = Annotated[Principal, Depends(current_person)]
CurrentAdmin = Annotated[Principal, Depends(current_admin)]
CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
CurrentReader = Annotated[Principal, Depends(current_reader)]
CurrentAsker = Annotated[Principal, Depends(current_asker)]
CurrentClient = Annotated[Principal, Depends(current_client)]
CurrentIngester = Annotated[Principal, Depends(current_ingester)]

KNOWS_WHO_ASKS = {
    any_visitor,
    current_visitor,
    current_principal,
    current_reader,
    current_asker,
    current_client,
    current_ingester,
}
"""Dependencies that identify the caller and count the request as theirs."""


def origin_of(request: Request) -> Origin:
    """Where a request comes from, for sessions and security events."""
    ip = client_ip(request, get_runtime(request).settings)
    return Origin(ip=ip, agent=request.headers.get("user-agent", ""))


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


def _offered_key(request: Request, *, is_key_a_bearer: bool = False) -> str | None:
    authorization = request.headers.get("authorization")
    if authorization is None:
        return request.headers.get(API_KEY_HEADER)
    token = authorization.partition(" ")[2].strip()
    return token if is_key_a_bearer and token.startswith(f"{API_KEY_PREFIX}_") else None


async def _principal(request: Request, *, scope: Scope | None, is_key_a_bearer: bool = False) -> Principal:
    """A person by any door, or a program whose key has the scope; without one no key opens the route."""
    key = _offered_key(request, is_key_a_bearer=is_key_a_bearer)
    if scope is None or key is None:
        return (await current_visitor(request)).principal
    runtime = get_runtime(request)
    try:
        program = await find_by_api_key(runtime, key)
    except NotSignedIn:
        await count_request(request, runtime, None)
        raise
    await count_request(request, runtime, program)
    if program.scopes is not None and scope not in program.scopes:
        raise NotAllowed(f"This API key lacks the scope “{scope}”. Use one that has it.", code="missing_scope")
    structlog.contextvars.bind_contextvars(tenant_id=str(program.tenant_id))
    return program


async def _identify(request: Request, runtime: Runtime) -> SignedIn:
    authorization = request.headers.get("authorization")
    if authorization is not None:
        return await _by_bearer(runtime, authorization)
    if token := request.cookies.get(COOKIE):
        return await find_by_session_token(runtime, token)
    raise NotSignedIn(
        "Sign in first: send `Authorization: Bearer …` from `POST /auth/login`, or a program's `X-API-Key`."
    )


async def _by_bearer(runtime: Runtime, authorization: str) -> SignedIn:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotSignedIn("Send the token as `Authorization: Bearer TOKEN`.")
    return await find_by_claims(runtime, read_access_token(runtime.settings, token.strip()))


async def _sent_csrf_token(request: Request) -> str:
    header = request.headers.get(CSRF_HEADER)
    if header is not None:
        return header
    # Only this kind of form is small and already read; an upload stays a stream and brings the header.
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return str((await request.form()).get(CSRF_FIELD, ""))
    return ""
