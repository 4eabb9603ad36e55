"""`pharos seed`, `setup-link` and `user`: tenants and people from the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from sqlalchemy import select

from pharos.identity.change_password import set_password
from pharos.identity.lockout import unlock
from pharos.identity.models import Membership, User
from pharos.identity.passwords import check_new_password, hash_apart
from pharos.identity.people import Person, list_people
from pharos.identity.principal import operator
from pharos.identity.setup import EmailTaken, NewPerson, add_admin, is_taken, issue_setup_link
from pharos.identity.sign_in import normal_email
from pharos.identity.tenants import as_operator, ensure_default_tenant, find_tenant
from pharos.infra.errors import Invalid
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, TenantSlug, echo_json, echo_line, echo_table, run_async
from pharos.runtime import Runtime, open_runtime

DEFAULT_USERNAME = "admin"
ADD_PLACE = (
    "Give it a place here, then the role: `pharos tenant add-person {tenant} {email}`, and "
    "`pharos user set {email} --role admin --tenant {tenant}`."
)

app = typer.Typer()
user_app = typer.Typer(help="People.", no_args_is_help=True)
app.add_typer(user_app, name="user")


@app.command()
def seed(as_json: AsJson = False) -> None:
    """Make the default tenant; changes nothing when it is there."""

    async def work() -> str:
        async with open_runtime(Settings()) as runtime:
            return str(await ensure_default_tenant(runtime))

    tenant_id = run_async(work())
    if as_json:
        echo_json({"tenant": "default", "id": tenant_id})
    else:
        echo_line("The default tenant is there.")


@app.command("setup-link")
def setup_link(as_json: AsJson = False) -> None:
    """Print a new one-time address of the setup page; an older one is void."""

    async def work() -> str:
        async with open_runtime(Settings()) as runtime:
            return await issue_setup_link(runtime)

    link = run_async(work())
    if as_json:
        echo_json({"setup_link": link})
    else:
        echo_line(link)


@user_app.command("create-admin")
def create_admin(
    *,
    password: Annotated[str, typer.Option(envvar="ADMIN_PASSWORD", help="Their password.", show_default=False)] = "",
    email: Annotated[str, typer.Option(help="Their e-mail address.")] = "admin@example.com",
    name: Annotated[str, typer.Option(help="Their name.")] = "admin",
    username: Annotated[str, typer.Option(help="Their user name; unset: `admin`, if nobody has it.")] = "",
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make an administrator; the password comes from ADMIN_PASSWORD. Again: sets the password anew."""
    if not password:
        raise Invalid("Set ADMIN_PASSWORD to the new administrator's password and run this again.", code="no_password")
    check_new_password(password)
    person = NewPerson(name=name, email=normal_email(email), password=password, username=username.lower() or None)

    async def work() -> bool:
        async with open_runtime(Settings()) as runtime:
            return await save_admin(runtime, person, tenant=tenant)

    is_new = run_async(work())
    if as_json:
        echo_json({"email": person.email, "created": is_new})
    else:
        echo_line(f"{person.email} is an administrator." if is_new else f"The password of {person.email} is changed.")


async def save_admin(runtime: Runtime, person: NewPerson, *, tenant: str) -> bool:
    """Make an administrator, or give one a new password; the first of a tenant is its superadmin. True if new."""
    assert person.password is not None
    hashed = await hash_apart(person.password)
    tenant_id = await ensure_default_tenant(runtime) if tenant == "default" else await find_tenant(runtime, tenant)
    here = select(Membership.user_id).scalar_subquery()
    async with runtime.db.transaction(tenant_id) as session:
        known = select(User.id).where(User.email == person.email, User.id.in_(here))
        user_id = (await session.execute(known)).scalar_one_or_none()
        if user_id is not None:
            await set_password(session, operator(tenant_id), user_id=user_id, hashed=hashed)
            await unlock(session, user_id)
        else:
            if person.username is None and not await is_taken(session, DEFAULT_USERNAME):
                person = replace(person, username=DEFAULT_USERNAME)
            try:
                await add_admin(session, tenant_id, person, hashed)
            except EmailTaken as error:
                raise EmailTaken(f"{error.message} {ADD_PLACE.format(tenant=tenant, email=person.email)}") from error
    return user_id is None


@user_app.command("list")
def list_users(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """People of a tenant."""

    async def work() -> list[Person]:
        async with as_operator(tenant) as (runtime, me), runtime.db.transaction(me.tenant_id) as session:
            found, after = await list_people(session)
            while after is not None:
                more, after = await list_people(session, after=after)
                found += more
            return found

    people = [
        {
            "email": person.email,
            "name": person.name,
            "platform_role": person.platform_role,
            "org_position": person.org_position,
            "disabled": person.is_disabled,
        }
        for person in run_async(work())
    ]
    if as_json:
        echo_json(people)
    else:
        rows = [list(person.values()) for person in people]
        echo_table(["e-mail", "name", "role", "position", "disabled"], rows, empty="Nobody is here yet.")
