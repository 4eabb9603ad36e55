"""A new encryption key while people work: resumable after a kill at any moment, proved at the end.

The order is what makes it safe. The new key is in the key file before anything is encrypted with it; the old one
leaves the file last, when nothing is encrypted with it any more and it may not encrypt again. Running it again after
an interruption does what is left, and begins no second rotation while an old key may still encrypt or open something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.principal import operator
from pharos.identity.security import record_security_event
from pharos.infra.db_system import system_transaction
from pharos.infra.envelope import Sealed, new_key, open_bytes, place, seal_bytes
from pharos.infra.errors import Conflict
from pharos.infra.ids import TenantId
from pharos.infra.keyring import (
    EncryptionSecret,
    encryption_secret,
    key_file,
    key_source,
    key_text,
    read_keys,
    write_keys,
)
from pharos.infra.models import DataKey, EncryptionKey, Secret
from pharos.infra.settings import Settings
from pharos.infra.vault import data_keys, sealed_secrets
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.secrets_check import every_tenant
from pharos.runtime import Runtime

BATCH = 50
"""Secrets of one transaction: a writer of one of them waits some milliseconds at most."""


@dataclass
class Rotation:
    """What a rotation did, or with `--dry-run` would do.

    `tried` counts what was tried with the old keys alone; `dropped` are keys that were there for reading, retired and
    of no use any more.
    """

    new_key: str
    old_keys: list[str]
    is_resumed: bool
    dropped: list[str] = field(default_factory=list)
    tenants: int = 0
    data_keys: int = 0
    secrets: int = 0
    tried: int = 0
    opened_by_old: list[str] = field(default_factory=list)
    next_step: str = ""


async def rotate_encryption(runtime: Runtime) -> Rotation:
    """Replace the encryption key, or finish a rotation that was interrupted.

    Raises `Conflict` when the key is held in the environment and no new one was put before it, or when something
    cannot be re-encrypted; nothing is lost then and running it again goes on.
    """
    settings = runtime.settings
    with hold_operation_lock(settings, "rotate encryption"):
        async with system_transaction(runtime.db) as session:
            await runtime.vault.check(session)
        rotation = await _begin(runtime)
        tenants = await every_tenant(runtime)
        for tenant_id, _ in tenants:
            await _rotate_tenant(runtime, tenant_id, rotation)
        await _retire(runtime, rotation.old_keys)
        # A tenant made meanwhile by a process with the old key at hand; after the retirement there can be no more.
        for tenant_id, _ in await every_tenant(runtime):
            await _rotate_tenant(runtime, tenant_id, rotation)
        await _prove(runtime, rotation)
        for tenant_id, _ in tenants:
            await _record(runtime, tenant_id, rotation)
        _drop_old_keys(settings, rotation)
    return rotation


async def plan_rotation(runtime: Runtime) -> Rotation:
    """What `rotate_encryption` would do now; changes nothing."""
    async with system_transaction(runtime.db) as session:
        await runtime.vault.check(session)
    plan = await _plan(runtime)
    for tenant_id, _ in await every_tenant(runtime):
        old = DataKey.encryption_key_id.in_(plan.old_keys)
        async with runtime.db.transaction(tenant_id) as session:
            wrapped = (await session.execute(data_keys(tenant_id).where(old))).all()
            sealed = (await session.execute(sealed_secrets(tenant_id).where(old))).all()
        plan.tenants += bool(wrapped)
        plan.data_keys += len(wrapped)
        plan.secrets += len(sealed)
    return plan


async def _plan(runtime: Runtime) -> Rotation:
    """What is to be done with the keys that are given: finish a rotation that was begun, or begin one."""
    first, *further = [key.id for key in read_keys(runtime.settings)]
    if await _are_needed(runtime, further):
        return Rotation(new_key=first, old_keys=further, is_resumed=True)
    return Rotation(new_key="(made when it begins)", old_keys=[first], is_resumed=False, dropped=further)


async def _are_needed(runtime: Runtime, key_ids: list[str]) -> bool:
    """Whether one of these keys may still encrypt, or a data key lies under it."""
    unretired = select(EncryptionKey.id).where(EncryptionKey.id.in_(key_ids), EncryptionKey.retired_at.is_(None))
    async with system_transaction(runtime.db) as session:
        if (await session.execute(unretired.limit(1))).first() is not None:
            return True
    for tenant_id, _ in await every_tenant(runtime):
        async with runtime.db.transaction(tenant_id) as session:
            wrapped = data_keys(tenant_id).where(DataKey.encryption_key_id.in_(key_ids)).limit(1)
            if (await session.execute(wrapped)).first() is not None:
                return True
    return False


async def _begin(runtime: Runtime) -> Rotation:
    """Put a new key before the old one, unless a rotation is to be finished."""
    settings, rotation = runtime.settings, await _plan(runtime)
    if rotation.is_resumed:
        return rotation
    new, old = encryption_secret(new_key()), read_keys(settings)[0]
    if settings.encryption_key is not None:
        raise _held_by_operator(new, "PHAROS_ENCRYPTION_KEY")
    try:
        write_keys(settings, (new, old))
    except OSError as error:
        raise _held_by_operator(new, str(key_file(settings))) from error
    rotation.new_key = new.id
    return rotation


def _held_by_operator(new: EncryptionSecret, where: str) -> Conflict:
    return Conflict(
        f"Pharos cannot change {where} itself. Put this new key before the old one there, with a comma between: "
        f"{key_text(new.secret)}  Then restart Pharos and run `pharos secrets rotate encryption` again.",
        code="key_held_elsewhere",
    )


async def _rotate_tenant(runtime: Runtime, tenant_id: TenantId, rotation: Rotation) -> None:
    """Leave nothing in a tenant that an old key opens."""
    made = await _renew_data_key(runtime, tenant_id, rotation)
    while True:
        # Around what others hold first, then for what they held: row by row, so that no two wait for each other.
        while count := await _reseal_batch(runtime, tenant_id, limit=BATCH, waits=False):
            rotation.secrets += count
        while count := await _reseal_batch(runtime, tenant_id, limit=1, waits=True):
            rotation.secrets += count
        if await _drop_data_keys(runtime, tenant_id):
            break
    rotation.data_keys += made
    rotation.tenants += made


async def _renew_data_key(runtime: Runtime, tenant_id: TenantId, rotation: Rotation) -> bool:
    """Give the tenant a data key under the new key, if its current one is under an old one; True if so."""
    current = update(DataKey).where(DataKey.tenant_id == tenant_id, DataKey.is_current)
    outdated = current.where(DataKey.encryption_key_id != rotation.new_key).values(is_current=False)
    async with runtime.db.transaction(tenant_id) as session:
        found = (await session.execute(outdated.returning(DataKey.id))).scalar_one_or_none()
        if found is not None:
            await runtime.vault.add_data_key(session, tenant_id)
    return found is not None


async def _reseal_batch(runtime: Runtime, tenant_id: TenantId, *, limit: int, waits: bool) -> int:
    """Encrypt some secrets of older data keys with the current one; returns how many."""
    batch = (
        sealed_secrets(tenant_id)
        .where(~DataKey.is_current)
        .order_by(Secret.id)
        .limit(limit)
        .with_for_update(of=Secret, skip_locked=not waits)
    )
    async with runtime.db.transaction(tenant_id) as session:
        rows = (await session.execute(batch)).all()
        if not rows:
            return 0
        data_key_id, key = await runtime.vault.data_key_for_writing(session, tenant_id)
        for row in rows:
            sealed = seal_bytes(key, runtime.vault.open_row(tenant_id, row), place(tenant_id, "secrets", row.secret_id))
            change = update(Secret).where(Secret.tenant_id == tenant_id, Secret.id == row.secret_id)
            change = change.values(data_key_id=data_key_id, nonce=sealed.nonce, ciphertext=sealed.ciphertext)
            await session.execute(change)
    return len(rows)


async def _drop_data_keys(runtime: Runtime, tenant_id: TenantId) -> bool:
    """Delete the tenant's older data keys that no secret names; True when none is left."""
    older = (DataKey.tenant_id == tenant_id, ~DataKey.is_current)
    named = exists().where(Secret.tenant_id == DataKey.tenant_id, Secret.data_key_id == DataKey.id)
    async with runtime.db.transaction(tenant_id) as session:
        # The lock waits for whoever seals with such a key right now; the next statement then sees their secret.
        await session.execute(select(DataKey.id).where(*older).with_for_update())
        await session.execute(delete(DataKey).where(*older, ~named))
        left = (await session.execute(select(func.count()).select_from(DataKey).where(*older))).scalar_one()
    return left == 0


