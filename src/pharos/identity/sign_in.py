"""Sign in and out: one account table, one session table, several doors (C-06)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update

from pharos.identity.audit import record_audit
from pharos.identity.models import Membership, SignInSession, Tenant, User
from pharos.identity.passwords import password_matches
from pharos.identity.principal import Principal
from pharos.identity.tokens import (
    AccessClaims,
    csrf_token,
    issue_access_token,
    new_session_token,
    tenant_of,
    token_hash,
)
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotSignedIn
from pharos.infra.ids import TenantId, UserId, new_id
from pharos.runtime import Runtime

SESSION_DAYS = 7


@dataclass(frozen=True)
class IssuedTokens:
    """What signing in gives: `session_token` is the refresh token of a program or the cookie of a browser."""

    principal: Principal
    access_token: str
    session_token: str
    csrf_token: str
    expires_in_seconds: int


@dataclass(frozen=True)
class SignedIn:
    """A person whose session, account and membership all hold at this moment."""

    principal: Principal
    display_name: str
    session_id: UUID


async def sign_in(runtime: Runtime, *, email: str, password: str, tenant: str | None = None) -> IssuedTokens:
    """Check a password and open a session, in the person's first tenant or the one named by its slug.

    Raises `NotSignedIn` in the same words and after the same work for a wrong password, an unknown, a disabled and a
    placeless person.
    """
    async with system_transaction(runtime.db) as session:
        user = (await session.execute(select(User).where(User.email == normal_email(email)))).scalar_one_or_none()
    stored = user.password_hash if user is not None and user.disabled_at is None else None
    matches = await asyncio.to_thread(password_matches, password, stored)
    place = await _place_of(runtime, user, tenant) if user is not None and matches else None
    if user is None or place is None:
        raise NotSignedIn("The e-mail address or the password is wrong.", code="wrong_credentials")
    return await open_session(runtime, as_principal(user, place))


async def open_session(runtime: Runtime, principal: Principal) -> IssuedTokens:
    """A new session of a person who has proved who they are."""
    assert principal.user_id is not None
    session_id, token = new_id(), new_session_token(principal.tenant_id)
    async with runtime.db.transaction(principal.tenant_id) as session:
        session.add(
            SignInSession(
                tenant_id=principal.tenant_id,
                id=session_id,
                user_id=principal.user_id,
                token_hash=token_hash(runtime.settings, token),
                expires_at=datetime.now(UTC) + timedelta(days=SESSION_DAYS),
            )
        )
        await record_audit(session, principal, action="session.opened", subject=f"session:{session_id}")
    access_token = issue_access_token(
        runtime.settings, tenant_id=principal.tenant_id, user_id=principal.user_id, session_id=session_id
    )
    return IssuedTokens(
        principal=principal,
        access_token=access_token,
        session_token=token,
        csrf_token=csrf_token(runtime.settings, session_id),
        expires_in_seconds=runtime.settings.access_token_minutes * 60,
    )


async def find_by_session_token(runtime: Runtime, token: str) -> SignedIn:
    """Who holds a session token. Raises `NotSignedIn`."""
    condition = SignInSession.token_hash == token_hash(runtime.settings, token)
    return await _find(runtime, tenant_of(token), condition)


async def find_by_claims(runtime: Runtime, claims: AccessClaims) -> SignedIn:
    """Who holds a verified access token, if their session was not ended and they still belong to the tenant."""
    condition = (SignInSession.id == claims.session_id) & (SignInSession.user_id == claims.user_id)
    return await _find(runtime, claims.tenant_id, condition)


async def refresh(runtime: Runtime, token: str) -> IssuedTokens:
    """A new access token, and a new refresh token in place of this one, which is used up.

    One statement exchanges the token, so of two that come with the same one only one wins.
    """
    signed_in = await find_by_session_token(runtime, token)
    tenant_id, successor = signed_in.principal.tenant_id, new_session_token(signed_in.principal.tenant_id)
    old, new = token_hash(runtime.settings, token), token_hash(runtime.settings, successor)
    async with runtime.db.transaction(tenant_id) as session:
        exchange = update(SignInSession).where(SignInSession.token_hash == old, SignInSession.revoked_at.is_(None))
        exchanged = await session.execute(exchange.values(token_hash=new).returning(SignInSession.id))
        if exchanged.scalar_one_or_none() is None:
            raise NotSignedIn("This refresh token was used already. Sign in again.")
    assert signed_in.principal.user_id is not None
    return IssuedTokens(
        principal=signed_in.principal,
        access_token=issue_access_token(
            runtime.settings,
            tenant_id=tenant_id,
            user_id=signed_in.principal.user_id,
            session_id=signed_in.session_id,
        ),
        session_token=successor,
        csrf_token=csrf_token(runtime.settings, signed_in.session_id),
        expires_in_seconds=runtime.settings.access_token_minutes * 60,
    )


async def sign_out(runtime: Runtime, signed_in: SignedIn) -> None:
    """End one session; its tokens are worth nothing from now on."""
    async with runtime.db.transaction(signed_in.principal.tenant_id) as session:
        ended = update(SignInSession).where(SignInSession.id == signed_in.session_id)
        await session.execute(ended.values(revoked_at=func.now()))
        await record_audit(
            session, signed_in.principal, action="session.ended", subject=f"session:{signed_in.session_id}"
        )


def normal_email(email: str) -> str:
    """The form an address is stored and looked up in."""
    return email.strip().lower()


def as_principal(user: User, membership: Membership) -> Principal:
    """A person in one tenant, as every other slice sees them."""
    return Principal(
        tenant_id=TenantId(membership.tenant_id),
        user_id=UserId(user.id),
        name=user.email,
        platform_role=membership.platform_role,  # type: ignore[arg-type]  # a check constraint holds the values
        org_position=membership.org_position,  # type: ignore[arg-type]
        department_id=membership.department_id,
    )


async def _place_of(runtime: Runtime, user: User, tenant: str | None) -> Membership | None:
    mine = select(Membership).where(Membership.user_id == user.id).order_by(Membership.created_at).limit(1)
    if tenant is not None:
        mine = mine.join(Tenant, Tenant.id == Membership.tenant_id).where(Tenant.slug == tenant)
    async with system_transaction(runtime.db, user_id=UserId(user.id)) as session:
        return (await session.execute(mine)).scalar_one_or_none()


async def _find(runtime: Runtime, tenant_id: TenantId, condition: object) -> SignedIn:
    holder = (
        select(SignInSession.id, User, Membership)
        .join(User, User.id == SignInSession.user_id)
        .join(Membership, Membership.user_id == SignInSession.user_id)
        .where(
            condition,  # type: ignore[arg-type]
            SignInSession.revoked_at.is_(None),
            SignInSession.expires_at > func.now(),
            User.disabled_at.is_(None),
        )
    )
    async with runtime.db.transaction(tenant_id) as session:
        row = (await session.execute(holder)).one_or_none()
    if row is None:
        raise NotSignedIn("Your sign-in has ended. Sign in again.")
    return SignedIn(principal=as_principal(row.User, row.Membership), display_name=row.User.name, session_id=row.id)
