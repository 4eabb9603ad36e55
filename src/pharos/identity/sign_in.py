"""Sign in and out: one account table, one session table, several doors (C-06)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.lockout import count_failure, count_success
from pharos.identity.models import Membership, RefreshToken, SignInSession, Tenant, User
from pharos.identity.passwords import matches_apart
from pharos.identity.principal import Principal
from pharos.identity.recognise import SignedIn, forget_person
from pharos.identity.same_time import same_time
from pharos.identity.security import MAX_AGENT, Severity, record_security_event
from pharos.identity.tenants import DEFAULT_SLUG
from pharos.identity.tokens import (
    csrf_token,
    issue_access_token,
    login_hash,
    new_refresh_token,
    new_session_token,
    token_hash,
)
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotSignedIn
from pharos.infra.ids import TenantId, UserId, new_id
from pharos.infra.logs import get_logger
from pharos.infra.redact import anonymise_ip
from pharos.runtime import Runtime

log = get_logger(__name__)

SESSION_DAYS = 7
"""How long a browser's cookie opens."""

Door = Literal["password", "form", "setup", "magic_link", "invitation", "password_reset", "tenant"]
Holder = Literal["browser", "program", "brief"]


@dataclass(frozen=True)
class Origin:
    """Where a request comes from: the client's address and what it calls itself; never stored as it is."""

    ip: str = ""
    agent: str = ""


@dataclass(frozen=True)
class IssuedTokens:
    """What signing in gives: a browser its `session_token` as a cookie, a program its `refresh_token`; else ""."""

    principal: Principal
    access_token: str
    csrf_token: str
    expires_in_seconds: int
    session_token: str = ""
    refresh_token: str = ""


async def prove_by_password(
    runtime: Runtime, *, login: str, password: str, tenant: str | None = None, origin: Origin | None = None
) -> Principal:
    """Who this is: a person by e-mail address or user name, in their first tenant or the one named by its slug.

    Raises `NotSignedIn` in the same words and after the same work for a wrong password, an unknown, a disabled, a
    locked and a placeless person.
    """
    name = normal_email(login)
    async with system_transaction(runtime.db) as session:
        found = select(User).where(or_(User.email == name, User.username == name)).order_by(User.email != name).limit(1)
        user = (await session.execute(found)).scalar_one_or_none()
    # Nobody's id and no password: the same statements and the same work, and no row.
    user_id, stored = (user.id, user.password_hash) if user is not None else (new_id(), None)
    matches = await matches_apart(password, stored)
    async with system_transaction(runtime.db, user_id=UserId(user_id)) as session:
        place = await _place_of(session, user_id, tenant)
        is_right = matches and place is not None
        proved_at = await count_success(session, user_id, compared=stored) if is_right else None
    if user is not None and place is not None and proved_at is not None:
        return as_principal(user, place, proved_at=proved_at)
    async with same_time():  # what is noted of somebody is not noted of nobody
        if user is not None and place is not None:
            await _note_failure(runtime, user, place, origin=origin or Origin(), is_wrong=not matches)
        else:
            await _note_unknown(runtime, name, origin=origin or Origin())
    raise NotSignedIn("The e-mail address or the password is wrong.", code="wrong_credentials")


async def open_session(
    runtime: Runtime,
    principal: Principal,
    *,
    door: Door = "password",
    holder: Holder = "browser",
    origin: Origin | None = None,
    asking: SignInSession | None = None,
) -> IssuedTokens:
    """A new session of a person who has proved who they are, or whose session in another tenant is `asking`.

    `holder`: a browser gets a cookie, a program a refresh token, and "brief" the access token alone, with which the
    session ends. It ends no later than the one that asks, and with it, unless that is a browser's, which it replaces.
    """
    assert principal.user_id is not None
    settings, origin = runtime.settings, origin or Origin()
    session_id, tenant_id = new_id(), principal.tenant_id
    cookie = new_session_token(tenant_id) if holder == "browser" else ""
    refresh_token = new_refresh_token(tenant_id) if holder == "program" else ""
    expires_at = datetime.now(UTC) + life_of(runtime, holder)
    parent = asking if holder != "browser" else None
    row = SignInSession(
        tenant_id=tenant_id,
        id=session_id,
        user_id=principal.user_id,
        token_hash=token_hash(settings, cookie) if cookie else None,
        door=door,
        agent=origin.agent[:MAX_AGENT],
        ip=anonymise_ip(origin.ip) if origin.ip else "",
        proved_at=(asking.proved_at if asking else principal.proved_at) or func.now(),
        parent_tenant_id=parent.tenant_id if parent else None,
        parent_session_id=parent.id if parent else None,
        expires_at=min(expires_at, asking.expires_at) if asking else expires_at,
    )
    async with runtime.db.transaction(tenant_id) as session:
        if await _is_new_device(session, principal, agent=row.agent):
            await record_security_event(
                session, tenant_id, event_type="new_device_login", severity="medium", user_id=principal.user_id,
                subject=f"session:{session_id}", ip=origin.ip, agent=origin.agent,
            )  # fmt: skip
        session.add(row)
        await session.flush()
        if refresh_token:
            hashed = token_hash(settings, refresh_token)
            session.add(RefreshToken(tenant_id=tenant_id, token_hash=hashed, session_id=session_id))
        await record_audit(session, principal, action="session.opened", subject=f"session:{session_id}", door=door)
    return tokens_of(runtime, principal, session_id, session_token=cookie, refresh_token=refresh_token)


