"""`escrow.age`: what a backup needs besides its data to be of use on an empty machine, encrypted with age.

Inside are the key-encryption keys, the signing secrets and the settings that were made, secrets of other services
among them; no password of a database role, which each server has its own of. Two can open it: the *drill identity*, a
file of mode 0600 on this machine that lets verification and drills run unattended, and the operator's *offline
identity*, of which the machine knows the public half only (`PHAROS_BACKUP_RECIPIENT`). Who loses the machine has the
second one alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]
from pydantic import SecretStr
from pyrage import x25519

from pharos.identity.signing_keys import SIGNING_SECRETS, current_key, secret_file
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.keyring import EncryptionSecret, key_text, parse_keys, read_keys, write_keys
from pharos.infra.secret_files import create_secret, write_secret
from pharos.infra.settings import Settings
from pharos.ops.backup import manifest, signing

ESCROW_FILE = manifest.ESCROW
FORMAT = 1
OF_ITS_OWN = {"encryption_key", "encryption_key_file", "secret_key", "session_secret"}
"""Settings whose value stands elsewhere in the escrow."""
OF_THE_SERVER = {"database_url", "database_admin_url", "database_direct_url"}
"""Settings with a database role's password: another server has other ones."""


@dataclass(frozen=True)
class Escrow:
    """`encryption_keys` as base64, the encrypting one first; `signing_secrets` by name of the setting; `settings` by
    variable, as they stand in `pharos.env`; `signed_by` is the public half of the backups' signing key."""

    encryption_keys: tuple[str, ...] = field(repr=False)
    signing_secrets: dict[str, str] = field(repr=False)
    settings: dict[str, str] = field(repr=False)
    signed_by: str
    format: int = FORMAT

    @property
    def keys(self) -> tuple[EncryptionSecret, ...]:
        """The key-encryption keys with their check values. Raises `Invalid` for one that is none."""
        return parse_keys("\n".join(self.encryption_keys), source=ESCROW_FILE) if self.encryption_keys else ()


def collect_escrow(settings: Settings) -> Escrow:
    """What of this installation belongs into the escrow now."""
    return Escrow(
        encryption_keys=tuple(key_text(key.secret) for key in read_keys(settings)),
        signing_secrets={which.setting: current_key(settings, which).decode() for which in SIGNING_SECRETS},
        settings=_settings_made(settings),
        signed_by=signing.public_key(settings),
    )


def seal_escrow(settings: Settings) -> bytes:
    """The content of `escrow.age`. Raises `Invalid` for a `PHAROS_BACKUP_RECIPIENT` that is no public key."""
    text = json.dumps(asdict(collect_escrow(settings)), sort_keys=True)
    sealed: bytes = pyrage.encrypt(text.encode(), recipients(settings))
    return sealed


def open_escrow(sealed: bytes, identity_file: Path) -> Escrow:
    """What `seal_escrow` sealed, opened with a file that holds an `AGE-SECRET-KEY-…`.

    Raises `Invalid` for a file without one, `Conflict` when it does not open this escrow or that is damaged.
    """
    identities = read_identities(identity_file)
    try:
        content = pyrage.decrypt(sealed, identities)
    except pyrage.DecryptError as error:
        raise Conflict(
            f"{identity_file} does not open {ESCROW_FILE}: it is another backup's identity, or the file is damaged "
            f"({error}). Name the identity that was in use then with `--identity FILE`, or take another backup.",
            code="escrow_not_opened",
        ) from error
    try:
        found = json.loads(content)
        if found["format"] == FORMAT:
            return Escrow(**{**found, "encryption_keys": tuple(found["encryption_keys"])})
    except (ValueError, KeyError, TypeError) as error:
        raise _unknown_format("is not what this Pharos writes") from error
    raise _unknown_format(f"has format {found['format']}; this Pharos reads {FORMAT}")


def drill_identity_file(settings: Settings) -> Path:
    """The identity that opens escrows unattended on this machine; `make_drill_identity` makes it."""
    return settings.data_dir / "secrets" / "drill_identity"


