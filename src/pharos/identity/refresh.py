"""Refresh tokens: each works once and gives its successor; all of one session are a family (F-33).

Whoever presents a used one again within the grace, because an answer was lost or two of their requests raced, gets
the same successor. Later than that somebody else has a copy, and the whole family ends.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.principal import product
from pharos.identity.recognise import find_by_session, forget_session
from pharos.identity.security import MAX_AGENT, record_security_event
from pharos.identity.sign_in import IssuedTokens, Origin, tokens_of
from pharos.identity.tokens import REFRESH_PREFIX, SIGN_IN_AGAIN, successor_of, tenant_of, token_hash, token_hashes
from pharos.infra.errors import NotSignedIn
from pharos.infra.ids import TenantId
from pharos.runtime import Runtime

GRACE_SECONDS = 30.0
"""F-33. A retried request comes within seconds; a stolen token that is used as fast is caught at the next refresh."""

# One statement: of any number that come with the same token the first to lock its row gives the successor, the others
# find it used. The session lives on with its last token.
EXCHANGE = text(
    """
    with used as (
        update refresh_tokens r set used_at = clock_timestamp()
        from sessions s join users u on u.id = s.user_id
        where r.token_hash = any(:presented) and r.used_at is null and r.issued_at > now() - :life
          and s.tenant_id = r.tenant_id and s.id = r.session_id and s.revoked_at is null and s.expires_at > now()
          and (u.sessions_valid_from is null or u.sessions_valid_from < s.proved_at)
        returning r.tenant_id, r.session_id
    ), issued as (
        insert into refresh_tokens (tenant_id, token_hash, session_id)
        select tenant_id, :successor, session_id from used
    ), prolonged as (
        update sessions s set expires_at = now() + :life from used where s.id = used.session_id
    )
    select session_id from used
    """
)
FIND_USED = text(
    """
    select session_id, used_at > clock_timestamp() - :grace as is_in_grace
    from refresh_tokens where token_hash = any(:presented) and used_at is not null
    """
)
REVOKE = text(
    """
    update sessions set revoked_at = now() where id = :session_id and revoked_at is null returning user_id
    """
)

NOTE_AGENT = text(
    """
    update sessions s set agent = :agent
    from (select id, user_id, agent from sessions where id = :session_id for update) as before
    where s.id = before.id and before.agent <> :agent
    returning before.user_id, before.agent
    """
)


async def refresh(runtime: Runtime, token: str, *, origin: Origin | None = None) -> IssuedTokens:
    """A new access token, and the refresh token that follows this one.

    Raises `NotSignedIn` in the same words for a token that is unknown, expired, ended or used too long ago; the last
    ends the session and is told to the administrators, as is a refresh by another program than the session's.
    """
    tenant_id, successor = tenant_of(token, prefix=REFRESH_PREFIX), successor_of(runtime.settings, token)
    presented = token_hashes(runtime.settings, token)
    values = {
        "presented": presented,
        "successor": token_hash(runtime.settings, successor),
        "life": timedelta(days=runtime.settings.refresh_token_days),
    }
    async with runtime.db.transaction(tenant_id) as session:
        session_id = (await session.execute(EXCHANGE, values)).scalar_one_or_none()
        used = None if session_id is not None else await _find_used(session, presented)
        if used is not None and used.is_in_grace:
            session_id = used.session_id
        holder = await find_by_session(session, tenant_id, session_id) if session_id is not None else None
        if holder is not None and origin is not None:
            await _note_agent(session, tenant_id, session_id=holder.session_id, origin=origin)
        if holder is None and used is not None and not used.is_in_grace:
            await revoke_family(session, tenant_id, session_id=used.session_id, origin=origin or Origin())
    if holder is None:
        if used is not None:
            forget_session(runtime, used.session_id)
        raise NotSignedIn(SIGN_IN_AGAIN)
    return tokens_of(runtime, holder.principal, holder.session_id, refresh_token=successor)


async def revoke_family(session: AsyncSession, tenant_id: TenantId, *, session_id: UUID, origin: Origin) -> None:
    """End the session a used token came back for; nothing more happens if it has ended already."""
    user_id = (await session.execute(REVOKE, {"session_id": session_id})).scalar_one_or_none()
    subject = f"session:{session_id}"
    if user_id is None:
        return
    for event_type in ("token_reuse_detected", "token_family_revoked"):
        await record_security_event(
            session, tenant_id, event_type=event_type, severity="critical", user_id=user_id,
            subject=subject, ip=origin.ip, agent=origin.agent,
        )  # fmt: skip
    await record_audit(session, product(tenant_id), action="session.revoked", subject=subject, reason="token reuse")


async def _note_agent(session: AsyncSession, tenant_id: TenantId, *, session_id: UUID, origin: Origin) -> None:
    """Tell that a session goes on in another program; once, as the session is that program's from now on."""
    values = {"session_id": session_id, "agent": origin.agent[:MAX_AGENT]}
    changed = (await session.execute(NOTE_AGENT, values)).one_or_none()
    if changed is not None:
        await record_security_event(
            session, tenant_id, event_type="suspicious_refresh", severity="medium", user_id=changed.user_id,
            subject=f"session:{session_id}", ip=origin.ip, agent=origin.agent, before=changed.agent,
        )  # fmt: skip


async def _find_used(session: AsyncSession, presented: list[str]) -> Row[Any] | None:
    values = {"presented": presented, "grace": timedelta(seconds=GRACE_SECONDS)}
    return (await session.execute(FIND_USED, values)).one_or_none()
