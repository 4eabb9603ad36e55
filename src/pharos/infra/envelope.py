"""Authenticated encryption of one value at one place: AES-256-GCM, bound to its tenant, table and row."""

from __future__ import annotations

import os
from dataclasses import dataclass
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
"""96 random bits (NIST SP 800-38D): good for 2^32 values under one key, far more than one tenant has secrets."""


@dataclass(frozen=True)
class Sealed:
    """A ciphertext with its tag at the end, and the nonce it was made with."""

    nonce: bytes
    ciphertext: bytes


def new_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_BYTES)


def place(tenant_id: UUID, table: str, row_id: UUID) -> bytes:
    """What binds a ciphertext to its row: moved to any other it does not open."""
    return f"{tenant_id}:{table}:{row_id}".encode()


def seal_bytes(key: bytes, plain: bytes, at: bytes) -> Sealed:
    """Encrypt `plain` for the place `at`, with a fresh nonce."""
    nonce = os.urandom(NONCE_BYTES)
    return Sealed(nonce, AESGCM(key).encrypt(nonce, plain, at))


def open_bytes(key: bytes, sealed: Sealed, at: bytes) -> bytes | None:
    """The plain bytes; None when key, place or ciphertext is not the one it was sealed with."""
    try:
        return AESGCM(key).decrypt(sealed.nonce, sealed.ciphertext, at)
    except InvalidTag:
        return None