def make_drill_identity(settings: Settings) -> Path:
    """The file, made if there is none."""
    file = drill_identity_file(settings)
    if not file.exists():
        create_secret(file, f"{x25519.Identity.generate()}\n")
    return file


def recipients(settings: Settings) -> list[x25519.Recipient]:
    """Whose identities open an escrow that is sealed now: the drill's and the operator's."""
    drill = [identity.to_public() for identity in read_identities(make_drill_identity(settings))]
    return drill + offline_recipients(settings)


def offline_recipients(settings: Settings) -> list[x25519.Recipient]:
    """The public keys in `PHAROS_BACKUP_RECIPIENT`, separated by commas; none when it is not set. Raises `Invalid`."""
    try:
        return [x25519.Recipient.from_str(word) for word in offline_words(settings)]
    except pyrage.RecipientError as error:
        raise Invalid(
            "PHAROS_BACKUP_RECIPIENT must be the public key of an age identity, `age1…`. Make an identity on another "
            "machine with `age-keygen` and keep its private half there.",
            code="bad_backup_recipient",
        ) from error


def offline_words(settings: Settings) -> list[str]:
    """The same as they are written, for a comparison that must not fail where one is wrong."""
    return [word.strip().lower() for word in (settings.backup_recipient or "").split(",") if word.strip()]


def seal_for_offline(settings: Settings, secret: bytes) -> str | None:
    """A secret as age's armoured text that the operator's identities alone open; None without a recipient."""
    if not (operators := offline_recipients(settings)):
        return None
    sealed: bytes = pyrage.encrypt(secret, operators, armored=True)
    return sealed.decode()


def offline_warning(settings: Settings) -> str | None:
    """What to tell an operator whose backups nobody can use once the machine is lost; None when all is well."""
    if offline_recipients(settings):
        return None
    return (
        "No offline recipient: if this machine is lost, nobody can open the keys in its backups. Make an identity on "
        "another machine (`age-keygen`) and set PHAROS_BACKUP_RECIPIENT to its public half."
    )


def write_secrets(settings: Settings, escrow: Escrow) -> None:
    """Put the keys and signing secrets of an escrow into the files of this installation.

    What the operator gives in the environment counts more and is left alone. Run it only where nothing is encrypted
    yet: the key file is replaced.
    """
    # first: once there is a key, a killed run is not repeated from here
    signing.remember_key(settings, escrow.signed_by)
    if settings.encryption_key is None and escrow.keys:
        write_keys(settings, escrow.keys)
    for which in SIGNING_SECRETS:
        if secret := escrow.signing_secrets.get(which.setting):
            write_secret(secret_file(settings, which), secret)


def _settings_made(settings: Settings) -> dict[str, str]:
    """Every setting that differs from its default, by variable."""
    made = {}
    for name, about in Settings.model_fields.items():
        value = getattr(settings, name)
        if name not in OF_ITS_OWN | OF_THE_SERVER and value is not None and value != about.default:
            made[f"PHAROS_{name.upper()}"] = _plain(value)
    return made


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def read_identities(file: Path) -> list[x25519.Identity]:
    """The identities of a file as `age-keygen` writes it; lines that begin with # say nothing. Raises `Invalid`
    (`bad_identity_file`) when there is none."""
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        how = "may not be read by you" if isinstance(error, PermissionError) else "is not there"
        raise Invalid(
            f"The identity {file} {how}. Bring the offline identity to this machine, the file that `age-keygen` wrote "
            "for PHAROS_BACKUP_RECIPIENT and that is kept elsewhere, and name it: `--identity FILE`.",
            code="bad_identity_file",
        ) from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise _no_identity(file) from error
    try:
        found = [x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except pyrage.IdentityError as error:
        raise _no_identity(file) from error
    if not found:
        raise _no_identity(file)
    return found


def _unknown_format(how: str) -> Conflict:
    return Conflict(
        f"{ESCROW_FILE} {how}. Update Pharos to the version that made the backup (`pharos backup show` names it).",
        code="escrow_format",
    )


def _no_identity(file: Path) -> Invalid:
    return Invalid(
        f"{file} holds no age identity (a line `AGE-SECRET-KEY-1…`). Name the right file with `--identity FILE`.",
        code="bad_identity_file",
    )
