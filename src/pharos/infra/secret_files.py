"""Secrets in files of the data directory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_secret(file: Path, text: str) -> None:
    """Write a file of mode 0600 in a directory of mode 0700; it appears whole or not at all."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
