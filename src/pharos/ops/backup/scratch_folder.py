"""Folders below `<data_dir>/tmp` for as long as one process works in them, and the end of what a killed one left.

Whoever has one holds a lock on it that the kernel drops when its holder dies. So nobody asks whether a process number
still means what it meant, and what another installation has is never looked at: its folders lie below its own data.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pharos.infra import embedded_postgres
from pharos.infra.errors import PharosError
from pharos.infra.logs import get_logger

log = get_logger(__name__)


@contextmanager
def scratch_folder(data_dir: Path, *, prefix: str) -> Iterator[Path]:
    """A folder of this process, removed at the end with the server in it, also after a failure.

    What killed processes left is removed first.
    """
    above = _above(data_dir)
    above.mkdir(parents=True, exist_ok=True, mode=0o700)
    sweep_scratch(data_dir)
    home, lock = _claim_new(above, prefix)
    try:
        yield home
    finally:
        _remove(home)
        os.close(lock)


def sweep_scratch(data_dir: Path) -> list[str]:
    """Remove folders whose process is gone, their servers and their clusters wherever these lie; returns names."""
    removed = []
    for home in sorted(_above(data_dir).glob("*/")):
        lock = _open(home)
        if lock is None:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(home, lock) and _remove(home):
                removed.append(home.name)
        except BlockingIOError:
            continue  # somebody works in it, or removes it just now
        finally:
            os.close(lock)
    if removed:
        log.warning("scratch.removed", folders=removed)
    return removed


def _above(data_dir: Path) -> Path:
    return data_dir.absolute() / "tmp"


def _claim_new(above: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and the open handle whose lock says that it is ours.

    Between the two a sweep may take it for one that was left: then there is another.
    """
    while True:
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
        lock = _open(home)
        if lock is None:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_still(home, lock):
            return home, lock
        os.close(lock)


def _open(home: Path) -> int | None:
    try:
        return os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


def _is_still(home: Path, lock: int) -> bool:
    """Whether the folder that was opened is the one that has this name."""
    try:
        return os.path.samestat(home.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _remove(home: Path) -> bool:
    """Whether it went; what cannot be removed now the next sweep tries again."""
    try:
        embedded_postgres.delete_scratch(home)
        shutil.rmtree(home)
    except (OSError, PharosError) as error:
        log.warning("scratch.not_removed", folder=home.name, reason=str(error))
        return False
    return True
