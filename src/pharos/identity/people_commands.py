"""`pharos tenant`, `department`, `group` and `user set`: an organisation from the machine."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import func, select

from pharos.identity import departments, groups, people
from pharos.identity.commands import user_app
from pharos.identity.models import Membership
from pharos.identity.people import PlaceChanges
from pharos.identity.principal import operator
from pharos.identity.tenants import (
    add_place,
    as_operator,
    create_tenant,
    find_tenant,
    get_tenant,
    list_tenants,
    rename_tenant,
)
from pharos.infra.errors import Invalid
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, TenantSlug, echo_json, echo_line, echo_table, run_async
from pharos.runtime import open_runtime

app = typer.Typer()
tenant_app = typer.Typer(help="Organisations that share this installation and cannot see each other.")
department_app = typer.Typer(help="Departments of a tenant.")
group_app = typer.Typer(help="Groups of people who are given access together.")
for name, sub in (("tenant", tenant_app), ("department", department_app), ("group", group_app)):
    app.add_typer(sub, name=name, no_args_is_help=True)

Slug = Annotated[str, typer.Argument(help="Short name of the tenant, as it stands behind `--tenant`.")]
Name = Annotated[str, typer.Argument(help="Its name.")]
NewName = Annotated[str, typer.Argument(help="The name from now on.")]
Email = Annotated[str, typer.Argument(help="E-mail address of a person.")]


@tenant_app.command("create")
def create_tenant_command(
    slug: Slug,
    name: Annotated[str, typer.Option(help="Its name for people.")],
    as_json: AsJson = False,
) -> None:
    """Make a tenant; its first administrator comes by `pharos user create-admin --tenant SLUG`."""

    async def work() -> str:
        async with open_runtime(Settings()) as runtime:
            return str(await create_tenant(runtime, slug=slug, name=name))

    tenant_id = run_async(work())
    if as_json:
        echo_json({"tenant": slug, "id": tenant_id})
    else:
        echo_line(f"The tenant “{slug}” is there. Next: pharos user create-admin --tenant {slug}")
        echo_line(f"Or, for somebody who has an account: pharos tenant add-person {slug} EMAIL")


@tenant_app.command("list")
def list_tenants_command(as_json: AsJson = False) -> None:
    """All tenants of this installation."""

    async def work() -> list[dict[str, object]]:
        async with open_runtime(Settings()) as runtime:
            found = await list_tenants(runtime)
        return [{"slug": one.slug, "name": one.name, "id": one.id, "created_at": one.created_at} for one in found]

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        rows = [[one["slug"], one["name"], one["id"]] for one in found]
        echo_table(["slug", "name", "id"], rows, empty="There is none. `pharos seed` makes the default one.")


@tenant_app.command("show")
def show_tenant(slug: Slug, as_json: AsJson = False) -> None:
    """A tenant with the number of its people, departments and groups."""

    async def work() -> dict[str, object]:
        async with open_runtime(Settings()) as runtime:
            tenant = await get_tenant(runtime, slug)
            async with runtime.db.transaction(await find_tenant(runtime, slug)) as session:
                return {
                    "slug": tenant.slug,
                    "name": tenant.name,
                    "id": tenant.id,
                    "people": (await session.execute(select(func.count()).select_from(Membership))).scalar_one(),
                    "departments": len(await departments.list_departments(session)),
                    "groups": len(await groups.list_groups(session)),
                }

    shown = run_async(work())
    if as_json:
        echo_json(shown)
    else:
        echo_table(["", ""], list(shown.items()), empty="")


@tenant_app.command("rename")
def rename_tenant_command(slug: Slug, name: Name, as_json: AsJson = False) -> None:
    """Call a tenant something else; its slug stays."""

    async def work() -> str:
        async with as_operator(slug) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            return await rename_tenant(session, principal, name=name)

    kept = run_async(work())
    if as_json:
        echo_json({"tenant": slug, "name": kept})
    else:
        echo_line(f"“{slug}” is called “{kept}” now.")


@tenant_app.command("add-person")
def add_person(slug: Slug, email: Email, as_json: AsJson = False) -> None:
    """Give somebody who has an account a place in a tenant too; they choose where they are by its slug."""

    async def work() -> bool:
        async with open_runtime(Settings()) as runtime:
            tenant_id = await find_tenant(runtime, slug)
            return await add_place(runtime, operator(tenant_id), email=email)

    is_new = run_async(work())
    if as_json:
        echo_json({"tenant": slug, "email": email, "added": is_new})
    else:
        echo_line(f"{email} has a place in “{slug}”." if is_new else f"{email} had a place in “{slug}” already.")


@user_app.command("set")
def set_place(
    email: Email,
    *,
    role: Annotated[str | None, typer.Option(help="none, admin, engineer; superadmin: handed over.")] = None,
    position: Annotated[str | None, typer.Option(help="member, manager or ceo.")] = None,
    department: Annotated[str | None, typer.Option(help="Name of a department; empty for none.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Give a person another role, position or department; what is not named stays."""
    if role not in {None, "none", "admin", "engineer", "superadmin"}:
        raise Invalid("A role is none, admin, engineer or superadmin.", code="bad_role")
    if position not in {None, "member", "manager", "ceo"}:
        raise Invalid("A position is member, manager or ceo.", code="bad_position")

    async def work() -> people.Person:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            changes: PlaceChanges = {}
            if role is not None:
                changes["platform_role"] = role  # type: ignore[typeddict-item]  # checked above
            if position is not None:
                changes["org_position"] = position  # type: ignore[typeddict-item]  # checked above
            if department is not None:
                named = (await departments.get_department_by_name(session, department)).id if department else None
                changes["department_id"] = named
            person = await people.get_person_by_email(session, email)
            return await people.change_place(session, principal, user_id=person.id, **changes)

    person = run_async(work())
    if as_json:
        echo_json(person)
    else:
        where = f" in {person.department}" if person.department else ""
        echo_line(f"{person.email}: role {person.platform_role}, {person.org_position}{where}.")


