"""Who made a backup: an Ed25519 signature over the bytes of its manifest, which names every other file by its hash.

The key is made once and stays on the machine; it only says where a backup comes from and opens nothing. A key is named
by its public half, base64 of 32 bytes.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pharos.infra.errors import Invalid
from pharos.infra.secret_files import create_secret, write_secret
from pharos.infra.settings import Settings

PUBLIC_KEY_BYTES = 32


def signing_key_file(settings: Settings) -> Path:
    """Where the private half lies."""
    return settings.data_dir / "secrets" / "backup_signing_key"


def known_keys_file(settings: Settings) -> Path:
    """Public keys of other installations whose backups are trusted here, one a line."""
    return settings.data_dir / "secrets" / "backup_known_keys"


def public_key(settings: Settings) -> str:
    """The public half of this installation's key, which is made if there is none."""
    return _text(_private_key(settings).public_key())


def own_key(settings: Settings) -> str | None:
    """The same where there is one: nothing is made by looking."""
    return public_key(settings) if signing_key_file(settings).exists() else None


def sign(settings: Settings, message: bytes) -> bytes:
    """The content of `manifest.sig` for these bytes: base64 and a line end."""
    return base64.b64encode(_private_key(settings).sign(message)) + b"\n"


def is_signed_by(key: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature`, as `sign` returns it, is that of `key` over `message`. Raises `Invalid` for a key that is
    none."""
    public = Ed25519PublicKey.from_public_bytes(_bytes(key))
    try:
        # b64decode ignores what follows the padding: only the one spelling counts, so that each flipped bit is noticed
        raw = base64.b64decode(signature.strip(), validate=True)
        public.verify(raw, message)
    except (binascii.Error, InvalidSignature):
        return False
    return base64.b64encode(raw) + b"\n" == signature


def known_keys(settings: Settings) -> frozenset[str]:
    """The keys whose backups may be restored here without being named: this installation's and the remembered ones.

    Makes no key: a machine without one knows none of its own.
    """
    own = {key} if (key := own_key(settings)) else set()
    try:
        return frozenset(own | set(known_keys_file(settings).read_text().split()))
    except FileNotFoundError:
        return frozenset(own)


def remember_key(settings: Settings, key: str) -> None:
    """From now on trust backups signed by `key`: the installation they came from lives on here. Raises `Invalid`."""
    _bytes(key)
    known = known_keys(settings)
    if key not in known:
        own = {mine} if (mine := own_key(settings)) else set()
        write_secret(known_keys_file(settings), "".join(f"{one}\n" for one in sorted((known | {key}) - own)))


def _private_key(settings: Settings) -> Ed25519PrivateKey:
    file = signing_key_file(settings)
    if not file.exists():
        create_secret(file, base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode() + "\n")
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(file.read_text().strip(), validate=True))
    except ValueError as error:
        raise Invalid(
            f"{file} holds no signing key. Put it back from a copy, or remove it: a new one is made, and older backups "
            "must then be named with `--signed-by`.",
            code="bad_signing_key",
        ) from error


def _bytes(key: str) -> bytes:
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _no_key(key) from error
    if len(raw) != PUBLIC_KEY_BYTES:
        raise _no_key(key)
    return raw


def _no_key(key: str) -> Invalid:
    return Invalid(
        f"“{key[:60]}” is no signing key: it is 32 bytes as base64. `pharos backup show` prints that of a backup.",
        code="bad_public_key",
    )


def _text(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()
