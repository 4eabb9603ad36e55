"""Documents as rows: list, look up, retry, and the states they pass through.

pending -> processing -> indexed
                      -> failed (reason kept; retry needs no new upload)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import TextClause, case, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.projects import Tier, require, visible_projects
from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.infra import jobs
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.ids import DocumentId, ProjectId
from pharos.library.models import Document, DocumentText

INGEST_TASK = "ingest_documents"
UNFINISHED = ("pending", "processing")
GAVE_UP = "The document stopped the worker again and again and was given up. Split it or convert it, then retry."


async def list_documents(session: AsyncSession, principal: Principal, *, project_id: ProjectId) -> Sequence[Document]:
    """All documents of a project by name."""
    await require(session, principal, project_id, "use")
    found = await session.execute(
        select(Document).where(Document.project_id == project_id).order_by(func.lower(Document.name), Document.id)
    )
    return found.scalars().all()


@dataclass(frozen=True)
class FoundDocuments:
    """Some of a project's documents, how many more were found, and whether any of the project is on its way."""

    documents: Sequence[Document]
    more_count: int
    is_busy: bool


async def find_documents(
    session: AsyncSession, principal: Principal, *, project_id: ProjectId, name: str, limit: int
) -> FoundDocuments:
    """Documents whose name contains `name`, those that need a look first: failed, then unfinished, then the rest."""
    await require(session, principal, project_id, "use")
    here = Document.project_id == project_id
    order = case({"failed": 0, "processing": 1, "pending": 1}, value=Document.status, else_=2)
    found = await session.execute(
        select(Document, func.count().over().label("found"))
        .where(here, Document.name.icontains(name.strip(), autoescape=True))
        .order_by(order, func.lower(Document.name), Document.id)
        .limit(limit)
    )
    rows = found.all()
    # What is shown unfinished counts as that although it may have been finished since: the list must be looked at anew.
    is_busy = any(row.Document.status in UNFINISHED for row in rows)
    if not is_busy:
        elsewhere = select(exists().where(here, Document.status.in_(UNFINISHED)))
        is_busy = bool((await session.execute(elsewhere)).scalar_one())
    return FoundDocuments(
        documents=[row.Document for row in rows],
        more_count=rows[0].found - len(rows) if rows else 0,
        is_busy=is_busy,
    )


async def get_document(
    session: AsyncSession, principal: Principal, *, document_id: DocumentId, tier: Tier = "use"
) -> Document:
    """A document the principal has this tier on. Raises `NotFound` for foreign and for missing ones alike."""
    found = await session.execute(
        select(Document).where(Document.id == document_id, Document.project_id.in_(visible_projects(principal)))
    )
    document = found.scalar_one_or_none()
    if document is None:
        raise NotFound("There is no such document among those you can reach.", code="no_such_document")
    await require(session, principal, ProjectId(document.project_id), tier)
    return document


async def get_text(session: AsyncSession, principal: Principal, *, document_id: DocumentId) -> DocumentText:
    """The extracted text that all spans count in. Raises `NotFound` while there is none."""
    document = await get_document(session, principal, document_id=document_id)
    body = await session.get(DocumentText, (document.tenant_id, document.id))
    if body is None:
        raise NotFound("The text of this document is not there yet. Wait until it is indexed.", code="no_text_yet")
    return body


async def retry(session: AsyncSession, principal: Principal, *, document_id: DocumentId) -> Document:
    """Queue a failed document again; its file is still there. Audited."""
    document = await get_document(session, principal, document_id=document_id, tier="edit")
    if document.status != "failed":
        raise Conflict(f"Only a failed document can be retried; this one is {document.status}.", code="not_failed")
    document.status, document.reason, document.warning = "pending", None, None
    await queue_ingest(session, document)
    await record_audit(session, principal, action="document.retried", subject=f"document:{document_id}")
    return document


async def queue_ingest(session: AsyncSession, *together: Document) -> None:
    """One ingest job for these documents of a tenant, in this transaction; `epoch` keeps two runs of one apart."""
    await jobs.enqueue(
        session,
        INGEST_TASK,
        tenant_id=str(together[0].tenant_id),
        document_ids=[str(document.id) for document in together],
    )


async def queue_apart(session: AsyncSession, document_ids: Sequence[DocumentId]) -> None:
    """A job of its own for each of these documents that is unfinished."""
    found = await session.execute(
        select(Document).where(Document.id.in_(document_ids), Document.status.in_(UNFINISHED))
    )
    for document in found.scalars():
        await queue_ingest(session, document)


async def give_up(session: AsyncSession, *, document_id: DocumentId, reason: str, epoch: int | None = None) -> None:
    """Mark an unfinished document failed with words a person can act on; `epoch` limits it to one run's."""
    condition = Document.epoch == epoch if epoch is not None else text("true")
    await session.execute(
        update(Document)
        .where(Document.id == document_id, Document.status.in_(UNFINISHED), condition)
        .values(status="failed", reason=reason, updated_at=func.now())
    )


async def recover_documents(session: AsyncSession) -> int:
    """Queue every unfinished document of the tenant that no live job knows of; returns how many (IQ-04).

    The fresh job and the row's lock serialise with a job that is just being finished: at worst a document is
    ingested twice, with the same result.
    """
    unfinished = select(Document).where(Document.status.in_(UNFINISHED), _without_job())
    lost = (await session.execute(unfinished.with_for_update(skip_locked=True))).scalars().all()
    for document in lost:
        document.status = "pending"
        await queue_ingest(session, document)
    return len(lost)


async def return_to_pending(session: AsyncSession) -> int:
    """Mark the tenant's `processing` documents `pending` that no live job knows of; returns how many."""
    lost = select(Document).where(Document.status == "processing", _without_job()).with_for_update(skip_locked=True)
    found = (await session.execute(lost)).scalars().all()
    for document in found:
        document.status = "pending"
    return len(found)


async def count_without_job(session: AsyncSession) -> int:
    """The tenant's unfinished documents that no live job knows of; `recover_documents` queues them."""
    lost = select(func.count()).select_from(Document).where(Document.status.in_(UNFINISHED), _without_job())
    return int((await session.execute(lost)).scalar_one())


def _without_job() -> TextClause:
    return text(
        "documents.id not in (select cast(jsonb_array_elements_text(job.args->'document_ids') as uuid) "
        "from procrastinate_jobs job where job.status in ('todo', 'doing') and job.task_name = :task)"
    ).bindparams(task=f"{jobs.NAMESPACE}:{INGEST_TASK}")
