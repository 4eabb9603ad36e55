"""What somebody has left open who may not do it any more: invitations on their way, keys whose text they have seen."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import ApiKey, Membership, OneTimeToken
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event

ADMINISTRATORS = ("admin", "superadmin")
INVITED_BY_ID = "invited_by_id"
"""In an invitation's detail: the id of the person who invited, empty for the operator."""


async def withdraw_invitations_of(session: AsyncSession, actor: Principal, *, user_id: UUID) -> None:
    """Invitations of a person that wait for an answer open nothing any more."""
    waiting = (
        OneTimeToken.purpose == "invitation",
        OneTimeToken.used_at.is_(None),
        OneTimeToken.detail[INVITED_BY_ID].astext == str(user_id),
    )
    void = (
        update(OneTimeToken).where(*waiting).values(used_at=func.now()).returning(OneTimeToken.id, OneTimeToken.email)
    )
    for one in (await session.execute(void)).all():
        subject = f"invitation:{one.id}"
        await record_audit(session, actor, action="invitation.withdrawn", subject=subject, email=one.email)


async def revoke_keys_made_by(session: AsyncSession, actor: Principal, *, user_id: UUID) -> None:
    """End the keys a person made for programs; their own sleep as long as they are disabled."""
    theirs = ApiKey.created_by_id == user_id, ApiKey.user_id.is_distinct_from(user_id), ApiKey.revoked_at.is_(None)
    ended = update(ApiKey).where(*theirs).values(revoked_at=func.now()).returning(ApiKey.id, ApiKey.name)
    for key in (await session.execute(ended)).all():
        subject = f"api_key:{key.id}"
        await record_audit(session, actor, action="api_key.revoked", subject=subject, name=key.name)
        await record_security_event(
            session,
            actor.tenant_id,
            event_type="api_key_revoked",
            severity="medium",
            user_id=user_id,
            subject=subject,
            name=key.name,
        )


async def inviter_still_administrates(session: AsyncSession, invitation: OneTimeToken) -> bool:
    """Whether the invitation comes from the operator or from somebody who could invite at this moment."""
    inviter = str(invitation.detail[INVITED_BY_ID])
    if not inviter:
        return True
    place = select(Membership.user_id).where(
        Membership.user_id == UUID(inviter),
        Membership.platform_role.in_(ADMINISTRATORS),
        Membership.disabled_at.is_(None),
    )
    return (await session.execute(place)).first() is not None