@department_app.command("create")
def create_department(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Make a department; `pharos user set EMAIL --department NAME` puts people into it."""

    async def work() -> str:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            return str((await departments.create_department(session, principal, name=name)).id)

    _echo_made("department", name, run_async(work()), as_json=as_json)


@department_app.command("list")
def list_departments(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Departments with how many people they have."""

    async def work() -> list[departments.DepartmentView]:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            return await departments.list_departments(session)

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        rows = [[one.name, one.people, one.id] for one in found]
        echo_table(["department", "people", "id"], rows, empty="There is no department.")


@department_app.command("rename")
def rename_department(name: Name, new_name: NewName, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Give a department another name; its people, groups and grants stay."""

    async def work() -> str:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            found = await departments.get_department_by_name(session, name)
            changed = await departments.rename_department(session, principal, department_id=found.id, name=new_name)
            return changed.name

    _echo_renamed("department", name, run_async(work()), as_json=as_json)


@department_app.command("delete")
def delete_department(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Remove a department; its people and groups stay, what was granted to it is gone."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            department = await departments.get_department_by_name(session, name)
            await departments.delete_department(session, principal, department_id=department.id)

    run_async(work())
    _echo_removed("department", name, as_json=as_json)


@group_app.command("create")
def create_group(
    name: Name,
    department: Annotated[str | None, typer.Option(help="Its department; without it of the whole tenant.")] = None,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Make a group, without members."""

    async def work() -> str:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            of = (await departments.get_department_by_name(session, department)).id if department else None
            return str((await groups.create_group(session, principal, name=name, department_id=of)).id)

    _echo_made("group", name, run_async(work()), as_json=as_json)


@group_app.command("list")
def list_groups(tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Groups with their department and how many members they have."""

    async def work() -> list[groups.GroupView]:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            return await groups.list_groups(session)

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        rows = [[one.name, one.department, one.members, one.id] for one in found]
        echo_table(["group", "department", "members", "id"], rows, empty="There is no group.")


@group_app.command("show")
def show_group(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """The members of a group."""

    async def work() -> list[groups.GroupMemberView]:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            group = await groups.get_group_by_name(session, name)
            return await groups.list_members(session, group_id=group.id)

    found = run_async(work())
    if as_json:
        echo_json(found)
    else:
        echo_table(["e-mail", "name"], [[one.email, one.name] for one in found], empty="Nobody is in it.")


@group_app.command("add")
def add_member(name: Name, email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Put a person into a group; changes nothing when they are in it."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            group, person = (
                await groups.get_group_by_name(session, name),
                await people.get_person_by_email(session, email),
            )
            await groups.add_member(session, principal, group_id=group.id, user_id=person.id)

    run_async(work())
    if as_json:
        echo_json({"group": name, "email": email, "member": True})
    else:
        echo_line(f"{email} is in the group “{name}”.")


@group_app.command("remove")
def remove_member(name: Name, email: Email, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Take a person out of a group; changes nothing when they are not in it."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            group, person = (
                await groups.get_group_by_name(session, name),
                await people.get_person_by_email(session, email),
            )
            await groups.remove_member(session, principal, group_id=group.id, user_id=person.id)

    run_async(work())
    if as_json:
        echo_json({"group": name, "email": email, "member": False})
    else:
        echo_line(f"{email} is not in the group “{name}”.")


@group_app.command("rename")
def rename_group(name: Name, new_name: NewName, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Give a group another name; its members and grants stay."""

    async def work() -> str:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            found = await groups.get_group_by_name(session, name)
            return (await groups.rename_group(session, principal, group_id=found.id, name=new_name)).name

    _echo_renamed("group", name, run_async(work()), as_json=as_json)


@group_app.command("delete")
def delete_group(name: Name, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Remove a group; its members stay, what was granted to it is gone."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, principal), runtime.db.transaction(principal.tenant_id) as session:
            group = await groups.get_group_by_name(session, name)
            await groups.delete_group(session, principal, group_id=group.id)

    run_async(work())
    _echo_removed("group", name, as_json=as_json)


def _echo_made(kind: str, name: str, made_id: str, *, as_json: bool) -> None:
    if as_json:
        echo_json({kind: name, "id": made_id})
    else:
        echo_line(f"The {kind} “{name}” is there.")


def _echo_renamed(kind: str, old: str, new: str, *, as_json: bool) -> None:
    if as_json:
        echo_json({kind: new, "was": old})
    else:
        echo_line(f"The {kind} “{old}” is called “{new}” now.")


def _echo_removed(kind: str, name: str, *, as_json: bool) -> None:
    if as_json:
        echo_json({kind: name, "deleted": True})
    else:
        echo_line(f"The {kind} “{name}” is gone.")
