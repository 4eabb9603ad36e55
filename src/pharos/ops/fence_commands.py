"""`pharos db rls`: is the fence between tenants whole, and putting it back."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import text

from pharos.identity.tenants import DEFAULT_SLUG, find_tenant
from pharos.infra.database_roles import connection_urls
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Conflict
from pharos.infra.fence import apply_fence, check_fence, list_faults
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table, run_async
from pharos.runtime import open_runtime

rls_app = typer.Typer(help="The fence between tenants: row-level security.", no_args_is_help=True)

NAMED = text("select current_setting('pharos.tenant_id', true)")


@rls_app.command("check")
def check(
    tenant: Annotated[str, typer.Option("--tenant", help="Slug of the tenant to try a transaction in.")] = DEFAULT_SLUG,
    as_json: AsJson = False,
) -> None:
    """Prove the fence: every table of a tenant has it, and every transaction of Pharos names its tenant."""
    urls = connection_urls(Settings())
    faults = list_faults(urls)
    if as_json:
        echo_json({"faults": faults})
    elif faults:
        echo_table(["table", "its fence"], list(faults.items()), empty="")
    if faults:
        raise Conflict(
            f"{len(faults)} fences are not whole. Put them back: `pharos db rls apply`.", code="fence_broken"
        )
    tables = check_fence(urls)
    run_async(_check_transaction(tenant))
    if not as_json:
        echo_line(f"The fence holds around {tables} tables; without a tenant nothing is seen.")
        echo_line(f"A transaction of “{tenant}” names its tenant, and the next one on the connection does not.")


@rls_app.command("apply")
def apply(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Put back every fence that is missing, changed or switched off; changes nothing where all is well."""
    urls = connection_urls(Settings())
    faults = list_faults(urls) if dry_run else apply_fence(urls)
    if as_json:
        echo_json({"faults": faults, "applied": not dry_run})
        return
    for table, fault in faults.items():
        echo_line(f"{table} {fault}{'' if dry_run else '; it is whole again'}.")
    if not faults:
        echo_line("Every fence is whole; nothing was changed.")


async def _check_transaction(tenant: str) -> None:
    async with open_runtime(Settings()) as runtime:
        tenant_id = await find_tenant(runtime, tenant)
        async with runtime.db.transaction(tenant_id) as session:
            inside = (await session.execute(NAMED)).scalar_one()
        async with system_transaction(runtime.db) as session:
            outside = (await session.execute(NAMED)).scalar_one()
    if inside != str(tenant_id) or outside:
        raise Conflict(
            "A transaction does not name its tenant, or keeps it too long. A pooler in statement mode does that: let "
            "it pool transactions or sessions.",
            code="tenant_not_named",
        )
