"""`pharos ingest` and `documents`: the operator's hands on the library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import ARRAY, Uuid, any_, func, literal, select

from pharos.access.projects import find_project_by_name
from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.identity.tenants import as_operator
from pharos.infra import jobs
from pharos.infra.errors import Conflict, Invalid, NotFound, Unavailable
from pharos.infra.ids import DocumentId, ProjectId
from pharos.infra.terminal import (
    AsJson,
    DryRun,
    ProjectName,
    TenantSlug,
    echo_json,
    echo_line,
    echo_table,
    error_console,
    id_shown_by,
    run_async,
)
from pharos.library import delete, documents, folder
from pharos.library.check import IndexReport, check_index, repair_index
from pharos.library.models import Document
from pharos.runtime import Runtime

app = typer.Typer()
documents_app = typer.Typer(help="Documents of a project.", no_args_is_help=True)
app.add_typer(documents_app, name="documents")

WORKER_STARTS_SECONDS = 15.0
"""How long no worker is missed: one that was just started looks through the handbook before it reports."""
DOCUMENT_ID = id_shown_by("pharos documents list --project NAME")


async def project_named(runtime: Runtime, principal: Principal, name: str) -> ProjectId:
    """The id of a project by name. Raises `NotFound`."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        project = await find_project_by_name(session, principal, name=name)
    if project is None:
        raise NotFound(f"There is no project “{name}”. `pharos ingest PATH --project {name}` makes it.")
    return ProjectId(project.id)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders; folders with all below them.")],
    project: ProjectName,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until every document is indexed or failed.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Bring files into a project: new ones are added, changed ones replaced, unchanged ones skipped."""
    run_async(_ingest(paths, project=project, wait=wait, tenant=tenant, as_json=as_json))


async def _ingest(paths: list[Path], *, project: str, wait: bool, tenant: str, as_json: bool) -> None:
    files = folder.list_files(paths)
    async with as_operator(tenant) as (runtime, principal):
        project_id = await folder.find_or_make_project(runtime, principal, name=project)
        outcomes: list[folder.FileOutcome] = []
        with _progress("Receiving", total=len(files)) as advance:
            async for outcome in folder.ingest_files(runtime, principal, project_id=project_id, files=files):
                outcomes.append(outcome)
                advance(len(outcomes))
        async with runtime.db.transaction(principal.tenant_id) as session:
            await record_audit(
                session, principal, action="documents.ingested", subject=f"project:{project_id}", files=len(outcomes)
            )
        ids = [outcome.document_id for outcome in outcomes if outcome.document_id]
        states = await _wait_for(runtime, principal, ids) if wait else {}
    counts = {name: sum(o.outcome == name for o in outcomes) for name in ("added", "replaced", "unchanged", "refused")}
    refused = [{"name": o.name, "reason": o.reason} for o in outcomes if o.outcome == "refused"]
    if as_json:
        echo_json({"project": project, **counts, "refused_files": refused, "documents": states})
        return
    for file in refused:
        error_console.print(f"refused {file['name']}: {file['reason']}", markup=False)
    echo_line(", ".join(f"{number} {name}" for name, number in counts.items()) + f" in “{project}”.")
    if states:
        echo_line(", ".join(f"{number} {status}" for status, number in sorted(states.items())) + ".")
        if "failed" in states:
            echo_line(f"`pharos documents list --project '{project}'` says why they failed.")
    else:
        echo_line(f"They are being indexed; `pharos documents list --project '{project}'` shows how far it is.")


@contextmanager
def _progress(verb: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; gives a function that is told how many are done."""
    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console, disable=not error_console.is_terminal, transient=True) as bar:
        task = bar.add_task(verb, total=total)
        yield lambda done: bar.update(task, completed=done)


async def _wait_for(runtime: Runtime, principal: Principal, ids: list[DocumentId]) -> dict[str, int]:
    seen = time.monotonic()
    with _progress("Indexing", total=len(ids)) as advance:
        while True:
            async with runtime.db.transaction(principal.tenant_id) as session:
                # One array: a parameter for each of a thousand ids costs more than the embedding of a document.
                rows = await session.execute(
                    select(Document.status, func.count())
                    .where(Document.id == any_(literal(ids, ARRAY(Uuid))))
                    .group_by(Document.status)
                )
                states: dict[str, int] = {status: number for status, number in rows}
                is_worked_on = await jobs.has_worker(session)
            advance(states.get("indexed", 0) + states.get("failed", 0))
            unfinished = states.get("pending", 0) + states.get("processing", 0)
            if not unfinished:
                return states
            if is_worked_on:
                seen = time.monotonic()
            elif time.monotonic() > seen + WORKER_STARTS_SECONDS:
                words = f"{unfinished} documents are stored and wait: no worker runs. Start Pharos with `pharos up`."
                raise Unavailable(words, code="no_worker")
            # No machine indexes 200 documents a second, so nobody waits longer for asking less often.
            await asyncio.sleep(min(2.0, 0.2 + unfinished / 200))


