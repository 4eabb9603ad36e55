"""API keys: what opens Pharos to a program. Several at once, narrow, revocable, and shown once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.models import ApiKey, User
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.identity.tokens import API_KEY_PREFIX, api_key_hash, new_api_key
from pharos.infra.errors import Conflict, Invalid, NotAllowed, NotFound
from pharos.infra.ids import new_id

Scope = Literal["read", "ask", "ingest"]
SCOPES: tuple[Scope, ...] = ("read", "ask", "ingest")
DEFAULT_SCOPES: tuple[Scope, ...] = ("read", "ask")
DEFAULT_DAYS = 90
"""A quarter: the key of a program that nobody remembers ends by itself."""
KEY_ADMINS = {"admin", "superadmin"}
PREFIX_CHARACTERS = 8


async def create_key(
    session: AsyncSession,
    actor: Principal,
    *,
    name: str,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    user_id: UUID | None = None,
    expires_in_days: int | None = DEFAULT_DAYS,
) -> tuple[ApiKey, str]:
    """A new key and its text, which is kept nowhere.

    With `user_id` its program acts as that person minus administration; without, as nobody in particular: it sees what
    every member sees. With None for its days it does not end by itself. Raises `Invalid` for an empty name or an
    unknown scope, `NotAllowed` for a person who makes one that is not their own.
    """
    name = " ".join(name.split())
    if not 1 <= len(name) <= 100:
        raise Invalid("An API key has a name of 1 to 100 characters.", code="bad_name")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Invalid(f"The scopes of an API key are {', '.join(SCOPES)}.", code="bad_scope")
    if not _administers(actor) and user_id != actor.user_id:
        raise NotAllowed("You can make API keys for yourself only. Ask an administrator.", code="not_an_admin")
    text = new_api_key(actor.tenant_id)
    key = ApiKey(
        tenant_id=actor.tenant_id,
        id=new_id(),
        user_id=user_id,
        name=name,
        prefix=f"{API_KEY_PREFIX}_…{text[-PREFIX_CHARACTERS:]}",
        key_hash=api_key_hash(text),
        scopes=[scope for scope in SCOPES if scope in scopes],
        created_by=actor.name,
        created_by_id=actor.user_id,
        created_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days else None,
    )
    session.add(key)
    await session.flush()
    await _record(session, actor, key, event_type="api_key_created", action="api_key.created")
    return key, text


async def list_keys(session: AsyncSession, principal: Principal) -> list[ApiKey]:
    """Keys that are not revoked, newest first: all for an administrator, their own for anybody else."""
    return list((await session.execute(_mine(principal).order_by(ApiKey.created_at.desc()))).scalars())


async def list_owners(session: AsyncSession, keys: Sequence[ApiKey]) -> dict[UUID, str]:
    """The e-mail addresses of the people whom keys act as, by their ids."""
    ids = {key.user_id for key in keys if key.user_id is not None}
    rows = await session.execute(select(User.id, User.email).where(User.id.in_(ids)))
    return {row.id: row.email for row in rows}


def is_good(key: ApiKey) -> bool:
    """Whether a key still opens anything."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > datetime.now(UTC))


async def revoke_key(session: AsyncSession, principal: Principal, *, key_id: UUID) -> None:
    """End a key; it opens nothing from the next request on. Raises `NotFound`, also for somebody else's."""
    key = (await session.execute(_mine(principal).where(ApiKey.id == key_id))).scalar_one_or_none()
    if key is None:
        raise NotFound("There is no such API key.", code="no_such_api_key")
    await session.execute(update(ApiKey).where(ApiKey.id == key_id).values(revoked_at=func.now()))
    await _record(session, principal, key, event_type="api_key_revoked", action="api_key.revoked")


async def get_key(session: AsyncSession, principal: Principal, *, name_or_id: str) -> ApiKey:
    """A key by its id or, where only one has it, its name. Raises `NotFound`, `Conflict` for several."""
    found = [key for key in await list_keys(session, principal) if name_or_id in (key.name, str(key.id))]
    if not found:
        raise NotFound(f"There is no API key “{name_or_id}”. `pharos apikey list` shows them.", code="no_such_api_key")
    if len(found) > 1:
        raise Conflict(f"Several API keys are called “{name_or_id}”. Give its id instead.", code="ambiguous_name")
    return found[0]


def _mine(principal: Principal) -> Select[ApiKey]:
    keys = select(ApiKey).where(ApiKey.revoked_at.is_(None))
    return keys if _administers(principal) else keys.where(ApiKey.user_id == principal.user_id)


def _administers(principal: Principal) -> bool:
    return principal.is_operator or (principal.kind == "person" and principal.platform_role in KEY_ADMINS)


async def _record(session: AsyncSession, actor: Principal, key: ApiKey, *, event_type: str, action: str) -> None:
    subject = f"api_key:{key.id}"
    await record_audit(session, actor, action=action, subject=subject, name=key.name, scopes=key.scopes)
    await record_security_event(
        session,
        actor.tenant_id,
        event_type=event_type,
        severity="medium",
        user_id=key.user_id,
        subject=subject,
        name=key.name,
    )
