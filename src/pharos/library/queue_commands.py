"""`pharos queue`: the work of the whole installation that waits, runs or was given up."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pharos.identity.audit import record_audit
from pharos.identity.tenants import DEFAULT_SLUG, as_operator, list_tenants
from pharos.infra import jobs
from pharos.infra.errors import Conflict
from pharos.infra.ids import TenantId
from pharos.infra.mail import SEND_TASK, recover_mails
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table, run_async
from pharos.library import documents
from pharos.runtime import Runtime

app = typer.Typer()
queue_app = typer.Typer(help="Work of the whole installation that waits, runs or was given up.", no_args_is_help=True)
app.add_typer(queue_app, name="queue")

RECOVERED = tuple(f"{jobs.NAMESPACE}:{task}" for task in (documents.INGEST_TASK, SEND_TASK))
"""Kinds of jobs that `recover` makes anew from the rows they belong to."""


@queue_app.command("list")
def list_queue(as_json: AsJson = False) -> None:
    """Jobs by kind and state, with the age of the oldest."""

    async def work() -> list[jobs.QueueLine]:
        async with (
            as_operator(DEFAULT_SLUG) as (runtime, principal),
            runtime.db.transaction(principal.tenant_id) as session,
        ):
            return await jobs.list_queue(session)

    lines = run_async(work())
    if as_json:
        echo_json(lines)
        return
    echo_table(
        ["job", "state", "number", "oldest (s)"],
        [[line.task_name, line.status, line.jobs, line.oldest_seconds] for line in lines],
        empty="The queue is empty.",
    )


@queue_app.command("clear")
def clear_queue(
    kind: Annotated[
        str | None, typer.Option("--kind", help="Kind of job, as `pharos queue list` names it; all if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also while files are being uploaded.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove jobs that have not started, of all tenants. Nothing is lost: their documents are pending and their mails
    wait; `pharos queue recover` queues them again, and so does the worker within a minute."""
    removed = run_async(_clear(kind, force=force, dry_run=dry_run))
    if as_json:
        echo_json({"removed": removed, "dry_run": dry_run})
        return
    for name, number in removed.items():
        echo_line(f"{'Would remove' if dry_run else 'Removed'} {number} waiting jobs of {name}.")


async def _clear(kind: str | None, *, force: bool, dry_run: bool) -> dict[str, int]:
    kinds = (kind,) if kind is not None else RECOVERED
    async with as_operator(DEFAULT_SLUG) as (runtime, principal):
        sending = runtime.blobs.open_uploads(now=time.time())
        if sending and not (force or dry_run):
            raise Conflict(
                f"{sending} files are being uploaded just now. Wait until they are there, or --force.",
                code="uploads_open",
            )
        async with runtime.db.transaction(principal.tenant_id) as session:
            removed = {name: await jobs.clear_queue(session, task_name=name, dry_run=dry_run) for name in kinds}
            for name, number in removed.items() if not dry_run else ():
                await record_audit(session, principal, action="queue.cleared", subject=f"queue:{name}", jobs=number)
        if not dry_run:
            await _as_before_their_job(runtime)
        return removed


async def _as_before_their_job(runtime: Runtime) -> None:
    """Documents of removed jobs that had begun once and were put back are `pending` again."""
    for tenant in await list_tenants(runtime):
        async with runtime.db.transaction(TenantId(tenant.id)) as session:
            await documents.return_to_pending(session)


@queue_app.command("recover")
def recover_queue(as_json: AsJson = False) -> None:
    """Queue every unfinished document and every waiting mail that no live job knows of, of all tenants."""
    found, mails = run_async(_recover())
    if as_json:
        echo_json({"recovered": found, "mails": mails})
    else:
        echo_line(f"{found} documents queued again.")
        if mails:
            echo_line(f"{mails} mails queued again.")


async def _recover() -> tuple[int, int]:
    found = mails = 0
    async with as_operator(DEFAULT_SLUG) as (runtime, principal):
        for tenant in await list_tenants(runtime):
            async with runtime.db.transaction(TenantId(tenant.id)) as session:
                found += await documents.recover_documents(session)
                mails += await recover_mails(session, tenant_id=TenantId(tenant.id))
        async with runtime.db.transaction(principal.tenant_id) as session:
            await record_audit(
                session, principal, action="queue.recovered", subject=f"queue:{RECOVERED[0]}", documents=found
            )
    return found, mails