@documents_app.command("list")
def list_documents(project: ProjectName, tenant: TenantSlug = "default", as_json: AsJson = False) -> None:
    """Name, status, pages, passages and the reason of a failure."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, principal):
            project_id = await project_named(runtime, principal, project)
            async with runtime.db.transaction(principal.tenant_id) as session:
                found = await documents.list_documents(session, principal, project_id=project_id)
        rows = [
            {
                "id": str(document.id),
                "name": document.name,
                "status": document.status,
                "pages": document.page_count,
                "passages": document.passage_count,
                "reason": document.reason or document.warning,
            }
            for document in found
        ]
        if as_json:
            echo_json(rows)
        else:
            echo_table(
                ["name", "status", "pages", "passages", "reason", "id"],
                [[row[key] for key in ("name", "status", "pages", "passages", "reason", "id")] for row in rows],
                empty=f"“{project}” has no documents yet. Add some: pharos ingest PATH --project '{project}'",
            )

    run_async(work())


@documents_app.command("retry")
def retry_document(
    document_id: Annotated[
        UUID | None, typer.Argument(parser=DOCUMENT_ID, metavar="ID", help="Of a failed document.")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", help="Every failed document of this project.")] = None,
    tenant: TenantSlug = "default",
) -> None:
    """Queue a failed document again; its file is still here."""

    async def work() -> int:
        async with as_operator(tenant) as (runtime, principal):
            ids = [DocumentId(document_id)] if document_id else []
            if project is not None:
                project_id = await project_named(runtime, principal, project)
                async with runtime.db.transaction(principal.tenant_id) as session:
                    found = await documents.list_documents(session, principal, project_id=project_id)
                ids = [DocumentId(document.id) for document in found if document.status == "failed"]
            elif not ids:
                raise Invalid("Name a document by its id, or a project with --project.")
            async with runtime.db.transaction(principal.tenant_id) as session:
                for id_ in ids:
                    await documents.retry(session, principal, document_id=id_)
            return len(ids)

    echo_line(f"{run_async(work())} queued again.")


@documents_app.command("delete")
def delete_document(
    document_id: Annotated[UUID, typer.Argument(parser=DOCUMENT_ID, metavar="ID", help="Id of the document.")],
    tenant: TenantSlug = "default",
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a document with its passages, vectors and quotations; its bytes go a day later."""

    async def work(*, is_real: bool) -> str:
        async with (
            as_operator(tenant) as (runtime, principal),
            runtime.db.transaction(principal.tenant_id) as session,
        ):
            document = await documents.get_document(session, principal, document_id=DocumentId(document_id))
            if is_real:
                await delete.delete_documents(session, principal, document_ids=[DocumentId(document_id)])
            return f"“{document.name}” with {document.passage_count} passages"

    name = run_async(work(is_real=False))
    if dry_run:
        echo_line(f"Would delete {name}.")
        return
    if not yes:
        typer.confirm(f"Delete {name}?", abort=True)
    run_async(work(is_real=True))
    echo_line(f"Deleted {name}.")


@documents_app.command("check")
def check_documents(
    repair: Annotated[bool, typer.Option("--repair", help="Count anew, and index again what is out of step.")] = False,
    tenant: TenantSlug = "default",
    as_json: AsJson = False,
) -> None:
    """Compare documents with their passages, terms and vectors; exit 5 when a count does not fit."""

    async def work() -> tuple[IndexReport, int]:
        async with (
            as_operator(tenant) as (runtime, principal),
            runtime.db.transaction(principal.tenant_id) as session,
        ):
            report = await check_index(session)
            queued = await repair_index(session) if repair and report.out_of_step else 0
            if repair:
                subject = f"tenant:{principal.tenant_id}"
                await record_audit(session, principal, action="index.repaired", subject=subject, queued=queued)
            return report, queued

    report, queued = run_async(work())
    if as_json:
        echo_json({**asdict(report), "out_of_step": report.out_of_step, "queued": queued})
    else:
        echo_line(f"{report.documents} documents compared, {report.out_of_step} counts out of step.")
        if repair:
            echo_line(f"Counted anew; {queued} documents are queued to be indexed again.")
    if report.out_of_step and not repair:
        words = "The index is out of step. Put it right with `pharos documents check --repair`."
        raise Conflict(words, code="out_of_step")