def tokens_of(
    runtime: Runtime, principal: Principal, session_id: UUID, *, session_token: str = "", refresh_token: str = ""
) -> IssuedTokens:
    """A fresh access token of a session, beside what its holder keeps."""
    assert principal.user_id is not None
    return IssuedTokens(
        principal=principal,
        access_token=issue_access_token(
            runtime.settings, tenant_id=principal.tenant_id, user_id=principal.user_id, session_id=session_id
        ),
        csrf_token=csrf_token(runtime.settings, session_id),
        expires_in_seconds=runtime.settings.access_token_minutes * 60,
        session_token=session_token,
        refresh_token=refresh_token,
    )


def life_of(runtime: Runtime, holder: Holder) -> timedelta:
    """How long a session lasts unless it is ended or, for a program, refreshed."""
    lives = {
        "browser": timedelta(days=SESSION_DAYS),
        "program": timedelta(days=runtime.settings.refresh_token_days),
        "brief": timedelta(minutes=runtime.settings.access_token_minutes),
    }
    return lives[holder]


async def sign_out(runtime: Runtime, signed_in: SignedIn) -> None:
    """End one session; its tokens are worth nothing from now on."""
    assert signed_in.principal.user_id is not None
    async with runtime.db.transaction(signed_in.principal.tenant_id) as session:
        ended = update(SignInSession).where(SignInSession.id == signed_in.session_id)
        await session.execute(ended.values(revoked_at=func.now()))
        await record_audit(
            session, signed_in.principal, action="session.ended", subject=f"session:{signed_in.session_id}"
        )
    forget_person(runtime, signed_in.principal.user_id)


async def record_failure(
    session: AsyncSession, tenant_id: TenantId, *, user_id: UUID, origin: Origin, is_locked_now: bool
) -> None:
    """Tell of a wrong password, and of the lock if it was the one that locks."""
    events: list[tuple[str, Severity]] = [("login_failed", "low")]
    if is_locked_now:
        events.append(("account_locked", "high"))
    for event_type, severity in events:
        await record_security_event(
            session, tenant_id, event_type=event_type, severity=severity, user_id=user_id,
            subject=f"user:{user_id}", ip=origin.ip, agent=origin.agent,
        )  # fmt: skip


def normal_email(email: str) -> str:
    """The form an address or a user name is stored and looked up in."""
    return email.strip().lower()


def as_principal(user: User, membership: Membership, *, proved_at: datetime | None = None) -> Principal:
    """A person in one tenant, as every other slice sees them; `proved_at` for one who has just proved it."""
    return Principal(
        tenant_id=TenantId(membership.tenant_id),
        user_id=UserId(user.id),
        name=user.email,
        platform_role=membership.platform_role,  # type: ignore[arg-type]  # a check constraint holds the values
        org_position=membership.org_position,  # type: ignore[arg-type]
        department_id=membership.department_id,
        proved_at=proved_at,
    )


async def _place_of(session: AsyncSession, user_id: UUID, tenant: str | None) -> Membership | None:
    mine = select(Membership).where(Membership.user_id == user_id, Membership.disabled_at.is_(None))
    mine = mine.order_by(Membership.created_at).limit(1)
    if tenant is not None:
        mine = mine.join(Tenant, Tenant.id == Membership.tenant_id).where(Tenant.slug == tenant)
    return (await session.execute(mine)).scalar_one_or_none()


async def _is_new_device(session: AsyncSession, principal: Principal, *, agent: str) -> bool:
    """Whether somebody who was here before comes with a program they never came with."""
    mine = exists().where(SignInSession.user_id == principal.user_id)
    same = exists().where(SignInSession.user_id == principal.user_id, SignInSession.agent == agent)
    return bool((await session.execute(select(mine & ~same))).scalar_one())


async def _note_failure(runtime: Runtime, user: User, place: Membership, *, origin: Origin, is_wrong: bool) -> None:
    tenant_id = TenantId(place.tenant_id)
    async with runtime.db.transaction(tenant_id) as session:
        is_locked_now = is_wrong and await count_failure(session, user.id)
        await record_failure(session, tenant_id, user_id=user.id, origin=origin, is_locked_now=is_locked_now)


async def _note_unknown(runtime: Runtime, login: str, *, origin: Origin) -> None:
    """Tell the default tenant of a try with a name that opens nothing here: whoever guesses names is seen, the names
    are not, for many are a mistyped password."""
    log.info("sign_in.failed")
    async with system_transaction(runtime.db) as session:
        default = select(Tenant.id).where(Tenant.slug == DEFAULT_SLUG)
        tenant_id = (await session.execute(default)).scalar_one_or_none()
    if tenant_id is None:
        return
    async with runtime.db.transaction(TenantId(tenant_id)) as session:
        await record_security_event(
            session, TenantId(tenant_id), event_type="login_failed", severity="low",
            subject=f"unknown:{login_hash(runtime.settings, login)}", ip=origin.ip, agent=origin.agent,
        )  # fmt: skip
