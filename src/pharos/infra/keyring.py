"""The keys that encrypt every tenant's data key: where they come from and what makes one fit.

Several may be given, separated by commas or lines: the first encrypts, the others only read. They come from
`PHAROS_ENCRYPTION_KEY`, or from a file that running processes read again when they meet a key they do not know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path

from pharos.infra.envelope import KEY_BYTES, new_key
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.secret_files import create_secret, write_secret
from pharos.infra.settings import Settings

CHECK = b"pharos key check"
MIN_DISTINCT_BYTES = 12
"""Fewer are practically never random: typed and repeated ones have them, one in 10^24 random keys does."""


@dataclass(frozen=True)
class EncryptionSecret:
    """A key-encryption key; `id` is its check value, which the database keeps and which says nothing about it."""

    id: str
    secret: bytes = field(repr=False)


def read_keys(settings: Settings) -> tuple[EncryptionSecret, ...]:
    """The keys, the encrypting one first; none when the generated file is not there (yet).

    Raises `Invalid` for one that is no key, `Conflict` when a file named by the operator is missing.
    """
    if settings.encryption_key is not None:
        return parse_keys(settings.encryption_key.get_secret_value(), source="PHAROS_ENCRYPTION_KEY")
    file = key_file(settings)
    try:
        text = file.read_text()
    except FileNotFoundError as error:
        if settings.encryption_key_file is None:
            return ()
        raise Conflict(
            f"The file {file} named by PHAROS_ENCRYPTION_KEY_FILE is not there. Put it back, or make a first one: "
            f"`pharos secrets generate encryption > {file}`.",
            code="missing_encryption_key",
        ) from error
    return parse_keys(text, source=str(file))


def parse_keys(text: str, *, source: str) -> tuple[EncryptionSecret, ...]:
    """Keys of 32 bytes as hex or base64, in their order and each once. Raises `Invalid` naming the source."""
    found: dict[str, EncryptionSecret] = {}
    for word in re.split(r"[,\s]+", text.strip()):
        secret = _decode(word)
        if secret is None or len(secret) != KEY_BYTES or len(set(secret)) < MIN_DISTINCT_BYTES:
            raise Invalid(
                f"{source} must hold 32 random bytes as base64 or hex, and no placeholder. An installation without "
                "secrets takes a new one: `pharos secrets generate encryption`; any other needs the one it had.",
                code="weak_encryption_key",
            )
        key = encryption_secret(secret)
        found.setdefault(key.id, key)
    return tuple(found.values())


def encryption_secret(secret: bytes) -> EncryptionSecret:
    """The key with its check value."""
    return EncryptionSecret(hmac.new(secret, CHECK, hashlib.sha256).hexdigest()[:16], secret)


def key_file(settings: Settings) -> Path:
    """The file the keys lie in when the environment does not hold them."""
    return settings.encryption_key_file or settings.data_dir / "secrets" / "encryption_key"


def key_source(settings: Settings) -> str:
    """Where the keys come from, in words of the operator."""
    return "PHAROS_ENCRYPTION_KEY" if settings.encryption_key is not None else str(key_file(settings))


def generate_key(settings: Settings) -> None:
    """Make the key file unless there is one; of two processes that start together one makes it."""
    create_secret(key_file(settings), key_text(new_key()) + "\n")


def write_keys(settings: Settings, keys: tuple[EncryptionSecret, ...]) -> None:
    """Replace the key file at once and whole; the first of `keys` encrypts from now on."""
    write_secret(key_file(settings), "".join(f"{key_text(key.secret)}\n" for key in keys))


def key_text(secret: bytes) -> str:
    """A key as it stands in a file or a variable: base64."""
    return base64.b64encode(secret).decode()


def _decode(word: str) -> bytes | None:
    if re.fullmatch(r"[0-9a-fA-F]{64}", word):
        return bytes.fromhex(word)
    try:
        return base64.b64decode(word.replace("-", "+").replace("_", "/") + "=" * (-len(word) % 4), validate=True)
    except binascii.Error:
        return None
