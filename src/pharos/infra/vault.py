"""Secrets of tenants: each sealed by its tenant's data key, and that wrapped by a key the database never sees.

A reader needs no lock and meets no error while keys are rotated: it takes secret and data key from one snapshot, and
reads the key file again when a row names a key it does not know.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, delete, func, or_, select, update
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.envelope import Sealed, new_key, open_bytes, place, seal_bytes
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.ids import TenantId, new_id
from pharos.infra.keyring import EncryptionSecret, generate_key, key_source, read_keys
from pharos.infra.models import DataKey, EncryptionKey, Secret
from pharos.infra.settings import Settings

PREFIX_CHARACTERS = 10
REGISTER_LOCK = 0x5048_4B45_5953  # an advisory lock of our own: two new keys cannot both be the first
USED_AGAIN_AFTER = timedelta(minutes=1)
"""How exact `last_used_at` is: a write for each read would cost more than the read."""


class UnreadableSecret(Conflict):
    """A stored secret does not open: its key is not at hand, or the row was not written here."""

    code = "unreadable_secret"


class Vault:
    """Holds the keys it has read, and nothing of any tenant; safe to pass along with a session."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._known: dict[str, EncryptionSecret] = {}

    async def seal(
        self,
        session: AsyncSession,
        *,
        tenant_id: TenantId,
        kind: str,
        name: str,
        text: str,
        shows_prefix: bool = False,
    ) -> UUID:
        """Store `text` under (kind, name), in place of what was there; returns the secret's id, which stays.

        `shows_prefix` keeps the first characters in the clear, by which people tell their keys apart.
        """
        data_key_id, key = await self.data_key_for_writing(session, tenant_id)
        prefix = text[: min(PREFIX_CHARACTERS, len(text) // 3)] if shows_prefix else ""
        while True:
            known = await _secret_id(session, tenant_id=tenant_id, kind=kind, name=name)
            secret_id = known or new_id()
            sealed = seal_bytes(key, text.encode(), place(tenant_id, "secrets", secret_id))
            values = {"data_key_id": data_key_id, "nonce": sealed.nonce, "ciphertext": sealed.ciphertext}
            values |= {"prefix": prefix, "length": len(text)}
            if known is not None:
                mine = (Secret.tenant_id == tenant_id, Secret.id == known)
                await session.execute(update(Secret).where(*mine).values(**values, rotated_at=func.now()))
                return known
            row = insert(Secret).values(tenant_id=tenant_id, id=secret_id, kind=kind, name=name, **values)
            row = row.on_conflict_do_nothing(index_elements=["tenant_id", "kind", "name"])
            if (await session.execute(row.returning(Secret.id))).scalar_one_or_none() is not None:
                return secret_id
            # Somebody else was faster with the same name: take the row's id, which its ciphertext is bound to.

    async def open(self, session: AsyncSession, *, tenant_id: TenantId, secret_id: UUID) -> str:
        """The text of a secret. Raises `NotFound`, or `UnreadableSecret` naming the command that says why."""
        row = (await session.execute(sealed_secrets(tenant_id).where(Secret.id == secret_id))).one_or_none()
        if row is None:
            raise NotFound("There is no such secret any more.", code="no_such_secret")
        await _mark_used(session, tenant_id=tenant_id, secret_id=secret_id)
        return self.open_row(tenant_id, row).decode()

    async def remove(self, session: AsyncSession, *, tenant_id: TenantId, secret_id: UUID) -> None:
        """Delete a secret; nothing happens when it is gone already."""
        await session.execute(delete(Secret).where(Secret.tenant_id == tenant_id, Secret.id == secret_id))

    async def check(self, session: AsyncSession) -> str:
        """Refuse keys that are not this database's; makes and registers the first one of a new installation.

        Returns the id of the encrypting key. Raises `Invalid` for what is no key, `Conflict` for a missing or wrong
        one; each message ends with what to do.
        """
        keys, registered = await self._fitting_keys(session)
        if not keys_in_use(registered):
            await self._register(session, keys)
        return keys[0].id

    def open_row(self, tenant_id: TenantId, row: Row[*tuple[Any, ...]]) -> bytes:
        """The plain bytes of a row of `sealed_secrets`. Raises `UnreadableSecret`."""
        key, sealed = self.unwrap(tenant_id, row), Sealed(row.nonce, row.ciphertext)
        plain = open_bytes(key, sealed, place(tenant_id, "secrets", row.secret_id))
        if plain is None:
            raise _unreadable(f"Secret {row.secret_id}")
        return plain

    def unwrap(self, tenant_id: TenantId, row: Row[*tuple[Any, ...]]) -> bytes:
        """The data key of a row with `data_key_id, encryption_key_id, wrapped_nonce, wrapped`."""
        if row.encryption_key_id not in self._known:
            self._read_keys()
        secret = self._known.get(row.encryption_key_id)
        at = place(tenant_id, "data_keys", row.data_key_id)
        key = open_bytes(secret.secret, Sealed(row.wrapped_nonce, row.wrapped), at) if secret else None
        if key is None:
            raise _unreadable(f"Data key {row.data_key_id}, which key {row.encryption_key_id} encrypts,")
        return key

    async def add_data_key(self, session: AsyncSession, tenant_id: TenantId) -> None:
        """Give a tenant a current data key under the encrypting key; does nothing when somebody was faster."""
        keys, registered = await self._fitting_keys(session)
        secret, data_key_id = keys[0], new_id()
        if secret.id not in registered:
            await self._register(session, keys)
        wrapped = seal_bytes(secret.secret, new_key(), place(tenant_id, "data_keys", data_key_id))
        row = insert(DataKey).values(
            tenant_id=tenant_id,
            id=data_key_id,
            encryption_key_id=secret.id,
            nonce=wrapped.nonce,
            wrapped=wrapped.ciphertext,
        )
        await session.execute(row.on_conflict_do_nothing(index_elements=["tenant_id"], index_where=sql("is_current")))

    async def data_key_for_writing(self, session: AsyncSession, tenant_id: TenantId) -> tuple[UUID, bytes]:
        """The id and bytes of a tenant's current data key, made when it has none.

        It is locked until the end of the transaction: no rotation removes it before the secret that names it is there.
        """
        current = data_keys(tenant_id).where(DataKey.is_current).with_for_update(read=True, key_share=True)
        row = (await session.execute(current)).one_or_none()
        if row is None:
            await self.add_data_key(session, tenant_id)
            row = (await session.execute(current)).one()
        return row.data_key_id, self.unwrap(tenant_id, row)

    async def _fitting_keys(self, session: AsyncSession) -> tuple[tuple[EncryptionSecret, ...], dict[str, bool]]:
        keys, registered = self._read_keys(), await registered_keys(session)
        if not keys:
            refuse_missing(self.settings, registered)
            generate_key(self.settings)
            keys = self._read_keys()
        refuse_wrong(self.settings, keys, registered)
        return keys, registered

    async def _register(self, session: AsyncSession, keys: tuple[EncryptionSecret, ...]) -> None:
        await session.execute(select(func.pg_advisory_xact_lock(REGISTER_LOCK)))
        refuse_wrong(self.settings, keys, await registered_keys(session))
        await session.execute(insert(EncryptionKey).values(id=keys[0].id).on_conflict_do_nothing())

    def _read_keys(self) -> tuple[EncryptionSecret, ...]:
        keys = read_keys(self.settings)
        # Keys read earlier stay: a snapshot taken before a rotation ended may still name the old one.
        self._known |= {key.id: key for key in keys}
        return keys


def refuse_missing(settings: Settings, registered: dict[str, bool]) -> None:
    """Raise `Conflict` when the key file is gone but secrets rest on it: a new key could never open them."""
    wanted = keys_in_use(registered)
    if wanted:
        raise Conflict(
            f"The encryption key is missing: {key_source(settings)} is not there, and stored secrets need key "
            f"{', '.join(wanted)}. Put the file back from a backup, or set PHAROS_ENCRYPTION_KEY to that key; then run "
            "`pharos secrets check`.",
            code="missing_encryption_key",
            lacking=wanted,
        )


def refuse_wrong(settings: Settings, keys: tuple[EncryptionSecret, ...], registered: dict[str, bool]) -> None:
    """Raise `Conflict` when a key that stored secrets need is not given, or the first one was retired."""
    given = [key.id for key in keys]
    lacking = [key_id for key_id in keys_in_use(registered) if key_id not in given]
    if lacking:
        raise Conflict(
            f"The encryption key is wrong: stored secrets need key {', '.join(lacking)}, but "
            f"{key_source(settings)} holds {', '.join(given)}. Put the old key back there, or add it as a second one "
            "after a comma; then run `pharos secrets check`.",
            code="wrong_encryption_key",
            lacking=lacking,
        )
    if registered.get(given[0]) is False:
        raise Conflict(
            f"Key {given[0]} in {key_source(settings)} was retired by a rotation and must not encrypt again. Put the "
            "newer key first; `pharos secrets check` names it.",
            code="retired_encryption_key",
        )


def data_keys(tenant_id: TenantId) -> Select[UUID, str, bytes, bytes]:
    """A tenant's wrapped data keys, in the columns `Vault.unwrap` takes."""
    return select(
        DataKey.id.label("data_key_id"),
        DataKey.encryption_key_id,
        DataKey.nonce.label("wrapped_nonce"),
        DataKey.wrapped,
    ).where(DataKey.tenant_id == tenant_id)


def sealed_secrets(tenant_id: TenantId) -> Select[UUID, bytes, bytes, UUID, str, bytes, bytes]:
    """A tenant's secrets with their data keys, in the columns `Vault.open_row` takes.

    Columns, not entities: an entity that the session has seen before would mix two snapshots.
    """
    return (
        select(
            Secret.id.label("secret_id"),
            Secret.nonce,
            Secret.ciphertext,
            DataKey.id.label("data_key_id"),
            DataKey.encryption_key_id,
            DataKey.nonce.label("wrapped_nonce"),
            DataKey.wrapped,
        )
        .join(DataKey, (DataKey.tenant_id == Secret.tenant_id) & (DataKey.id == Secret.data_key_id))
        .where(Secret.tenant_id == tenant_id)
    )


async def registered_keys(session: AsyncSession) -> dict[str, bool]:
    """The keys this database was used with, oldest first: True while in use, False once retired.

    The lock makes a rotation wait that is about to retire one, until this transaction's data key is committed.
    """
    rows = select(EncryptionKey.id, EncryptionKey.retired_at).order_by(EncryptionKey.created_at, EncryptionKey.id)
    found = await session.execute(rows.with_for_update(read=True))
    return {row.id: row.retired_at is None for row in found}


def keys_in_use(registered: dict[str, bool]) -> list[str]:
    """Ids of the keys that are not retired, oldest first."""
    return [key_id for key_id, in_use in registered.items() if in_use]


async def _secret_id(session: AsyncSession, *, tenant_id: TenantId, kind: str, name: str) -> UUID | None:
    mine = select(Secret.id).where(Secret.tenant_id == tenant_id, Secret.kind == kind, Secret.name == name)
    return (await session.execute(mine.with_for_update())).scalar_one_or_none()


async def _mark_used(session: AsyncSession, *, tenant_id: TenantId, secret_id: UUID) -> None:
    # Skipping a locked row means that readers never wait, neither for a rotation nor for each other.
    due = (
        select(Secret.id)
        .where(
            Secret.tenant_id == tenant_id,
            Secret.id == secret_id,
            or_(Secret.last_used_at.is_(None), Secret.last_used_at < func.now() - USED_AGAIN_AFTER),
        )
        .with_for_update(skip_locked=True)
    )
    change = update(Secret).where(Secret.tenant_id == tenant_id, Secret.id.in_(due))
    await session.execute(change.values(last_used_at=func.now()), execution_options={"synchronize_session": False})


def _unreadable(what: str) -> UnreadableSecret:
    return UnreadableSecret(f"{what} cannot be opened with the keys at hand. `pharos secrets check` says why.")