async def _retire(runtime: Runtime, old_keys: list[str]) -> None:
    """From now on no process may encrypt with an old key, whatever it has in memory."""
    async with system_transaction(runtime.db) as session:
        old = update(EncryptionKey).where(EncryptionKey.id.in_(old_keys), EncryptionKey.retired_at.is_(None))
        await session.execute(old.values(retired_at=func.now()))


async def _prove(runtime: Runtime, rotation: Rotation) -> None:
    """Try every data key and every secret with each old key alone. Raises `Conflict` when anything opens."""
    old = [key for key in read_keys(runtime.settings) if key.id in rotation.old_keys]
    for tenant_id, _ in await every_tenant(runtime):
        async with runtime.db.transaction(tenant_id) as session:
            opened = await _opened_by(session, tenant_id, old, rotation)
        rotation.opened_by_old += opened
    if rotation.opened_by_old:
        raise Conflict(
            f"An old key still opens {', '.join(rotation.opened_by_old)}; it stays in {key_source(runtime.settings)}. "
            "Run `pharos secrets rotate encryption` again.",
            code="old_key_opens",
        )


async def _opened_by(
    session: AsyncSession, tenant_id: TenantId, old: list[EncryptionSecret], rotation: Rotation
) -> list[str]:
    found = [
        ("data_keys", row.data_key_id, Sealed(row.wrapped_nonce, row.wrapped))
        for row in await session.execute(data_keys(tenant_id))
    ]
    found += [
        ("secrets", row.secret_id, Sealed(row.nonce, row.ciphertext))
        for row in await session.execute(sealed_secrets(tenant_id))
    ]
    rotation.tried += len(found)
    return [
        f"{table} {row_id}"
        for table, row_id, sealed in found
        for key in old
        if open_bytes(key.secret, sealed, place(tenant_id, table, row_id)) is not None
    ]


async def _record(runtime: Runtime, tenant_id: TenantId, rotation: Rotation) -> None:
    facts: dict[str, Any] = {"new_key": rotation.new_key, "old_keys": rotation.old_keys}
    subject = f"encryption_key:{rotation.new_key}"
    async with runtime.db.transaction(tenant_id) as session:
        await record_security_event(
            session, tenant_id, event_type="encryption_key_rotated", severity="medium", subject=subject, **facts
        )
        await record_audit(session, operator(tenant_id), action="encryption_key.rotated", subject=subject, **facts)


def _drop_old_keys(settings: Settings, rotation: Rotation) -> None:
    keys = read_keys(settings)
    if settings.encryption_key is None:
        try:
            write_keys(settings, keys[:1])
            return
        except OSError:
            pass  # a read-only file, as containers mount them: the operator writes it
    rotation.next_step = f"Remove the old key from {key_source(settings)}: keep only the first one."
