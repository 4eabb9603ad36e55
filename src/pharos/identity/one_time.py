"""What a mail of ours opens once: tokens that are kept as hashes, end soon, and are used up by one statement."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import OneTimeToken, Tenant, User
from pharos.identity.security import record_security_event
from pharos.identity.sign_in import Origin
from pharos.identity.tokens import link_hash, tenant_of
from pharos.infra.errors import NotSignedIn
from pharos.infra.ids import TenantId, new_id
from pharos.runtime import Runtime

Purpose = Literal["magic_link", "password_reset", "invitation", "email_change"]

PREFIX = "pho"
LIFE: dict[Purpose, timedelta] = {
    "magic_link": timedelta(minutes=15),
    "password_reset": timedelta(minutes=60),
    "invitation": timedelta(days=7),
    "email_change": timedelta(minutes=60),
}


class BadLink(NotSignedIn):
    """The link is wrong, used or too old; which of these is not said."""

    code = "bad_link"

    def __init__(self) -> None:
        super().__init__("This link is not valid any more: each works once, and not for long. Ask for a new one.")


def tenant_of_link(token: str) -> TenantId:
    """Where a one-time token belongs. Raises `BadLink` when it is none."""
    try:
        return tenant_of(token, prefix=PREFIX)
    except NotSignedIn as error:
        raise BadLink from error


async def issue_one_time(
    session: AsyncSession,
    *,
    tenant_id: TenantId,
    purpose: Purpose,
    email: str,
    user_id: UUID | None = None,
    **detail: object,
) -> str:
    """A new token, shown only here; `detail` comes back when it is used.

    Older ones stay good until they end: else anybody who knows an address could void its owner's links for ever.
    """
    token = f"{PREFIX}_{tenant_id.hex}_{secrets.token_urlsafe(32)}"
    session.add(
        OneTimeToken(
            tenant_id=tenant_id,
            id=new_id(),
            purpose=purpose,
            email=email,
            user_id=user_id,
            token_hash=link_hash(token),
            detail=detail,
            expires_at=datetime.now(UTC) + LIFE[purpose],
        )
    )
    await session.flush()
    return token


async def find_one_time(session: AsyncSession, *, purpose: Purpose, token: str) -> OneTimeToken | None:
    """The row of a token that would work now; uses nothing up."""
    return (await session.execute(select(OneTimeToken).where(_still_good(purpose, token)))).scalar_one_or_none()


async def use_one_time(session: AsyncSession, *, purpose: Purpose, token: str) -> OneTimeToken:
    """Use a token up: of several who come with it at once, one gets the row. Raises `BadLink`."""
    use = update(OneTimeToken).where(_still_good(purpose, token)).values(used_at=func.now())
    row = (await session.execute(use.returning(OneTimeToken))).scalar_one_or_none()
    if row is None:
        raise BadLink
    return row


async def void_one_time(session: AsyncSession, *, email: str, purposes: tuple[Purpose, ...]) -> None:
    """Nothing that was mailed to this address for these purposes works any more, in the session's tenant."""
    unused = OneTimeToken.email == email, OneTimeToken.purpose.in_(purposes), OneTimeToken.used_at.is_(None)
    await session.execute(update(OneTimeToken).where(*unused).values(used_at=func.now()))


async def record_bad_link(runtime: Runtime, token: str, *, purpose: Purpose, origin: Origin) -> None:
    """Note that somebody came with a link that does not work; for nobody's tenant there is nobody to tell."""
    try:
        tenant_id = tenant_of_link(token)
    except BadLink:
        return
    async with runtime.db.transaction(tenant_id) as session:
        if (await session.execute(select(Tenant.id).where(Tenant.id == tenant_id))).scalar_one_or_none() is not None:
            await record_security_event(
                session, tenant_id, event_type=f"{purpose}_failed", severity="medium", ip=origin.ip, agent=origin.agent
            )


def _still_good(purpose: Purpose, token: str) -> ColumnElement[bool]:
    # A new password or address and signing out everywhere void what was mailed before, in whatever tenant.
    is_void = exists().where(User.id == OneTimeToken.user_id, User.sessions_valid_from >= OneTimeToken.created_at)
    return and_(
        OneTimeToken.token_hash == link_hash(token),
        OneTimeToken.purpose == purpose,
        OneTimeToken.used_at.is_(None),
        OneTimeToken.expires_at > func.now(),
        ~is_void,
    )
