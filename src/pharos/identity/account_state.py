"""Why somebody cannot get in, or where they still are: what an administrator or the operator asks of an account."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.lockout import unlock
from pharos.identity.models import ApiKey, SignInSession, User
from pharos.identity.people import get_person, require_administrator
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.identity.sessions import list_sessions


@dataclass(frozen=True)
class AccountState:
    """The state of a person's account; sessions and keys are those of the tenant that asks."""

    username: str | None
    has_password: bool
    must_change_password: bool
    failed_sign_ins: int
    locked_until: datetime | None
    open_sessions: int
    last_seen_at: datetime | None
    api_keys: int


async def get_account_state(session: AsyncSession, *, user_id: UUID) -> AccountState:
    """The state of a person's account here. Raises `NotFound`."""
    await get_person(session, user_id)
    user = (await session.execute(select(User).where(User.id == user_id))).scalar_one()
    open_sessions = await list_sessions(session, user_id=user_id)
    seen = select(func.max(SignInSession.last_seen_at)).where(SignInSession.user_id == user_id)
    keys = select(func.count()).where(ApiKey.user_id == user_id, ApiKey.revoked_at.is_(None))
    now = (await session.execute(select(func.now()))).scalar_one()
    return AccountState(
        username=user.username,
        has_password=user.password_hash is not None,
        must_change_password=user.must_change_password,
        failed_sign_ins=user.failed_sign_ins,
        locked_until=user.locked_until if user.locked_until and user.locked_until > now else None,
        open_sessions=len(open_sessions),
        last_seen_at=(await session.execute(seen)).scalar_one(),
        api_keys=(await session.execute(keys)).scalar_one(),
    )


async def unlock_account(session: AsyncSession, actor: Principal, *, user_id: UUID) -> bool:
    """Let somebody in who mistyped their password too often; False if they were not locked out.

    Raises `NotAllowed`, `NotFound` for whoever is not of this tenant.
    """
    require_administrator(actor)
    person = await get_person(session, user_id)
    was_locked = await unlock(session, person.id)
    if was_locked:
        subject = f"user:{person.id}"
        await record_security_event(
            session, actor.tenant_id, event_type="account_unlocked", severity="low", user_id=person.id, subject=subject
        )
        await record_audit(session, actor, action="account.unlocked", subject=subject)
    return was_locked


async def sign_out_person(session: AsyncSession, actor: Principal, *, user_id: UUID) -> int:
    """End a person's sessions in this tenant; those they have in others are not its administrators' to end.

    Returns how many ended. Raises `NotAllowed`, `NotFound` for whoever is not of this tenant.
    """
    require_administrator(actor)
    person = await get_person(session, user_id)
    count = len(await list_sessions(session, user_id=person.id))
    theirs = update(SignInSession).where(SignInSession.user_id == person.id, SignInSession.revoked_at.is_(None))
    await session.execute(theirs.values(revoked_at=func.now()))
    await record_audit(session, actor, action="sessions.ended", subject=f"user:{person.id}", sessions=count)
    return count
