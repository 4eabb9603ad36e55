"""The library's jobs, and what becomes of a document whose job is given up."""

from __future__ import annotations

from uuid import UUID

from procrastinate import JobContext
from sqlalchemy.exc import SQLAlchemyError

from pharos.infra import jobs
from pharos.infra.errors import PharosError
from pharos.infra.ids import DocumentId, TenantId
from pharos.infra.logs import get_logger
from pharos.library import ingest
from pharos.library.documents import GAVE_UP, INGEST_TASK, give_up
from pharos.runtime import Runtime

log = get_logger(__name__)


@jobs.durable_task(INGEST_TASK)
async def ingest_document(context: JobContext, *, tenant_id: str, document_id: str) -> None:
    """Ingest one document; on the last attempt an error becomes the document's reason."""
    runtime: Runtime = context.additional_context["runtime"]
    tenant, document = TenantId(UUID(tenant_id)), DocumentId(UUID(document_id))
    try:
        await ingest.ingest_document(runtime, tenant, document)
    except Exception as error:
        if context.job.attempts + 1 >= jobs.MAX_ATTEMPTS:
            await mark_given_up(runtime, tenant_id=tenant_id, document_id=document_id, reason=_reason(error))
        raise


async def mark_given_up(runtime: Runtime, *, tenant_id: str, document_id: str, reason: str = GAVE_UP) -> None:
    """Fail the document of a job that will not be tried again."""
    async with runtime.db.transaction(TenantId(UUID(tenant_id))) as session:
        await give_up(session, document_id=DocumentId(UUID(document_id)), reason=reason)
    log.warning("document.given_up", document_id=document_id)


def _reason(error: Exception) -> str:
    if isinstance(error, PharosError):
        return error.message
    if isinstance(error, SQLAlchemyError):
        return "The database did not take it. When `pharos doctor` is content, retry the document."
    return f"Pharos could not work it out ({type(error).__name__}). `pharos logs worker` has more; then retry."
