"""A backup is what has been restored: load it into a scratch server, compare it, open every secret."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from pharos.infra.settings import Settings
from pharos.ops.backup.check import check_backup, check_escrow
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.restore_plan import Tell, refuse_no_room_to_load
from pharos.ops.backup.scratch import (
    compare_tables,
    load_backup,
    open_secrets,
    refuse_differences,
    refuse_unopened,
    scratch_server,
)
from pharos.ops.backup.store import record_verification


@dataclass(frozen=True)
class Verified:
    """What was compared and opened, and how long it took."""

    backup: str
    tables: int
    rows: int
    blobs: int
    data_keys: int
    secrets: int
    seconds: float


def verify_backup(
    settings: Settings, folder: Path, *, tell: Tell, identity: Path | None = None, signed_by: str | None = None
) -> Verified:
    """Check every file, restore into a scratch server, compare every table, open every secret with the escrow's keys.

    The result is kept beside the backup and in its row. Raises what was wrong; a reason outside the backup is not kept.
    """
    started = time.monotonic()
    with remember_faults(settings, folder):
        found = _verify(settings, folder, tell=tell, identity=identity, signed_by=signed_by)
    record_verification(settings, folder, seconds=time.monotonic() - started)
    return replace(found, seconds=round(time.monotonic() - started, 3))


def _verify(settings: Settings, folder: Path, *, tell: Tell, identity: Path | None, signed_by: str | None) -> Verified:
    tell("check", f"Checking every file of {folder.name}")
    manifest = check_backup(settings, folder, signed_by=signed_by, identity=identity)
    refuse_no_room_to_load(settings, manifest)
    tell("load", "Restoring into a scratch server")
    with scratch_server(settings) as server:
        loaded = load_backup(server, folder)
        tell("compare", f"Comparing {len(manifest.tables)} tables with the manifest")
        refuse_differences(compare_tables(loaded, manifest), name=manifest.name)
        tell("secrets", "Opening every secret")
        opened = open_secrets(loaded, check_escrow(settings, folder, manifest, identity=identity).keys)
        refuse_unopened(opened, name=manifest.name)
    return Verified(
        backup=manifest.name,
        tables=len(manifest.tables),
        rows=sum(state.rows for state in manifest.tables.values()),
        blobs=manifest.blobs.count,
        data_keys=opened.data_keys,
        secrets=opened.secrets,
        seconds=0.0,
    )
