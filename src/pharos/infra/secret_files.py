"""Secrets in files of the data directory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_secret(file: Path, text: str) -> None:
    """Write a file of mode 0600 in a directory of mode 0700; it appears whole or not at all."""
    fresh = _write_beside(file, text)
    fresh.replace(file)
    _keep_name(file.parent)


def create_secret(file: Path, text: str) -> None:
    """The same, but a file that is there stays: of two processes that start together only one makes it."""
    if file.exists():
        return
    fresh = _write_beside(file, text)
    try:
        os.link(fresh, file)  # unlike a rename it fails when somebody was faster
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    _keep_name(file.parent)


def _write_beside(file: Path, text: str) -> Path:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    return fresh


def _keep_name(directory: Path) -> None:
    """A power cut must not take the new name away: what was encrypted with a lost key is lost."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_or_make_secret(file: Path) -> str:
    """The text of a secret file; a missing one is made of 256 random bits."""
    create_secret(file, secrets.token_hex(32))
    return file.read_text().strip()
