"""`pharos secrets`: make, check and rotate what this installation signs and encrypts with."""

from __future__ import annotations

import base64
import secrets
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from pharos.identity.audit import record_audit
from pharos.identity.principal import operator
from pharos.identity.security import record_security_event
from pharos.identity.signing_keys import JWT, SESSION, SigningSecret, is_given, refuse_bad_signing_secrets, rotate_key
from pharos.infra.errors import Conflict, Invalid, PharosError
from pharos.infra.keyring import key_source, read_keys
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table, run_async
from pharos.ops.lost_key import LostSecret, forget_key
from pharos.ops.rotate_encryption import Rotation, plan_rotation, rotate_encryption
from pharos.ops.secrets_check import (
    TenantSecrets,
    count_unreadable,
    every_tenant,
    list_known_secrets,
    refuse_wrong_secrets,
)
from pharos.runtime import Runtime, open_runtime

app = typer.Typer()
secrets_app = typer.Typer(help="Signing secrets and the encryption key.", no_args_is_help=True)
rotate_app = typer.Typer(help="Replace a secret.", no_args_is_help=True)
app.add_typer(secrets_app, name="secrets")
secrets_app.add_typer(rotate_app, name="rotate")

Grace = Annotated[
    bool, typer.Option("--grace", help="The old one verifies until its last token has expired; never after a leak.")
]


class SecretKind(StrEnum):
    """What a new secret is for, by which its form is chosen (SE-01)."""

    JWT = "jwt"
    SESSION = "session"
    ENCRYPTION = "encryption"
    API_KEY = "api-key"


