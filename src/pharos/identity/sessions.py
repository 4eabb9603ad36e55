"""The sessions of a person: where they are signed in, and ending that."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import Membership, RefreshToken, SignInSession, User
from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_session
from pharos.identity.tokens import SIGN_IN_AGAIN
from pharos.infra.errors import NotFound, NotSignedIn

KEPT = timedelta(days=30)


async def list_sessions(session: AsyncSession, *, user_id: UUID) -> list[SignInSession]:
    """Sessions of a person that are open in this tenant, the one used last first."""
    open_ones = select(SignInSession).where(*_open_of(user_id))
    return list((await session.execute(open_ones.order_by(SignInSession.last_seen_at.desc()))).scalars())


async def end_session(session: AsyncSession, principal: Principal, *, session_id: UUID) -> None:
    """End one of the principal's own sessions. Raises `NotFound`."""
    ended = update(SignInSession).where(
        SignInSession.id == session_id,
        SignInSession.user_id == principal.user_id,
        SignInSession.revoked_at.is_(None),
    )
    found = await session.execute(ended.values(revoked_at=func.now()).returning(SignInSession.id))
    if found.scalar_one_or_none() is None:
        raise NotFound("There is no such session, or it has ended already.", code="no_such_session")
    await record_audit(session, principal, action="session.ended", subject=f"session:{session_id}")


async def end_sessions(session: AsyncSession, actor: Principal, *, user_id: UUID, keep: UUID | None = None) -> int:
    """End all sessions of a person, in every tenant, but the one of this tenant to `keep`.

    Those too that a sign-in under way will open, and what was mailed to the person before. Returns how many ended in
    this tenant. Raises `NotSignedIn` if the one to keep has ended itself.
    """
    # From here on others who end this person's sessions wait: of two who each keep their own one stays signed in.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update())
    if keep is not None and await find_by_session(session, actor.tenant_id, keep) is None:
        raise NotSignedIn(SIGN_IN_AGAIN)
    ended = update(SignInSession).where(*_open_of(user_id), SignInSession.id.is_distinct_from(keep))
    found = await session.execute(ended.values(revoked_at=func.now()).returning(SignInSession.id))
    count = len(found.all())
    everywhere = update(User).where(User.id == user_id).values(sessions_valid_from=func.clock_timestamp())
    valid_from = (await session.execute(everywhere.returning(User.sessions_valid_from))).scalar_one()
    assert valid_from is not None
    if keep is not None:
        kept = update(SignInSession).where(SignInSession.id == keep)
        await session.execute(kept.values(proved_at=valid_from + timedelta(microseconds=1)))
    await record_audit(session, actor, action="sessions.ended", subject=f"user:{user_id}", sessions=count)
    return count


async def count_open_sessions(session: AsyncSession) -> int:
    """Sessions that are open in this tenant."""
    counted = select(func.count()).select_from(SignInSession).where(*_open())
    return int((await session.execute(counted)).scalar_one())


async def end_all_sessions(session: AsyncSession, actor: Principal) -> int:
    """Sign everybody of this tenant out, also those who are just signing in; returns how many sessions ended."""
    ended = await session.execute(
        update(SignInSession).where(*_open()).values(revoked_at=func.now()).returning(SignInSession.id)
    )
    count = len(ended.all())
    here = User.id.in_(select(Membership.user_id))
    await session.execute(update(User).where(here).values(sessions_valid_from=func.clock_timestamp()))
    await record_audit(session, actor, action="sessions.cleared", subject=f"tenant:{actor.tenant_id}", sessions=count)
    return count


async def sweep_sessions(session: AsyncSession) -> int:
    """Remove what ended a month ago: until then a copy of a used refresh token still gives its thief away.

    Returns how many sessions went.
    """
    await session.execute(delete(RefreshToken).where(RefreshToken.used_at < func.now() - KEPT))
    over = func.least(SignInSession.expires_at, func.coalesce(SignInSession.revoked_at, SignInSession.expires_at))
    gone = await session.execute(delete(SignInSession).where(over < func.now() - KEPT).returning(SignInSession.id))
    return len(gone.all())


def _open_of(user_id: UUID) -> tuple[ColumnElement[bool], ...]:
    return (SignInSession.user_id == user_id, *_open())


def _open() -> tuple[ColumnElement[bool], ...]:
    is_over = exists().where(User.id == SignInSession.user_id, User.sessions_valid_from >= SignInSession.proved_at)
    return (
        SignInSession.revoked_at.is_(None),
        SignInSession.expires_at > func.now(),
        ~is_over,
    )
