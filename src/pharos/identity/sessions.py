"""The sessions of a person: where they are signed in, and ending that."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import RefreshToken, SignInSession
from pharos.identity.principal import Principal
from pharos.infra.errors import NotFound

KEPT = timedelta(days=30)


async def list_sessions(session: AsyncSession, *, user_id: UUID) -> list[SignInSession]:
    """Sessions of a person that are open in this tenant, the one used last first."""
    open_ones = select(SignInSession).where(
        SignInSession.user_id == user_id,
        SignInSession.revoked_at.is_(None),
        SignInSession.expires_at > func.now(),
    )
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


async def end_sessions(
    session: AsyncSession, actor: Principal, *, user_id: UUID, keep: UUID | None = None
) -> list[UUID]:
    """End all sessions of a person in this tenant but the one to `keep`; returns their ids."""
    ended = update(SignInSession).where(SignInSession.user_id == user_id, SignInSession.revoked_at.is_(None))
    if keep is not None:
        ended = ended.where(SignInSession.id != keep)
    found = await session.execute(ended.values(revoked_at=func.now()).returning(SignInSession.id))
    ids = list(found.scalars())
    if ids:
        await record_audit(session, actor, action="sessions.ended", subject=f"user:{user_id}", sessions=len(ids))
    return ids


async def sweep_sessions(session: AsyncSession) -> int:
    """Remove what ended a month ago: until then a copy of a used refresh token still gives its thief away.

    Returns how many sessions went.
    """
    await session.execute(delete(RefreshToken).where(RefreshToken.used_at < func.now() - KEPT))
    over = func.least(SignInSession.expires_at, func.coalesce(SignInSession.revoked_at, SignInSession.expires_at))
    gone = await session.execute(delete(SignInSession).where(over < func.now() - KEPT).returning(SignInSession.id))
    return len(gone.all())
