"""The log files of the parts: opened for appending, set aside when large, kept 31 days."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

COMMANDS_LOG = "commands"
"""Named like a part: what the commands log that people and timers run."""
ROTATE_BYTES = 50 * 1024**2
KEEP_DAYS = 31
"""The monthly review reads 720 hours of logs."""


def log_file(data_dir: Path, part: str) -> Path:
    """Where a part writes its log."""
    return data_dir / "logs" / f"{part}.log"


def open_log(data_dir: Path, part: str) -> IO[bytes]:
    """A part's log, for its child process to append to."""
    path = log_file(data_dir, part)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path.open("ab")


def rotate_logs(data_dir: Path) -> None:
    """Copy a large log aside and empty it: its process goes on writing to the same, now short, file."""
    for path in (data_dir / "logs").glob("*.log"):
        is_aside = path.stem[-1:].isdigit()
        if is_aside and time.time() - path.stat().st_mtime > KEEP_DAYS * 86400:
            path.unlink()
        elif not is_aside and path.stat().st_size > ROTATE_BYTES:
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            shutil.copy2(path, path.with_name(f"{path.stem}-{stamp}.log"))
            with path.open("r+b") as file:
                file.truncate()
