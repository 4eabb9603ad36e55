"""Keys and tokens a tenant has entered for the services it uses; shown by their first characters, never whole."""

from __future__ import annotations

import re

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.ids import TenantId
from pharos.infra.models import Secret
from pharos.infra.vault import Vault

KINDS = ("github",)
"""Keys of model providers lie with their providers: each goes to one address and to no other."""
GITHUB = "default"
"""The name of the one GitHub token of a tenant; it needs the scopes `repo` and `read:org`."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MIN_CHARACTERS, MAX_CHARACTERS = 8, 8192

MISSING = {
    "github": (
        "no_github_token",
        "No GitHub token configured. An administrator adds one under Secrets, or enables it there.",
    ),
}


async def list_tenant_secrets(session: AsyncSession, tenant_id: TenantId) -> list[Secret]:
    """What the tenant has entered, by kind and name; a waiting mail's text is none of it."""
    mine = select(Secret).where(Secret.tenant_id == tenant_id, Secret.kind.in_(KINDS))
    return list((await session.execute(mine.order_by(Secret.kind, Secret.name))).scalars())


async def get_tenant_secret(session: AsyncSession, tenant_id: TenantId, *, kind: str, name: str) -> Secret:
    """One of them without its text. Raises `NotFound`."""
    mine = select(Secret).where(Secret.tenant_id == tenant_id, Secret.kind == _known(kind), Secret.name == name)
    found = (await session.execute(mine.execution_options(populate_existing=True))).scalar_one_or_none()
    if found is None:
        raise NotFound("There is no such secret. `GET /secrets` lists them.", code="no_such_secret")
    return found


async def save_tenant_secret(
    session: AsyncSession, vault: Vault, principal: Principal, *, kind: str, name: str, value: str
) -> Secret:
    """Enter a key, in place of the one before, and enable it. Raises `Invalid` for what cannot be one."""
    value, tenant_id = value.strip(), principal.tenant_id
    if not NAME.fullmatch(name):
        raise Invalid("A name has small letters, digits and . _ -, at most 64 of them.", code="bad_name")
    if not MIN_CHARACTERS <= len(value) <= MAX_CHARACTERS or not value.isprintable() or " " in value:
        raise Invalid(
            f"A key has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters and no blanks. Copy it again.",
            code="bad_secret",
        )
    await vault.seal(session, tenant_id=tenant_id, kind=_known(kind), name=name, text=value, shows_prefix=True)
    await _record(session, principal, "saved", kind=kind, name=name)
    return await _set_enabled(session, tenant_id, kind=kind, name=name, is_enabled=True)


async def enable_tenant_secret(
    session: AsyncSession, principal: Principal, *, kind: str, name: str, is_enabled: bool
) -> Secret:
    """Switch a key on or off from the next request on; switched off it is kept. Raises `NotFound`."""
    changed = await _set_enabled(session, principal.tenant_id, kind=kind, name=name, is_enabled=is_enabled)
    await _record(session, principal, "enabled" if is_enabled else "disabled", kind=kind, name=name)
    return changed


async def remove_tenant_secret(session: AsyncSession, principal: Principal, *, kind: str, name: str) -> None:
    """Delete a key; nothing that needs it is asked from the next request on. Raises `NotFound`."""
    found = await get_tenant_secret(session, principal.tenant_id, kind=kind, name=name)
    await session.execute(delete(Secret).where(Secret.tenant_id == principal.tenant_id, Secret.id == found.id))
    await _record(session, principal, "removed", kind=kind, name=name)


async def open_tenant_secret(
    session: AsyncSession, vault: Vault, tenant_id: TenantId, *, kind: str, name: str = GITHUB
) -> str:
    """The key itself, for the call that needs it now; ask anew for each, so that a removed one is used no more.

    Raises `Conflict` with "No GitHub token configured" when it is missing or switched off.
    """
    mine = select(Secret.id).where(Secret.tenant_id == tenant_id, Secret.kind == _known(kind), Secret.name == name)
    secret_id = (await session.execute(mine.where(Secret.is_enabled))).scalar_one_or_none()
    if secret_id is None:
        code, message = MISSING[kind]
        raise Conflict(message, code=code)
    return await vault.open(session, tenant_id=tenant_id, secret_id=secret_id)


async def _set_enabled(session: AsyncSession, tenant_id: TenantId, *, kind: str, name: str, is_enabled: bool) -> Secret:
    mine = (Secret.tenant_id == tenant_id, Secret.kind == _known(kind), Secret.name == name)
    await session.execute(update(Secret).where(*mine).values(is_enabled=is_enabled))
    return await get_tenant_secret(session, tenant_id, kind=kind, name=name)


async def _record(session: AsyncSession, principal: Principal, what: str, *, kind: str, name: str) -> None:
    subject = f"secret:{kind}/{name}"
    await record_audit(session, principal, action=f"secret.{what}", subject=subject)
    await record_security_event(
        session,
        principal.tenant_id,
        event_type=f"secret_{what}",
        severity="medium",
        user_id=principal.user_id,
        subject=subject,
    )


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise NotFound(f"There are no secrets of the kind {kind}: they are {' and '.join(KINDS)}.", code="no_such_kind")
    return kind
