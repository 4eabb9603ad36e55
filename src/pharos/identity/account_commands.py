"""`pharos user show|disable|enable|unlock|sign-out`, `bootstrap-admin` and `apikey`: accounts from the machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity import api_keys
from pharos.identity.account_state import get_account_state, unlock_account
from pharos.identity.commands import DEFAULT_USERNAME, user_app
from pharos.identity.models import ApiKey
from pharos.identity.passwords import hash_apart, random_password
from pharos.identity.people import get_person_by_email, set_disabled
from pharos.identity.sessions import end_sessions
from pharos.identity.setup import NewPerson, add_admin, is_taken
from pharos.identity.sign_in import normal_email
from pharos.identity.tenants import as_operator, ensure_default_tenant, find_tenant
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, TenantSlug, echo_json, echo_line, echo_table, run_async
from pharos.runtime import open_runtime

app = typer.Typer()
key_app = typer.Typer(help="Keys with which programs use the API.", no_args_is_help=True)
app.add_typer(key_app, name="apikey")

Email = Annotated[str, typer.Argument(help="E-mail address of the person.", show_default=False)]


@user_app.command("show")
def show(email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Who somebody is here, and why they cannot get in."""

    async def work() -> dict[str, Any]:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            return await describe(session, email=email)

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        echo_table(["", ""], [[name.replace("_", " "), value] for name, value in found.items()], empty="")


async def describe(session: AsyncSession, *, email: str) -> dict[str, Any]:
    """A person with the state of their account (ID-17). Raises `NotFound`."""
    person = await get_person_by_email(session, email)
    return asdict(person) | asdict(await get_account_state(session, user_id=person.id))


@user_app.command("disable")
def disable(email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let somebody in no more and end their sessions."""
    _set_disabled(email, tenant=tenant, is_disabled=True, as_json=as_json)


@user_app.command("enable")
def enable(email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let somebody in again who was disabled."""
    _set_disabled(email, tenant=tenant, is_disabled=False, as_json=as_json)


def _set_disabled(email: str, *, tenant: str, is_disabled: bool, as_json: bool) -> None:
    async def work() -> None:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            person = await get_person_by_email(session, email)
            await set_disabled(session, me, user_id=person.id, is_disabled=is_disabled)

    run_async(work())
    state = "cannot sign in any more" if is_disabled else "can sign in"
    _tell(f"{email} {state}.", as_json=as_json, email=email, disabled=is_disabled)


@user_app.command("unlock")
def unlock_command(email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Let somebody in who mistyped their password too often."""

    async def work() -> bool:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            person = await get_person_by_email(session, email)
            return await unlock_account(session, me, user_id=person.id)

    was_locked = run_async(work())
    words = f"{email} is unlocked." if was_locked else f"{email} was not locked."
    _tell(words, as_json=as_json, email=email, was_locked=was_locked)


@user_app.command("sign-out")
def sign_out_everywhere(email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """End all sessions of a person, in every tenant; those of this one are counted."""

    async def work() -> int:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            person = await get_person_by_email(session, email)
            return await end_sessions(session, me, user_id=person.id)

    ended = run_async(work())
    _tell(f"{ended} session(s) of {email} ended.", as_json=as_json, email=email, sessions=ended)


@app.command("bootstrap-admin")
@user_app.command("bootstrap-admin")
def bootstrap_admin(
    email: Annotated[str, typer.Option(envvar="ADMIN_EMAIL", help="Their e-mail address.")] = "admin@localhost",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make the first administrator of a tenant, with a random password that is printed this once."""
    password = random_password()
    person = NewPerson(
        name="admin", email=normal_email(email), password=password, username=DEFAULT_USERNAME, must_change_password=True
    )
    person = run_async(_bootstrap(person, tenant=tenant))
    if as_json:
        echo_json({"email": person.email, "username": person.username, "password": password})
    else:
        echo_line(f"E-mail:   {person.email}")
        echo_line(f"Password: {password}")
        echo_line("This password is shown once and must be changed at the first sign-in.")


async def _bootstrap(person: NewPerson, *, tenant: str) -> NewPerson:
    """The person as made: without the user name if somebody has it. Raises `Conflict` once the tenant has an owner."""
    assert person.password is not None
    hashed = await hash_apart(person.password)
    async with open_runtime(Settings()) as runtime:
        tenant_id = await ensure_default_tenant(runtime) if tenant == "default" else await find_tenant(runtime, tenant)
        async with runtime.db.transaction(tenant_id) as session:
            if await is_taken(session, DEFAULT_USERNAME):
                person = replace(person, username=None)
            await add_admin(session, tenant_id, person, hashed, only_first=True)
    return person


@key_app.command("create")
def create_api_key(
    *,
    name: Annotated[str, typer.Option(help="What the key is for.", show_default=False)],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, ask or ingest; several times. Unset: read, ask.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="E-mail of the person it acts as; unset: nobody.")] = None,
    expires_days: Annotated[
        int, typer.Option(min=0, max=3650, help="How long it is good; 0: for ever.")
    ] = api_keys.DEFAULT_DAYS,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown this once."""

    async def work() -> tuple[ApiKey, str]:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            person = await get_person_by_email(session, user) if user else None
            return await api_keys.create_key(
                session, me, name=name, scopes=scope or api_keys.DEFAULT_SCOPES,
                user_id=person.id if person else None, expires_in_days=expires_days or None,
            )  # fmt: skip

    key, text = run_async(work())
    if as_json:
        echo_json({**_as_row(key), "key": text})
    else:
        echo_line(text)
        echo_line("This key is shown once. Send it as the header X-API-Key.")


@key_app.command("list")
def list_api_keys(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Keys that are not revoked."""

    async def work() -> list[dict[str, Any]]:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            keys = await api_keys.list_keys(session, me)
            owners = await api_keys.list_owners(session, keys)
            return [{**_as_row(key), "acts_as": owners.get(key.user_id) if key.user_id else None} for key in keys]

    rows = run_async(work())
    if as_json:
        echo_json(rows)
    else:
        headings = ["id", "name", "prefix", "scopes", "acts as", "expires", "last used"]
        names = ["id", "name", "prefix", "scopes", "acts_as", "expires_at", "last_used_at"]
        table = [[", ".join(row[n]) if n == "scopes" else row[n] for n in names] for row in rows]
        echo_table(headings, table, empty="There is no API key.")


@key_app.command("revoke")
def revoke_api_key(
    name_or_id: Annotated[str, typer.Argument(help="The key's name or id.", show_default=False)],
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """End a key; it opens nothing from now on."""

    async def work() -> ApiKey:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            key = await api_keys.get_key(session, me, name_or_id=name_or_id)
            await api_keys.revoke_key(session, me, key_id=key.id)
            return key

    key = run_async(work())
    _tell(f"The API key {key.name} is revoked.", as_json=as_json, id=str(key.id), name=key.name, revoked=True)


def _as_row(key: ApiKey) -> dict[str, Any]:
    columns = ("id", "name", "prefix", "scopes", "user_id", "created_by", "created_at", "expires_at", "last_used_at")
    return {column: getattr(key, column) for column in columns}


def _tell(words: str, *, as_json: bool, **facts: object) -> None:
    if as_json:
        echo_json(facts)
    else:
        echo_line(words)
