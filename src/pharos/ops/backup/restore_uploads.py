"""Bring back uploaded files alone, from any backup whose uploaded files are whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pharos.infra.settings import Settings
from pharos.ops.backup.check import check_uploads
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.restore_blobs import BlobChanges, add_blobs, compare_blobs
from pharos.ops.backup.restore_plan import Tell, refuse_no_room
from pharos.ops.backup.rollback_points import STAMP
from pharos.ops.backup.store import FAILED, describe_folder
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.running import read_state


def restore_uploads(settings: Settings, folder: Path, *, signed_by: str | None, tell: Tell) -> BlobChanges:
    """Add the blobs that are missing or damaged and change nothing else; Pharos may run.

    What is not read is not checked: neither a damaged dump nor an escrow that nobody opens is in the way. Raises the
    error of the first check that fails, and `StorageFull`.
    """
    tell("check", f"Checking the uploaded files of {folder.name}; its database and keys are not read")
    with remember_faults(settings, folder):
        check_uploads(settings, folder, signed_by=signed_by)
    if (known := describe_folder(folder)).state == FAILED:
        tell("state", f"{folder.name} has failed ({known.error_code}), but its uploaded files are whole")
    changes = compare_blobs(settings, folder)
    refuse_no_room(settings, changes.bytes)
    is_served = read_state(settings) is not None or settings.database_url is not None
    with hold_operation_lock(settings, "restore of uploads", with_database=is_served):
        tell("blobs", f"Adding {len(changes.missing) + len(changes.damaged)} uploaded files")
        add_blobs(settings, folder, changes, stamp=datetime.now(UTC).strftime(STAMP))
    return changes
