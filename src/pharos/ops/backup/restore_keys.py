"""The encryption key of what is restored: the one this installation has, or on an empty machine that of the escrow.

A backup from before a rotation holds data keys that only the older key opens. They are wrapped anew with today's key
before anybody works with them; the secrets below them stay as they are.
"""

from __future__ import annotations

from enum import StrEnum

import psycopg

from pharos.infra.envelope import Sealed, open_bytes, place, seal_bytes
from pharos.infra.errors import Conflict
from pharos.infra.keyring import EncryptionSecret, key_source, read_keys, write_keys
from pharos.infra.settings import Settings
from pharos.ops.backup.escrow import Escrow, write_secrets
from pharos.ops.backup.manifest import Manifest
from pharos.ops.backup.scratch import Loaded


class KeyStep(StrEnum):
    """What becomes of the keys."""

    KEEP = "keep"
    REWRAP = "rewrap"
    INSTALL = "install"


def plan_keys(settings: Settings, manifest: Manifest) -> KeyStep:
    """What the keys at hand need, without changing anything."""
    given = read_keys(settings)
    if not given:
        return KeyStep.INSTALL
    return KeyStep.KEEP if set(manifest.keys) <= {key.id for key in given} else KeyStep.REWRAP


def bring_keys(settings: Settings, loaded: Loaded, escrow: Escrow) -> KeyStep:
    """Make what was loaded and the keys of this installation fit; returns what was done.

    Where today's key was retired in the backup's database, the escrow's keys go before it in the key file: a key that
    was retired must not encrypt again. Raises `Conflict` when the operator holds the key and has to do that.
    """
    given, (needed, retired) = read_keys(settings), _registered(loaded)
    if not given:
        write_secrets(settings, escrow)
        return KeyStep.INSTALL
    if given[0].id in retired:
        known = {key.id for key in escrow.keys}
        if settings.encryption_key is not None or settings.encryption_key_file is not None:
            raise Conflict(
                f"Key {given[0].id} in {key_source(settings)} was retired before this backup was made. Put the newer "
                f"key {escrow.keys[0].id} first there, or take another backup: `pharos restore --list`.",
                code="retired_encryption_key",
            )
        write_keys(settings, (*escrow.keys, *(key for key in given if key.id not in known)))
        return KeyStep.INSTALL
    if needed <= {key.id for key in given}:
        return KeyStep.KEEP
    _rewrap(loaded, escrow.keys, given[0])
    return KeyStep.REWRAP


def _registered(loaded: Loaded) -> tuple[set[str], set[str]]:
    """The keys that the database needs or that may still encrypt in it, and those that were retired."""
    with psycopg.connect(loaded.backup_url) as connection:
        rows = connection.execute("select id, retired_at is not null from encryption_keys").fetchall()
        used = connection.execute("select distinct encryption_key_id from data_keys").fetchall()
    retired = {key_id for key_id, is_retired in rows if is_retired}
    return {key_id for key_id, _ in rows} - retired | {key_id for (key_id,) in used}, retired


def _rewrap(loaded: Loaded, old: tuple[EncryptionSecret, ...], new: EncryptionSecret) -> None:
    """Wrap every data key with `new`, which is from then on the only one in use."""
    by_id = {key.id: key.secret for key in (*old, new)}
    with psycopg.connect(loaded.backup_url) as connection:
        rows = connection.execute("select tenant_id, id, encryption_key_id, nonce, wrapped from data_keys").fetchall()
    with psycopg.connect(loaded.admin_url) as connection:
        connection.execute("insert into encryption_keys (id) values (%s) on conflict do nothing", [new.id])
        for tenant_id, row_id, key_id, nonce, content in rows:
            at = place(tenant_id, "data_keys", row_id)
            plain = open_bytes(by_id[key_id], Sealed(nonce, content), at)
            assert plain is not None, "every data key was opened before"
            sealed = seal_bytes(new.secret, plain, at)
            # an administrator that is no superuser is subject to the fence
            connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant_id)])
            connection.execute(
                "update data_keys set encryption_key_id = %s, nonce = %s, wrapped = %s "
                "where tenant_id = %s and id = %s",
                [new.id, sealed.nonce, sealed.ciphertext, tenant_id, row_id],
            )
        connection.execute(
            "update encryption_keys set retired_at = now() where id <> %s and retired_at is null", [new.id]
        )
