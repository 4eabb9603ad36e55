"""Bring a database in use to the schema of this code: alone, and never without a backup of what it was."""

from __future__ import annotations

from pathlib import Path

from pharos.identity.audit import record_audit
from pharos.identity.principal import operator
from pharos.infra import migrate
from pharos.infra.database_roles import connection_urls
from pharos.infra.settings import Settings
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.secrets_check import every_tenant
from pharos.runtime import open_runtime


def upgrade_schema(settings: Settings, *, skip_backup: bool = False) -> tuple[migrate.SchemaState, Path | None]:
    """Apply what is pending; returns the state and the folder of the backup that was made before.

    None is made for an empty database, when nothing is pending, or with `skip_backup`. Raises what a backup raises
    before anything was changed, `Conflict` while another operation runs, and what `migrate.upgrade` raises.
    """
    urls = connection_urls(settings)
    before = migrate.schema_state(urls.migrator)
    if before.current is None or not before.pending:
        return migrate.upgrade(urls.migrator, owner=urls.owner_role), None
    with hold_operation_lock(settings, "migrate"):
        backup = None if skip_backup else _back_up(settings)
        return migrate.upgrade(urls.migrator, owner=urls.owner_role), backup


async def record_skipped_backup(settings: Settings, state: migrate.SchemaState) -> None:
    """Keep in every tenant's audit log that its data was migrated without a way back."""
    async with open_runtime(settings) as runtime:
        for tenant_id, _ in await every_tenant(runtime):
            async with runtime.db.transaction(tenant_id) as session:
                await record_audit(
                    session,
                    operator(tenant_id),
                    action="schema.migrated_without_backup",
                    subject=f"schema:{state.current}",
                    steps=list(state.pending),
                )


def _back_up(settings: Settings) -> Path:
    from pharos.ops.backup.snapshot import write_backup  # a start with nothing pending needs none of what it rests on

    return write_backup(settings)
