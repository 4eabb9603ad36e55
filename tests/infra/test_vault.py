"""The vault: what is sealed opens only in its place, with its key, for its tenant."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from tests.conftest import ENCRYPTION_KEY
from tests.make import MadeTenant, make_tenant

from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.ids import TenantId
from pharos.infra.keyring import parse_keys, read_keys
from pharos.infra.models import DataKey, EncryptionKey, Secret
from pharos.infra.settings import Settings
from pharos.infra.vault import UnreadableSecret, Vault
from pharos.runtime import Runtime

TEXT = "sk-live-0123456789abcdefghijklmnopqrstuvwxyz"


async def seal(runtime: Runtime, tenant_id: TenantId, *, name: str = "openai", text: str = TEXT) -> UUID:
    async with runtime.db.transaction(tenant_id) as session:
        return await runtime.vault.seal(session, tenant_id=tenant_id, kind="llm", name=name, text=text)


async def openSecretStr(runtime: Runtime, tenant_id: TenantId, secret_id: UUID) -> str:
    async with runtime.db.transaction(tenant_id) as session:
        return await runtime.vault.open(session, tenant_id=tenant_id, secret_id=secret_id)


@pytest.mark.contract("LP-10", part="stored encrypted with AES-256-GCM")
async def test_a_secret_comes_back_and_lies_encrypted(runtime: Runtime, tenant: MadeTenant) -> None:
    secret_id = await seal(runtime, tenant.id)
    async with runtime.db.transaction(tenant.id) as session:
        row = (await session.execute(select(Secret).where(Secret.id == secret_id))).scalar_one()
        key = (await session.execute(select(DataKey).where(DataKey.id == row.data_key_id))).scalar_one()
    assert TEXT.encode() not in row.ciphertext
    assert (row.prefix, row.length) == ("", len(TEXT))
    assert len(row.nonce) == len(key.nonce) == 12
    assert await openSecretStr(runtime, tenant.id, secret_id) == TEXT


async def test_a_new_text_under_the_same_name_keeps_the_id(runtime: Runtime, tenant: MadeTenant) -> None:
    first = await seal(runtime, tenant.id)
    assert await seal(runtime, tenant.id, text="another") == first
    assert await openSecretStr(runtime, tenant.id, first) == "another"


async def test_of_many_who_seal_the_same_name_one_row_remains_and_opens(runtime: Runtime, tenant: MadeTenant) -> None:
    texts = [f"text {number}" for number in range(8)]
    ids = await asyncio.gather(*(seal(runtime, tenant.id, text=text) for text in texts))
    assert len(set(ids)) == 1
    assert await openSecretStr(runtime, tenant.id, ids[0]) in texts


@pytest.mark.contract("LP-10", part="bound to its tenant and row")
async def test_a_ciphertext_moved_to_another_row_does_not_open(runtime: Runtime, tenant: MadeTenant) -> None:
    first, second = await seal(runtime, tenant.id), await seal(runtime, tenant.id, name="other")
    async with runtime.db.transaction(tenant.id) as session:
        stolen = (await session.execute(select(Secret).where(Secret.id == first))).scalar_one()
        moved = update(Secret).where(Secret.id == second)
        await session.execute(moved.values(nonce=stolen.nonce, ciphertext=stolen.ciphertext))
    with pytest.raises(UnreadableSecret, match="pharos secrets check"):
        await openSecretStr(runtime, tenant.id, second)


@pytest.mark.contract("LP-10", part="bound to its tenant and row")
async def test_a_ciphertext_with_its_data_key_moved_to_another_tenant_does_not_open(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    secret_id, other = await seal(runtime, tenant.id), await make_tenant(runtime.db)
    async with runtime.db.transaction(tenant.id) as session:
        secret = (await session.execute(select(Secret).where(Secret.id == secret_id))).scalar_one()
        key = (await session.execute(select(DataKey).where(DataKey.id == secret.data_key_id))).scalar_one()
    async with runtime.db.transaction(other.id) as session:
        for row, kind in ((key, DataKey), (secret, Secret)):
            values = {column.name: getattr(row, column.name) for column in kind.__table__.columns}
            session.add(kind(**{**values, "tenant_id": other.id}))
            await session.flush()
    with pytest.raises(UnreadableSecret):
        await openSecretStr(runtime, other.id, secret_id)


async def test_a_removed_secret_is_not_found(runtime: Runtime, tenant: MadeTenant) -> None:
    secret_id = await seal(runtime, tenant.id)
    async with runtime.db.transaction(tenant.id) as session:
        await runtime.vault.remove(session, tenant_id=tenant.id, secret_id=secret_id)
    with pytest.raises(NotFound):
        await openSecretStr(runtime, tenant.id, secret_id)


@pytest.mark.parametrize(
    "key", ["", "changeme", "00" * 32, "A" * 43 + "=", "5f3a9c07" * 4, "5f3a9c07" * 12, "not base64 !"]
)
def test_what_is_no_random_key_is_refused_with_the_command_that_makes_one(key: str) -> None:
    with pytest.raises(Invalid, match="pharos secrets generate encryption") as caught:
        parse_keys(key, source="PHAROS_ENCRYPTION_KEY")
    assert caught.value.code == "weak_encryption_key"


@pytest.mark.contract("SE-10", part="the encryption key")
def test_keys_are_read_from_a_file_in_their_order(tmp_path: Path) -> None:
    file, second = tmp_path / "keys", secrets.token_urlsafe(32)
    file.write_text(f"{ENCRYPTION_KEY}\n{second}\n{ENCRYPTION_KEY}\n")
    settings = Settings(_env_file=None, data_dir=tmp_path, encryption_key_file=file)
    assert [key.id for key in read_keys(settings)] == [
        parse_keys(key, source="")[0].id for key in (ENCRYPTION_KEY, second)
    ]
    assert ENCRYPTION_KEY not in repr(read_keys(settings))


async def test_a_new_installation_makes_its_key_once_and_for_its_owner_only(fresh_runtime: Runtime) -> None:
    settings = fresh_runtime.settings.model_copy(update={"encryption_key": None})
    async with system_transaction(fresh_runtime.db) as session:
        first = await Vault(settings).check(session)
    file = settings.data_dir / "secrets" / "encryption_key"
    assert file.stat().st_mode & 0o777 == 0o600
    async with system_transaction(fresh_runtime.db) as session:
        assert await Vault(settings).check(session) == first
        assert (await session.execute(select(EncryptionKey.id))).scalars().all() == [first]


@pytest.mark.contract("SE-04", part="a missing key is never made anew")
async def test_a_missing_key_file_is_not_replaced_while_secrets_rest_on_it(fresh_runtime: Runtime) -> None:
    tenant = await make_tenant(fresh_runtime.db)
    settings = fresh_runtime.settings.model_copy(update={"encryption_key": None})
    file = settings.data_dir / "secrets" / "encryption_key"
    async with fresh_runtime.db.transaction(tenant.id) as session:
        vault = Vault(settings)
        secret_id = await vault.seal(session, tenant_id=tenant.id, kind="llm", name="a", text=TEXT)
    kept = file.read_text()
    file.unlink()
    new = await make_tenant(fresh_runtime.db)
    async with fresh_runtime.db.transaction(new.id) as session:
        for work in (Vault(settings).check(session), Vault(settings).add_data_key(session, new.id)):
            with pytest.raises(Conflict, match="Put the file back") as caught:
                await work
            assert caught.value.code == "missing_encryption_key"
            assert not file.exists()
    file.write_text(kept)
    async with fresh_runtime.db.transaction(tenant.id) as session:
        assert await Vault(settings).open(session, tenant_id=tenant.id, secret_id=secret_id) == TEXT


@pytest.mark.contract("LP-12", part="a changed key is named, an old one can be given back for reading")
async def test_a_wrong_key_is_refused_and_the_old_one_as_second_reads_again(fresh_runtime: Runtime) -> None:
    tenant = await make_tenant(fresh_runtime.db)
    secret_id, settings = await seal(fresh_runtime, tenant.id), fresh_runtime.settings
    wrong = secrets.token_hex(32)
    changed = Vault(settings.model_copy(update={"encryption_key": SecretStr(wrong)}))
    with pytest.raises(Conflict, match="as a second one") as caught:
        async with system_transaction(fresh_runtime.db) as session:
            await changed.check(session)
    assert caught.value.code == "wrong_encryption_key"
    with pytest.raises(UnreadableSecret):
        async with fresh_runtime.db.transaction(tenant.id) as session:
            await changed.open(session, tenant_id=tenant.id, secret_id=secret_id)
    both = Vault(settings.model_copy(update={"encryption_key": SecretStr(f"{wrong},{ENCRYPTION_KEY}")}))
    async with fresh_runtime.db.transaction(tenant.id) as session:
        await both.check(session)
        assert await both.open(session, tenant_id=tenant.id, secret_id=secret_id) == TEXT
