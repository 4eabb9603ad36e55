"""What is wrong with a backup is remembered wherever it is found, so that nobody and no schedule relies on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import MANIFEST
from pharos.ops.backup.store import record_verification

log = get_logger(__name__)

FAULTS_OF_THE_BACKUP = (Conflict, Invalid, NotFound)
"""Kinds that say something about the backup; a full disk or a server that does not start say nothing about it."""
FAULTS_OF_THE_QUESTION = {
    "unknown_signer",
    "escrow_not_opened",
    "bad_identity_file",
    "bad_public_key",
    "bad_signing_key",
    "newer_schema",
    "newer_backup",
    "renamed_backup",
}
"""Whoever asks has a wrong or a damaged key or too old a Pharos, or gave it another name: the backup may be good."""


@contextmanager
def remember_faults(settings: Settings, folder: Path) -> Iterator[None]:
    """While a backup is checked: a fault of its own makes it `failed` with the reason, then goes on to the caller."""
    started = time.monotonic()
    try:
        yield
    except FAULTS_OF_THE_BACKUP as error:
        # without a manifest it is no backup, and its name is known to nobody
        if error.code not in FAULTS_OF_THE_QUESTION and (folder / MANIFEST).is_file():
            try:
                record_verification(settings, folder, seconds=time.monotonic() - started, error=error)
            except OSError as failure:  # a full or read-only disk; what is wrong with the backup counts more
                log.warning("backup.fault_not_kept", folder=str(folder), code=error.code, reason=str(failure))
        raise
