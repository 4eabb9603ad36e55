"""Do the secrets of this installation fit it? Asked at each start, by `pharos secrets check` and by the doctor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from pharos.identity.models import Tenant
from pharos.identity.signing_keys import (
    SIGNING_SECRETS,
    SigningSecret,
    is_given,
    refuse_bad_signing_secrets,
    secret_file,
)
from pharos.infra.db_system import system_transaction
from pharos.infra.ids import TenantId
from pharos.infra.keyring import key_file
from pharos.infra.settings import Settings
from pharos.infra.vault import UnreadableSecret, sealed_secrets
from pharos.ops.backup.escrow import drill_identity_file
from pharos.ops.backup.restic import password_file
from pharos.ops.backup.signing import signing_key_file
from pharos.runtime import Runtime

REMIND_AFTER_DAYS = 90
"""SE-03: signing secrets are rotated each quarter."""


@dataclass(frozen=True)
class TenantSecrets:
    """How many secrets a tenant has, and how many of them the keys at hand do not open."""

    tenant: str
    secrets: int
    unreadable: int


@dataclass(frozen=True)
class KnownSecret:
    """A line of the checklist, without the value; `age_days` is None where only the operator can know it."""

    name: str
    used_for: str
    source: str
    age_days: int | None
    rotate: str


async def refuse_wrong_secrets(runtime: Runtime) -> None:
    """Raise `Invalid` or `Conflict` unless every secret fits; each message ends with the command that mends it."""
    refuse_bad_signing_secrets(runtime.settings)
    async with system_transaction(runtime.db) as session:
        await runtime.vault.check(session)


async def every_tenant(runtime: Runtime) -> list[tuple[TenantId, str]]:
    """Id and slug of every tenant, those of measurements too, oldest first."""
    async with system_transaction(runtime.db) as session:
        found = await session.execute(select(Tenant.id, Tenant.slug).order_by(Tenant.id))
    return [(TenantId(row.id), row.slug) for row in found]


async def count_unreadable(runtime: Runtime) -> list[TenantSecrets]:
    """Try every secret of every tenant that has any; tenants in the order they were made."""
    counts = []
    for tenant_id, slug in await every_tenant(runtime):
        async with runtime.db.transaction(tenant_id) as session:
            rows = (await session.execute(sealed_secrets(tenant_id))).all()
        unreadable = 0
        for row in rows:
            try:
                runtime.vault.open_row(tenant_id, row)
            except UnreadableSecret:
                unreadable += 1
        if rows:
            counts.append(TenantSecrets(slug, len(rows), unreadable))
    return counts


def list_known_secrets(settings: Settings) -> list[KnownSecret]:
    """The checklist: which secrets this installation has, where they come from and how old they are."""
    signing = [_signing_line(settings, which) for which in SIGNING_SECRETS]
    known = [*signing, _encryption_line(settings), *_database_lines(settings), *_backup_lines(settings)]
    return known + _outside_lines(settings)


def find_overdue(settings: Settings) -> list[KnownSecret]:
    """Signing secrets that are older than a quarter."""
    signing = [_signing_line(settings, which) for which in SIGNING_SECRETS]
    return [line for line in signing if line.age_days is not None and line.age_days > REMIND_AFTER_DAYS]


def _signing_line(settings: Settings, which: SigningSecret) -> KnownSecret:
    used_for = {"jwt": "access and refresh tokens", "session": "cookies and forms"}[which.name]
    rotate = f"pharos secrets rotate {which.name}"
    if is_given(settings, which):
        return KnownSecret(which.name, used_for, which.variable, None, rotate)
    return _file_line(which.name, used_for, secret_file(settings, which), rotate)


def _encryption_line(settings: Settings) -> KnownSecret:
    name, used_for, rotate = "encryption", "stored keys, tokens and waiting mail", "pharos secrets rotate encryption"
    if settings.encryption_key is not None:
        return KnownSecret(name, used_for, "PHAROS_ENCRYPTION_KEY", None, rotate)
    return _file_line(name, used_for, key_file(settings), rotate)


def _database_lines(settings: Settings) -> list[KnownSecret]:
    if settings.database_url is not None:
        rotate = "change it at the server, then in PHAROS_DATABASE_URL"
        return [KnownSecret("database", "the database", "PHAROS_DATABASE_URL", None, rotate)]
    file = settings.data_dir / "secrets" / "database-roles.json"
    return [_file_line("database", "the embedded database's roles", file, "not needed: only this machine reaches it")]


def _backup_lines(settings: Settings) -> list[KnownSecret]:
    signed, opened = signing_key_file(settings), drill_identity_file(settings)
    lines = [
        _file_line(
            "backup-signing", "saying which backups were made here", signed, "remove it: the next backup makes one"
        ),
        _file_line("drill-identity", "opening backups here unattended", opened, "remove it: the next backup makes one"),
    ]
    if settings.backup_recipient is not None:
        place = "where its private half is kept: PHAROS_BACKUP_RECIPIENT names it"
        lines.append(KnownSecret("offline-identity", "opening backups anywhere", place, None, "change the recipient"))
    if settings.offsite is not None:
        used_for = "opening the copies elsewhere: keep it offline too"
        lines.append(_file_line("offsite", used_for, password_file(settings), "begin a new place for the copies"))
    return lines


def _outside_lines(settings: Settings) -> list[KnownSecret]:
    lines = []
    if settings.llm_key is not None:
        lines.append(KnownSecret("llm", "the model server", "PHAROS_LLM_KEY", None, "change it there, then here"))
    if settings.smtp_url is not None:
        lines.append(KnownSecret("smtp", "the mail server", "PHAROS_SMTP_URL", None, "change it there, then here"))
    return lines


def _file_line(name: str, used_for: str, file: Path, rotate: str) -> KnownSecret:
    if not file.exists():
        return KnownSecret(name, used_for, "made at the first start", None, rotate)
    return KnownSecret(name, used_for, str(file), int((time.time() - file.stat().st_mtime) // 86400), rotate)
