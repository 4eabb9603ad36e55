"""A person changes their own password; whoever else sits in one of their sessions is out."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.lockout import count_failure, count_success, refuse_locked
from pharos.identity.models import User
from pharos.identity.passwords import check_new_password, hash_apart, matches_apart
from pharos.identity.principal import Principal
from pharos.identity.recognise import SignedIn, forget_person
from pharos.identity.security import record_security_event
from pharos.identity.sessions import end_sessions
from pharos.identity.sign_in import Origin, record_failure
from pharos.infra.errors import Invalid, NotAllowed
from pharos.runtime import Runtime

WRONG_OLD = NotAllowed("The old password is wrong.", code="wrong_password")


async def change_password(runtime: Runtime, signed_in: SignedIn, *, old: str, new: str, origin: Origin) -> None:
    """Replace the password of whoever is signed in and end their other sessions.

    Raises `NotAllowed` for a wrong old password, which counts towards the lock and is told as at a sign-in;
    `LimitReached` during the lock, be the old password right or wrong; `Invalid` for a new one that is weak or the old
    one.
    """
    check_new_password(new)
    if new == old:
        raise Invalid("The new password is the old one. Choose another.", code="same_password")
    me = signed_in.principal
    assert me.user_id is not None
    async with runtime.db.transaction(me.tenant_id) as session:
        await refuse_locked(session, me.user_id)
        stored = (await session.execute(select(User.password_hash).where(User.id == me.user_id))).scalar_one()
    matches = await matches_apart(old, stored)
    hashed = await hash_apart(new) if matches else None
    async with runtime.db.transaction(me.tenant_id) as session:
        is_proved = hashed is not None and await count_success(session, me.user_id, compared=stored) is not None
        if hashed is not None and is_proved:
            await set_password(session, me, user_id=me.user_id, hashed=hashed, origin=origin, keep=signed_in.session_id)
        elif hashed is None:
            is_locked_now = await count_failure(session, me.user_id)
            await record_failure(session, me.tenant_id, user_id=me.user_id, origin=origin, is_locked_now=is_locked_now)
        else:  # locked meanwhile, or another password was set
            await refuse_locked(session, me.user_id)
    if not is_proved:
        raise WRONG_OLD
    forget_person(runtime, me.user_id)


async def set_password(
    session: AsyncSession,
    actor: Principal,
    *,
    user_id: UUID,
    hashed: str,
    origin: Origin | None = None,
    keep: UUID | None = None,
    must_change: bool = False,
) -> None:
    """Store a password by its hash, end the person's sessions in every tenant but the one to `keep`, tell of it.

    `must_change`: it was handed out and only opens the change to one of their own.
    """
    change = update(User).where(User.id == user_id)
    await session.execute(change.values(password_hash=hashed, must_change_password=must_change))
    await end_sessions(session, actor, user_id=user_id, keep=keep)
    origin = origin or Origin()
    await record_security_event(
        session,
        actor.tenant_id,
        event_type="password_changed",
        severity="medium",
        user_id=user_id,
        subject=f"user:{user_id}",
        ip=origin.ip,
        agent=origin.agent,
    )
    await record_audit(session, actor, action="password.changed", subject=f"user:{user_id}")
