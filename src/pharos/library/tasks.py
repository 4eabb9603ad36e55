"""The library's jobs, and what becomes of a document whose job is given up."""

from __future__ import annotations

from uuid import UUID

from procrastinate import JobContext
from sqlalchemy.exc import SQLAlchemyError

from pharos.infra.errors import PharosError
from pharos.infra.ids import DocumentId, TenantId
from pharos.infra.job_queue import durable_task
from pharos.infra.jobs import MAX_ATTEMPTS
from pharos.infra.logs import get_logger
from pharos.library import ingest
from pharos.library.documents import GAVE_UP, INGEST_TASK, give_up, queue_apart
from pharos.runtime import Runtime

log = get_logger(__name__)


@durable_task(INGEST_TASK)
async def ingest_documents(context: JobContext, *, tenant_id: str, document_ids: list[str]) -> None:
    """Ingest documents together; on the last attempt an error becomes the reason of each."""
    runtime: Runtime = context.additional_context["runtime"]
    tenant, together = TenantId(UUID(tenant_id)), _ids(document_ids)
    if context.job.attempts and len(together) > 1:
        # One of them may be what stopped the worker: from now on each succeeds and fails alone.
        async with runtime.db.transaction(tenant) as session:
            await queue_apart(session, together)
        return
    try:
        await ingest.ingest_documents(runtime, tenant, together)
    except Exception as error:
        if context.job.attempts + 1 >= MAX_ATTEMPTS:
            await mark_given_up(runtime, tenant_id=tenant_id, document_ids=document_ids, reason=_reason(error))
        raise


async def mark_given_up(runtime: Runtime, *, tenant_id: str, document_ids: list[str], reason: str = GAVE_UP) -> None:
    """Fail the documents of a job that will not be tried again."""
    async with runtime.db.transaction(TenantId(UUID(tenant_id))) as session:
        for document_id in _ids(document_ids):
            await give_up(session, document_id=document_id, reason=reason)
    log.warning("documents.given_up", document_ids=document_ids)


def _ids(texts: list[str]) -> list[DocumentId]:
    return [DocumentId(UUID(text)) for text in texts]


def _reason(error: Exception) -> str:
    if isinstance(error, PharosError):
        return error.message
    if isinstance(error, SQLAlchemyError):
        return "The database did not take it. When `pharos doctor` is content, retry the document."
    return f"Pharos could not work it out ({type(error).__name__}). `pharos logs worker` has more; then retry."
