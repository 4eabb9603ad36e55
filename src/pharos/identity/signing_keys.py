"""The two signing secrets: one behind access and refresh tokens, one behind cookies and forms.

Each comes from the environment or is made once in the data directory. A generated one can be rotated while processes
run: they look at the file's change time on each use. A previous one that was given a grace only verifies.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pharos.infra.errors import Invalid
from pharos.infra.secret_files import create_secret, write_secret
from pharos.infra.settings import Settings, refuse_two_values, variable_of

KNOWN_DEFAULTS = ("change", "secret", "your-", "your_", "default", "example", "insecure", "password")
MIN_DISTINCT = 4


@dataclass(frozen=True)
class SigningSecret:
    """One of the two: its setting (the generated file has the same name), its least length, what it is called."""

    setting: str
    min_bytes: int
    name: str

    @property
    def variable(self) -> str:
        """The one that gives it, as somebody typed it."""
        return variable_of(self.setting)


JWT = SigningSecret("secret_key", 32, "jwt")
SESSION = SigningSecret("session_secret", 16, "session")
SIGNING_SECRETS = (JWT, SESSION)


def signing_key(settings: Settings) -> bytes:
    """The secret that signs access tokens. Raises `Invalid` for one that is too short or looks like a placeholder."""
    return current_key(settings, JWT)


def current_key(settings: Settings, which: SigningSecret) -> bytes:
    """The secret that signs. Raises `Invalid` for one that is too short or looks like a placeholder."""
    given = _given(settings, which)
    if given is not None:
        return _checked(given, which)
    file = secret_file(settings, which)
    if not file.exists():
        create_secret(file, secrets.token_hex(32))
    return _checked(_read(file).strip(), which)


def refuse_bad_signing_secrets(settings: Settings) -> None:
    """Raise `Invalid` for a signing secret that is short, a placeholder, or set twice differently."""
    refuse_two_values()
    for which in SIGNING_SECRETS:
        current_key(settings, which)


def verifying_keys(settings: Settings, which: SigningSecret, *, now: datetime | None = None) -> list[bytes]:
    """Every secret whose signatures count, the current one first; one with an ended grace is none of them."""
    current = current_key(settings, which)
    if is_given(settings, which):
        return [current]
    try:
        previous = json.loads(_read(previous_file(settings, which)))
    except FileNotFoundError:
        return [current]
    is_over = datetime.fromisoformat(previous["until"]) <= (now or datetime.now(UTC))
    return [current] if is_over else [current, _checked(previous["secret"], which)]


def is_given(settings: Settings, which: SigningSecret) -> bool:
    """Whether the operator holds the secret, so that no command of ours may change it."""
    return _given(settings, which) is not None


def rotate_key(settings: Settings, which: SigningSecret, *, keep_until: datetime | None) -> None:
    """Replace a generated secret. The old one verifies until `keep_until`, or from now on not at all."""
    old = current_key(settings, which)
    file = previous_file(settings, which)
    if keep_until is None:
        file.unlink(missing_ok=True)
    else:
        write_secret(file, json.dumps({"secret": old.decode(), "until": keep_until.isoformat()}))
    write_secret(secret_file(settings, which), secrets.token_hex(32))


def secret_file(settings: Settings, which: SigningSecret) -> Path:
    """Where the generated secret lies."""
    return settings.data_dir / "secrets" / which.setting


def previous_file(settings: Settings, which: SigningSecret) -> Path:
    """Where the one before lies while its grace lasts."""
    return settings.data_dir / "secrets" / f"{which.setting}.previous"


def key_id(key: bytes) -> str:
    """An opaque name of a key; says nothing about it."""
    return hashlib.sha256(b"kid:" + key).hexdigest()[:16]


def _given(settings: Settings, which: SigningSecret) -> str | None:
    value = settings.secret_key if which is JWT else settings.session_secret
    return value.get_secret_value() if value is not None else None


@cache
def _checked(secret: str, which: SigningSecret) -> bytes:
    key = secret.encode()
    is_guessable = secret.lower().startswith(KNOWN_DEFAULTS) or len(set(secret)) < MIN_DISTINCT
    if len(key) < which.min_bytes or is_guessable:
        raise Invalid(
            f"{which.variable} must be at least {which.min_bytes} bytes and no placeholder. Make one with "
            f"`pharos secrets generate {which.name}`, or leave it unset.",
            code=f"weak_{which.setting}",
        )
    return key


_seen: dict[Path, tuple[tuple[int, int], str]] = {}


def _read(file: Path) -> str:
    """The text of a file, read again only when it was replaced: `stat` costs a microsecond, and no request waits."""
    stat = file.stat()
    version = (stat.st_mtime_ns, stat.st_ino)
    seen = _seen.get(file)
    if seen is None or seen[0] != version:
        seen = _seen[file] = (version, file.read_text())
    return seen[1]
