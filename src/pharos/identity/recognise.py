"""Who holds a session or a key: asked of the database in one round trip, or of what was seen a moment ago.

A session that an access token names is remembered for 30 seconds, as long as this process hears of every change (see
`sign_in_news`); a process that cannot hear asks each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.principal import Principal
from pharos.identity.tokens import (
    API_KEY_PREFIX,
    SIGN_IN_AGAIN,
    AccessClaims,
    api_key_hash,
    tenant_of,
    token_hashes,
)
from pharos.infra.errors import NotSignedIn
from pharos.infra.ids import TenantId, UserId
from pharos.runtime import Runtime

FIND_SIGN_IN = text("select * from find_sign_in(:tenant_id, :session_id, cast(:token_hashes as text[]))")
FIND_API_KEY = text("select * from find_api_key(:tenant_id, :key_hash)")
OPENS_NOTHING = "This API key does not open anything. Make a new one with `pharos apikey create`."


@dataclass(frozen=True)
class SignedIn:
    """A person whose session, account and membership all hold at this moment."""

    principal: Principal
    display_name: str
    session_id: UUID
    must_change_password: bool = False


async def find_by_session_token(runtime: Runtime, token: str) -> SignedIn:
    """Who holds the cookie of a session. Raises `NotSignedIn`."""
    hashes = token_hashes(runtime.settings, token)
    return await _ask(runtime, tenant_of(token), session_id=None, token_hashes=hashes)


async def find_by_claims(runtime: Runtime, claims: AccessClaims) -> SignedIn:
    """Who holds a verified access token, if their session was not ended and they still belong to the tenant."""
    remembered = runtime.sign_ins.find(claims.session_id)
    if isinstance(remembered, SignedIn):
        signed_in = remembered
    else:
        changes = runtime.sign_ins.changes
        signed_in = await _ask(runtime, claims.tenant_id, session_id=claims.session_id, token_hashes=[])
        runtime.sign_ins.keep(claims.session_id, signed_in, group=signed_in.principal.user_id, changes=changes)
    if (signed_in.principal.tenant_id, signed_in.principal.user_id) != (claims.tenant_id, claims.user_id):
        raise NotSignedIn(SIGN_IN_AGAIN)
    _note_use(runtime, claims.tenant_id, "sessions", claims.session_id)
    return signed_in


async def find_by_api_key(runtime: Runtime, key: str) -> Principal:
    """The program that holds a key: it acts for the person the key belongs to, if any, and never administrates.

    Raises `NotSignedIn` for a key that is wrong, revoked or expired, or whose person may not sign in here any more.
    """
    try:
        tenant_id = tenant_of(key, prefix=API_KEY_PREFIX)
    except NotSignedIn as error:
        raise NotSignedIn(OPENS_NOTHING) from error
    row = await runtime.db.fetch(FIND_API_KEY, {"tenant_id": tenant_id, "key_hash": api_key_hash(key)})
    if row is None:
        raise NotSignedIn(OPENS_NOTHING)
    _note_use(runtime, tenant_id, "api_keys", row.key_id)
    return Principal(
        tenant_id=tenant_id,
        user_id=UserId(row.user_id) if row.user_id is not None else None,
        name=f"key:{row.key_name}",
        kind="program",
        org_position=row.org_position or "member",
        department_id=row.department_id,
        scopes=frozenset(row.scopes),
    )


async def _ask(runtime: Runtime, tenant_id: TenantId, *, session_id: UUID | None, token_hashes: list[str]) -> SignedIn:
    values: dict[str, object] = {"tenant_id": tenant_id, "session_id": session_id, "token_hashes": token_hashes}
    row = await runtime.db.fetch(FIND_SIGN_IN, values)
    if row is None:
        raise NotSignedIn(SIGN_IN_AGAIN)
    _note_use(runtime, tenant_id, "sessions", row.session_id)
    return signed_in_of(tenant_id, row)


async def find_by_session(session: AsyncSession, tenant_id: TenantId, session_id: UUID) -> SignedIn | None:
    """Whoever holds a session of this tenant, if it is open as the transaction sees it."""
    values = {"tenant_id": tenant_id, "session_id": session_id, "token_hashes": []}
    row = (await session.execute(FIND_SIGN_IN, values)).one_or_none()
    return signed_in_of(tenant_id, row) if row is not None else None


def signed_in_of(tenant_id: TenantId, row: Row[Any]) -> SignedIn:
    """What `find_sign_in` found."""
    return SignedIn(
        principal=Principal(
            tenant_id=tenant_id,
            user_id=UserId(row.user_id),
            name=row.email,
            platform_role=row.platform_role,
            org_position=row.org_position,
            department_id=row.department_id,
        ),
        display_name=row.name,
        session_id=row.session_id,
        must_change_password=row.must_change_password,
    )


def forget_session(runtime: Runtime, session_id: UUID) -> None:
    """This process knows nothing of a session any more; the others hear it from the database."""
    runtime.sign_ins.forget(session_id)


def forget_person(runtime: Runtime, user_id: UUID) -> None:
    """As `forget_session`, for all sessions of a person."""
    runtime.sign_ins.forget_group(user_id)


def _note_use(runtime: Runtime, tenant_id: TenantId, table: str, row_id: UUID) -> None:
    runtime.uses[tenant_id, table, row_id] = datetime.now(UTC)