@secrets_app.command()
def generate(
    kind: Annotated[SecretKind, typer.Argument(help="What it is for.")] = SecretKind.JWT,
    as_hex: Annotated[bool, typer.Option("--hex", help="As hex instead of base64.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a new random secret of 32 bytes; stores nothing."""
    secret = secrets.token_bytes(32)
    text = secret.hex() if as_hex or kind is SecretKind.API_KEY else base64.b64encode(secret).decode()
    if as_json:
        echo_json({"kind": str(kind), "secret": text})
    else:
        echo_line(text)


@secrets_app.command("list")
def list_secrets(as_json: AsJson = False) -> None:
    """The checklist: which secrets there are, where they come from, how old they are; never their values."""
    lines = list_known_secrets(Settings())
    if as_json:
        echo_json(lines)
        return
    rows = [
        [line.name, line.used_for, line.source, "" if line.age_days is None else f"{line.age_days} d", line.rotate]
        for line in lines
    ]
    echo_table(["secret", "used for", "source", "age", "to rotate it"], rows, empty="")


@secrets_app.command()
def check(as_json: AsJson = False) -> None:
    """Say whether the secrets fit this database, as the start does, and count what cannot be decrypted."""

    async def work() -> tuple[list[TenantSecrets], PharosError | None]:
        async with open_runtime(Settings()) as runtime:
            try:
                await refuse_wrong_secrets(runtime)
            except PharosError as error:
                # Without a key that can be read at all nothing can be tried.
                return ([] if isinstance(error, Invalid) else await count_unreadable(runtime)), error
            return await count_unreadable(runtime), None

    tenants, refusal = run_async(work())
    unreadable = sum(tenant.unreadable for tenant in tenants)
    if as_json:
        echo_json(
            {
                "fits": refusal is None and unreadable == 0,
                "error": refusal.code if refusal else None,
                "message": refusal.message if refusal else None,
                "lacking": refusal.details.get("lacking", []) if refusal else [],
                "source": key_source(Settings()),
                "tenants": [asdict(tenant) for tenant in tenants],
            }
        )
    else:
        rows = [[tenant.tenant, tenant.secrets, tenant.unreadable] for tenant in tenants]
        echo_table(["tenant", "secrets", "unreadable"], rows, empty="No tenant has stored a secret.")
    if refusal is not None:
        raise refusal
    if unreadable:
        raise Conflict(
            f"{unreadable} secrets cannot be decrypted although the keys are right: their rows were changed from "
            "outside. Restore them from a backup, or enter them again.",
            code="unreadable_secret",
        )
    if not as_json:
        keys = ", ".join(key.id for key in read_keys(Settings()))
        echo_line(f"The secrets fit. Encryption key {keys} from {key_source(Settings())}.")


@secrets_app.command()
def forget(
    key: Annotated[str, typer.Argument(help="The lost key, as `pharos secrets check` names it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give up an encryption key that is lost for good, with every secret that only it opens."""

    async def work(*, dry_run: bool) -> list[LostSecret]:
        async with open_runtime(Settings()) as runtime:
            return await forget_key(runtime, key, dry_run=dry_run)

    if not dry_run and not yes:
        typer.confirm(f"Delete {len(run_async(work(dry_run=True)))} secrets that only key {key} opens?", abort=True)
    lost = run_async(work(dry_run=dry_run))
    if as_json:
        echo_json({"key": key, "lost": [asdict(secret) for secret in lost], "dry_run": dry_run})
        return
    echo_table(
        ["tenant", "kind", "name"],
        [[secret.tenant, secret.kind, secret.name] for secret in lost],
        empty=f"No secret rests on key {key}.",
    )
    echo_line("Nothing was changed." if dry_run else f"Key {key} is forgotten. Enter these secrets again.")


@rotate_app.command("jwt")
def rotate_jwt(grace: Grace = False, as_json: AsJson = False) -> None:
    """Replace the secret behind access and refresh tokens: every program and person signs in again."""
    _rotate_signing(JWT, grace=grace, as_json=as_json)


@rotate_app.command("session")
def rotate_session(grace: Grace = False, as_json: AsJson = False) -> None:
    """Replace the secret behind cookies: every browser signs in again."""
    _rotate_signing(SESSION, grace=grace, as_json=as_json)


def _rotate_signing(which: SigningSecret, *, grace: bool, as_json: bool) -> None:
    settings = Settings()
    refuse_bad_signing_secrets(settings)
    if is_given(settings, which):
        echo_line(base64.b64encode(secrets.token_bytes(32)).decode())
        raise Conflict(
            f"{which.variable} is set by you, so nothing was changed. Put the new secret above in its place and "
            "restart: `pharos restart`. All sign-ins signed with the old one end then.",
            code="key_held_elsewhere",
        )
    days = longest_life(settings, which)
    keep_until = datetime.now(UTC) + days if grace else None

    async def work() -> None:
        async with open_runtime(settings) as runtime:
            await record_rotation(runtime, which, keep_until=keep_until)
            rotate_key(settings, which, keep_until=keep_until)

    run_async(work())
    if as_json:
        echo_json({"rotated": which.name, "old_verifies_until": keep_until.isoformat() if keep_until else None})
    elif keep_until is None:
        echo_line(f"The {which.name} secret is replaced. Everybody signs in again; running processes know it already.")
    else:
        echo_line(f"The {which.name} secret is replaced. The old one verifies until {keep_until:%Y-%m-%d %H:%M} UTC.")


def longest_life(settings: Settings, which: SigningSecret) -> timedelta:
    """How long the longest token of a secret lives."""
    from pharos.identity.sign_in import SESSION_DAYS

    return timedelta(days=settings.refresh_token_days if which is JWT else SESSION_DAYS)


async def record_rotation(runtime: Runtime, which: SigningSecret, *, keep_until: datetime | None) -> None:
    """Tell every tenant that its sign-ins end; before the change, so that it cannot happen unrecorded."""
    for tenant_id, _ in await every_tenant(runtime):
        async with runtime.db.transaction(tenant_id) as session:
            subject, until = f"signing_secret:{which.name}", keep_until.isoformat() if keep_until else None
            await record_security_event(
                session, tenant_id, event_type="signing_key_rotated", severity="medium", subject=subject, until=until
            )
            await record_audit(session, operator(tenant_id), action="signing_key.rotated", subject=subject, until=until)


@rotate_app.command("encryption")
def rotate_encryption_key(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Replace the encryption key and re-encrypt every secret while serving; again after a kill: goes on."""

    async def work() -> Rotation:
        async with open_runtime(Settings()) as runtime:
            return await (plan_rotation(runtime) if dry_run else rotate_encryption(runtime))

    rotation: Rotation = run_async(work())
    if as_json:
        echo_json({**asdict(rotation), "dry_run": dry_run})
        return
    old = ", ".join(rotation.old_keys)
    begun = "It goes on with a rotation that was begun." if rotation.is_resumed else ""
    if rotation.dropped:
        dropped = ", ".join(rotation.dropped)
        echo_line(f"Key {dropped} was given for reading, is retired and opens nothing: it leaves the key file.")
    if dry_run:
        echo_line(
            f"Would re-encrypt {rotation.secrets} secrets of {rotation.tenants} tenants and retire key {old}. {begun}"
        )
        return
    echo_line(
        f"Re-encrypted {rotation.secrets} secrets of {rotation.tenants} tenants with key {rotation.new_key}. {begun}"
    )
    echo_line(f"Key {old} alone opens 0 of {rotation.tried} data keys and secrets; it is retired.")
    if rotation.next_step:
        echo_line(rotation.next_step)
