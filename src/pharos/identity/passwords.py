"""Passwords: Argon2id, and the same work whether or not there is somebody to compare with.

Hashing takes tens of milliseconds on purpose. It runs in one or two threads of its own with a lower claim on the
processor, so that many sign-ins at once wait for each other and nobody else waits for them.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from pharos.infra.errors import Invalid

MIN_CHARACTERS = 12
MAX_CHARACTERS = 200
RANDOM_CHARACTERS = 24
"""Of a password that we make (F-39)."""
GUESSED_FIRST = re.compile(
    "password|passwort|pharos|welcome|letmein|iloveyou|administrator|admin|changeme|secret|qwertyuiop|qwertzuiop|"
    "qwerty|qwertz|asdfghjkl|zxcvbnm|abcdefghijklmnopqrstuvwxyz|abcdef|abc"
)
"""Words and rows of keys that alone, several or with digits make no password."""
REPEATED = re.compile(r"(.{1,6})\1{2,}")
THREADS = max(1, min(2, (os.cpu_count() or 1) - 1))
"""One processor always stays free for everybody else's requests."""
NICENESS = 5

# One lane: the library's four would be four threads a hash, which on a small machine take the processor from
# everybody else for no better protection.
HASHING = PasswordHash((Argon2Hasher(parallelism=1),))


def hash_password(password: str) -> str:
    """The stored form of a password. Blocks: where requests wait use `hash_apart`."""
    return HASHING.hash(password)


def password_matches(password: str, stored: str | None) -> bool:
    """True if `password` is the one behind `stored`; without one it costs as much time and is false.

    Blocks: where requests wait use `matches_apart`.
    """
    matches = HASHING.verify(password[:MAX_CHARACTERS], stored or _nobodys_hash())
    return matches and stored is not None


async def hash_apart(password: str) -> str:
    """`hash_password` off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), hash_password, password)


async def matches_apart(password: str, stored: str | None) -> bool:
    """`password_matches` off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), password_matches, password, stored)


def random_password() -> str:
    """24 characters that nobody has to remember: they are changed at the first sign-in (F-39)."""
    return secrets.token_urlsafe(RANDOM_CHARACTERS)[:RANDOM_CHARACTERS]


def check_new_password(password: str) -> None:
    """Raise `Invalid` unless the password is long enough and not one of those that are guessed first."""
    if not MIN_CHARACTERS <= len(password) <= MAX_CHARACTERS or len(set(password)) < 4:
        raise Invalid(
            f"A password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters and is not one character repeated.",
            code="weak_password",
        )
    plain = re.sub(r"[\W_]", "", password.lower())
    if not re.sub(r"\d", "", GUESSED_FIRST.sub("", plain)) or REPEATED.fullmatch(plain):
        raise Invalid(
            "This password is among the first that are guessed: a common word with digits, a row of keys, or a pattern "
            "repeated. Take a few unrelated words.",
            code="weak_password",
        )


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="argon2", initializer=_step_back)


def _step_back() -> None:
    # On Linux a priority belongs to a thread; elsewhere it is the whole process's, which must keep its own.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@cache
def _nobodys_hash() -> str:
    return HASHING.hash("nobody has this password")
