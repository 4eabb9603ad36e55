"""Passwords: Argon2id, and the same work whether or not there is somebody to compare with."""

from __future__ import annotations

from functools import cache

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from pharos.infra.errors import Invalid

MIN_CHARACTERS = 12
MAX_CHARACTERS = 200

HASHING = PasswordHash((Argon2Hasher(),))


def hash_password(password: str) -> str:
    """The stored form of a password; takes tens of milliseconds on purpose, so call it in a thread."""
    return HASHING.hash(password)


def password_matches(password: str, stored: str | None) -> bool:
    """True if `password` is the one behind `stored`; without one it costs as much time and is false."""
    matches = HASHING.verify(password[:MAX_CHARACTERS], stored or _nobodys_hash())
    return matches and stored is not None


def check_new_password(password: str) -> None:
    """Raise `Invalid` unless the password is long enough to be worth having."""
    if not MIN_CHARACTERS <= len(password) <= MAX_CHARACTERS or len(set(password)) < 4:
        raise Invalid(
            f"A password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters and is not one character repeated.",
            code="weak_password",
        )


@cache
def _nobodys_hash() -> str:
    return HASHING.hash("nobody has this password")
