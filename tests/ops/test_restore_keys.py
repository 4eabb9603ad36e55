"""A backup that today's keys, or its own, do not open is refused in words, and what is live stays as it was."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import select
from tests.ops.installation import SECRET, first_day, make_installation, quiet, with_runtime
from tests.postgres import Server

from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.keyring import read_keys
from pharos.infra.models import Secret
from pharos.infra.settings import Settings
from pharos.ops.backup.fingerprints import fingerprint_tables
from pharos.ops.backup.manifest import TableState
from pharos.ops.backup.restore import restore, undo_restore
from pharos.ops.backup.restore_keys import KeyStep
from pharos.ops.backup.snapshot import make_backup
from pharos.ops.backup.store import describe_folder
from pharos.ops.rotate_encryption import rotate_encryption
from pharos.runtime import Runtime

pytestmark = pytest.mark.xdist_group("restore_keys")  # one installation for all of them

FLIP_A_BIT = "update data_keys set wrapped = set_byte(wrapped, 0, get_byte(wrapped, 0) # 1)"


@pytest.fixture(scope="module")
def installed(database_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = make_installation(database_server, tmp_path_factory.mktemp("keys"))
    with_runtime(settings, first_day)
    return settings


def state_of(settings: Settings) -> dict[str, TableState]:
    """Of what a backup does not change: it writes a row about itself."""
    with psycopg.connect(connection_urls(settings).backup) as connection:
        return {name: state for name, state in fingerprint_tables(connection).items() if name != "backups"}


def flip_in_every_tenant(settings: Settings) -> None:
    with psycopg.connect(connection_urls(settings).direct) as connection:
        for (tenant_id,) in connection.execute("select id from tenants").fetchall():
            connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant_id)])
            assert connection.execute(FLIP_A_BIT).rowcount == 1


async def read_secret(runtime: Runtime) -> str:
    tenant_id = await ensure_default_tenant(runtime)
    async with runtime.db.transaction(tenant_id) as session:
        secret_id = (await session.execute(select(Secret.id))).scalar_one()
        return await runtime.vault.open(session, tenant_id=tenant_id, secret_id=secret_id)


def refused(settings: Settings, folder: Path) -> Conflict:
    before = state_of(settings)
    with pytest.raises(Conflict) as refusal:
        restore(settings, folder, tell=quiet)
    assert state_of(settings) == before
    return refusal.value


@pytest.mark.contract("RS-11", part="secrets that its own keys do not open")
def test_a_backup_whose_keys_do_not_open_its_secrets_is_refused(installed: Settings) -> None:
    flip_in_every_tenant(installed)
    folder = make_backup(installed)
    flip_in_every_tenant(installed)
    error = refused(installed, folder)
    assert error.code == "secrets_not_opened"
    assert "Nothing was changed" in error.message
    known = describe_folder(folder)
    assert (known.state, known.error_code) == ("failed", "secrets_not_opened"), "nothing relies on it from here on"
    assert with_runtime(installed, read_secret) == SECRET


@pytest.mark.contract("RS-11", part="a key that was retired before the backup was made")
def test_an_operators_key_that_was_retired_is_refused_and_the_newer_one_named(installed: Settings) -> None:
    [old] = read_keys(installed)
    rotation = with_runtime(installed, rotate_encryption)
    folder = make_backup(installed)
    with_the_old_one = installed.model_copy(update={"encryption_key": SecretStr(old.secret.hex())})
    error = refused(with_the_old_one, folder)
    assert error.code == "retired_encryption_key"
    assert f"the newer key {rotation.new_key} first" in error.message
    assert with_runtime(installed, read_secret) == SECRET


def test_a_backup_from_before_a_rotation_opens_with_todays_key_and_an_undo_without_its_key_does_not(
    installed: Settings,
) -> None:
    with pytest.raises(NotFound, match="no rollback point"):
        undo_restore(installed, tell=quiet)
    folder, before = make_backup(installed), state_of(installed)
    with_runtime(installed, rotate_encryption)
    done = restore(installed, folder, tell=quiet)
    assert (done.keys, done.secrets) == (KeyStep.REWRAP, 1)
    assert state_of(installed)["documents"] == before["documents"]
    assert with_runtime(installed, read_secret) == SECRET

    with_runtime(installed, rotate_encryption)
    today, *_ = read_keys(installed)
    without = installed.model_copy(update={"encryption_key": SecretStr(today.secret.hex())})
    before = state_of(installed)
    with pytest.raises(Conflict, match="do not open with the keys of PHAROS_ENCRYPTION_KEY") as refusal:
        undo_restore(without, tell=quiet)
    assert "Put the key from then there too" in refusal.value.message
    assert state_of(installed) == before
