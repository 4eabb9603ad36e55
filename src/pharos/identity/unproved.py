"""Who seems to ask while the database is away: what they showed, as the database knows it, to be proved later."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fastapi import Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pharos.identity.current import (
    API_KEY_HEADER,
    COOKIE,
    CSRF_HEADER,
    KNOWS_WHO_ASKS,
    current_asker,
    get_runtime,
    refuse_cross_site,
)
from pharos.identity.principal import Principal
from pharos.identity.recognise import FIND_API_KEY, FIND_SIGN_IN, signed_in_of
from pharos.identity.tokens import API_KEY_PREFIX, api_key_hash, read_access_token, tenant_of, token_hashes
from pharos.infra.database_errors import as_pharos_error
from pharos.infra.errors import NotAllowed, NotSignedIn, Unavailable
from pharos.infra.ids import TenantId, UserId
from pharos.runtime import Runtime


@dataclass(frozen=True)
class Unproved:
    """A sign-in or a key that nobody could ask the database about. Its hashes open nothing."""

    tenant_id: TenantId
    session_id: UUID | None = None
    token_hashes: tuple[str, ...] = ()
    key_hash: str | None = None


async def asker_or_unproved(request: Request) -> Principal | Unproved:
    """Who asks, or while the database is away what they showed. Raises as `current_asker` otherwise."""
    try:
        return await current_asker(request)
    except (DBAPIError, PoolTimeout, OSError) as error:
        if not is_away(error):
            raise
        return shown_by(request)


KNOWS_WHO_ASKS.add(asker_or_unproved)


def is_away(error: Exception) -> bool:
    """Whether an error says that the database does not answer."""
    return isinstance(error, OSError) or isinstance(as_pharos_error(error), Unavailable)


async def prove(runtime: Runtime, shown: Unproved) -> Principal | None:
    """Who it was, if the sign-in or key holds now."""
    if shown.key_hash is not None:
        row = await runtime.db.fetch(FIND_API_KEY, {"tenant_id": shown.tenant_id, "key_hash": shown.key_hash})
        if row is None or "ask" not in row.scopes:
            return None
        user_id = UserId(row.user_id) if row.user_id is not None else None
        return Principal(shown.tenant_id, user_id, f"key:{row.key_name}", kind="program")
    values = {"session_id": shown.session_id, "token_hashes": list(shown.token_hashes)}
    row = await runtime.db.fetch(FIND_SIGN_IN, {"tenant_id": shown.tenant_id, **values})
    return signed_in_of(shown.tenant_id, row).principal if row is not None else None


def shown_by(request: Request) -> Unproved:
    """What a request shows of who asks. Raises `NotSignedIn` and `NotAllowed` for what can be told without asking."""
    runtime = get_runtime(request)
    if authorization := request.headers.get("authorization"):
        claims = read_access_token(runtime.settings, authorization.partition(" ")[2].strip())
        return Unproved(claims.tenant_id, session_id=claims.session_id)
    if key := request.headers.get(API_KEY_HEADER):
        return Unproved(tenant_of(key, prefix=API_KEY_PREFIX), key_hash=api_key_hash(key))
    if token := request.cookies.get(COOKIE):
        refuse_cross_site(request)
        # Which session it is only the database knows; a header of ours no foreign page can send unasked.
        if CSRF_HEADER not in request.headers:
            raise NotAllowed("Send the page's token with it.", code="bad_csrf_token")
        return Unproved(tenant_of(token), token_hashes=tuple(token_hashes(runtime.settings, token)))
    raise NotSignedIn("Sign in first.")
