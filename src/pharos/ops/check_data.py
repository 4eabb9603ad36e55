"""Does everything fit together? Documents, their files, what search knows of them, and the work that is queued."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.principal import operator
from pharos.infra.ids import TenantId
from pharos.infra.jobs import NAMESPACE
from pharos.library.check import IndexReport, check_index, repair_index
from pharos.library.delete import sweep_blobs
from pharos.library.documents import INGEST_TASK, count_without_job, recover_documents
from pharos.library.models import Document
from pharos.ops.secrets_check import every_tenant
from pharos.runtime import Runtime

NAMED = 5
"""Documents without a file that are named; their number is told in full."""

LOST_JOBS = """
    from procrastinate_jobs job
    where job.task_name = :task and job.status = 'todo' and job.args->>'tenant_id' = :tenant_id
      and not exists (select from documents where id in
          (select cast(jsonb_array_elements_text(job.args->'document_ids') as uuid)))
    """
COUNT_LOST_JOBS = text(f"select count(*) {LOST_JOBS}")
DROP_LOST_JOBS = text(
    f"delete from procrastinate_jobs where id in (select job.id {LOST_JOBS})"  # noqa: S608 - constants only
)


@dataclass(frozen=True)
class DataReport:
    """What was compared in one tenant and what does not fit.

    `missing_files` are documents whose file is not there, `cut_files` those whose file has another size; the first
    few are in `names`. `unnamed_files` belong to no document and wait for the sweep: that is no fault. `lost_jobs`
    are waiting jobs whose documents are gone.
    """

    tenant: str
    documents: int
    files: int
    missing_files: int
    cut_files: int
    names: list[str]
    unnamed_files: int
    index: IndexReport
    without_job: int
    lost_jobs: int

    @property
    def faults(self) -> int:
        """What does not fit; 0 when all is well."""
        return self.unrepairable + self.index.out_of_step + self.without_job + self.lost_jobs

    @property
    def unrepairable(self) -> int:
        """What only a backup can bring back."""
        return self.missing_files + self.cut_files


async def check_data(runtime: Runtime) -> list[DataReport]:
    """Compare, in every tenant, rows with files, passages with vectors, and unfinished documents with jobs."""
    return [await _check_tenant(runtime, tenant_id, slug) for tenant_id, slug in await every_tenant(runtime)]


async def repair_data(runtime: Runtime) -> list[DataReport]:
    """Put right what can be without loss, audited, and compare again.

    The index is made anew from the documents' files, lost documents are queued, jobs without a document and files
    without a name go. Files that are missing stay missing: only a backup has them.
    """
    for tenant_id, _ in await every_tenant(runtime):
        async with runtime.db.transaction(tenant_id) as session:
            report = await check_index(session)
            queued = await repair_index(session) if report.out_of_step else 0
            queued += await recover_documents(session)
            await session.execute(DROP_LOST_JOBS, _whose(tenant_id))
            subject = f"tenant:{tenant_id}"
            await record_audit(session, operator(tenant_id), action="data.repaired", subject=subject, queued=queued)
        await sweep_blobs(runtime, tenant_id)
    return await check_data(runtime)


def describe(reports: list[DataReport]) -> str:
    """What was compared, in one sentence; what does not fit, with the number of each."""
    faults = "; ".join(f"{report.tenant}: {', '.join(_faults(report))}" for report in reports if report.faults)
    compared = (
        f"{sum(report.documents for report in reports)} documents of {len(reports)} tenants compared with "
        f"{sum(report.files for report in reports)} files, their passages, terms, vectors and jobs"
    )
    return f"{compared}. {faults}" if faults else f"{compared}: all fits"


async def _check_tenant(runtime: Runtime, tenant_id: TenantId, slug: str) -> DataReport:
    async with runtime.db.transaction(tenant_id) as session:
        index = await check_index(session)
        without_job = await count_without_job(session)
        lost_jobs = int((await session.execute(COUNT_LOST_JOBS, _whose(tenant_id))).scalar_one())
        named = await _named(session)
    # After the rows: a file that came meanwhile is unnamed for a moment, one that is named is there.
    sizes = dict(await asyncio.to_thread(lambda: list(runtime.blobs.tenant_files(tenant_id))))
    missing = [name for sha256, name, _ in named if sha256 not in sizes]
    cut = [name for sha256, name, size in named if sizes.get(sha256, size) != size]
    return DataReport(
        tenant=slug,
        documents=index.documents,
        files=len(sizes),
        missing_files=len(missing),
        cut_files=len(cut),
        names=[*missing, *cut][:NAMED],
        unnamed_files=len(sizes.keys() - {sha256 for sha256, _, _ in named}),
        index=index,
        without_job=without_job,
        lost_jobs=lost_jobs,
    )


async def _named(session: AsyncSession) -> list[tuple[str, str, int]]:
    rows = await session.execute(select(Document.sha256, Document.name, Document.size_bytes))
    return [(row.sha256, row.name, row.size_bytes) for row in rows]


def _whose(tenant_id: TenantId) -> dict[str, str]:
    return {"task": f"{NAMESPACE}:{INGEST_TASK}", "tenant_id": str(tenant_id)}


def _faults(report: DataReport) -> Iterator[str]:
    if report.missing_files:
        yield f"{report.missing_files} documents without their file"
    if report.cut_files:
        yield f"{report.cut_files} files of another size than their document"
    if report.names:
        yield f"such as {', '.join(report.names)}"
    if report.index.out_of_step:
        yield f"{report.index.out_of_step} counts of the index out of step"
    if report.without_job:
        yield f"{report.without_job} unfinished documents that no job knows of"
    if report.lost_jobs:
        yield f"{report.lost_jobs} jobs whose documents are gone"
