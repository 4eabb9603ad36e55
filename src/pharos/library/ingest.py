"""From a stored file to passages that search can find.

Every step can run twice. A run takes the document's next `epoch` when it begins and writes its result only if that
is still the newest: a worker that was thought dead and comes back cannot overwrite its successor's work.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import PharosError
from pharos.infra.ids import DocumentId, ProjectId, TenantId
from pharos.infra.logs import get_logger
from pharos.library.documents import give_up
from pharos.library.extract import Extracted, extract_document
from pharos.library.models import Document, DocumentText
from pharos.library.passages import PreparedPassages, embedded_text, prepare_passages, replace_passages, title_of
from pharos.library.split import split_text, token_counter
from pharos.runtime import Runtime

log = get_logger(__name__)

MAX_PASSAGE_TOKENS = 200
NO_TEXT = "No text was found in it."


@dataclass(frozen=True)
class Claim:
    """One run's hold on a document."""

    tenant_id: TenantId
    document_id: DocumentId
    project_id: ProjectId
    epoch: int
    name: str
    sha256: str
    media_type: str


async def ingest_document(runtime: Runtime, tenant_id: TenantId, document_id: DocumentId) -> None:
    """Extract, split, embed and store one document; it ends `indexed`, or `failed` with a reason.

    Returns silently when the document is gone or already indexed. Errors that later may not happen again
    (`Unavailable`) are raised for the queue to retry; the document stays `processing` meanwhile.
    """
    async with runtime.db.transaction(tenant_id) as session:
        claim = await _claim(session, tenant_id, document_id)
    if claim is None:
        return
    try:
        extracted = await extract_document(runtime.blobs.path(tenant_id, claim.sha256), name=claim.name)
        prepared = await _prepare(runtime, claim, extracted)
    except PharosError as error:
        if error.retryable:
            raise
        async with runtime.db.transaction(tenant_id) as session:
            await give_up(session, document_id=document_id, reason=error.message, epoch=claim.epoch)
        log.info("document.failed", document_id=str(document_id), code=error.code)
        return
    async with runtime.db.transaction(tenant_id) as session:
        stored = await _store(session, claim, extracted, prepared)
    log.info("document.ingested", document_id=str(document_id), passages=len(prepared.rows), superseded=not stored)


async def _claim(session: AsyncSession, tenant_id: TenantId, document_id: DocumentId) -> Claim | None:
    row = (
        await session.execute(
            update(Document)
            .where(Document.id == document_id, Document.status.in_(("pending", "processing")))
            .values(status="processing", epoch=Document.epoch + 1, updated_at=func.now())
            .returning(Document.project_id, Document.epoch, Document.name, Document.sha256, Document.media_type)
        )
    ).one_or_none()
    if row is None:
        return None
    return Claim(
        tenant_id=tenant_id,
        document_id=document_id,
        project_id=ProjectId(row.project_id),
        epoch=row.epoch,
        name=row.name,
        sha256=row.sha256,
        media_type=row.media_type,
    )


async def _prepare(runtime: Runtime, claim: Claim, extracted: Extracted) -> PreparedPassages:
    is_markdown = extracted.media_type == "text/markdown"
    pieces = await asyncio.to_thread(
        split_text,
        extracted.text,
        page_starts=extracted.page_starts,
        max_tokens=MAX_PASSAGE_TOKENS,
        markdown=is_markdown,
        count_tokens=token_counter(runtime.settings.models_dir),
    )
    title = title_of(claim.name)
    vectors = await runtime.embedding.embed([embedded_text(title, piece) for piece in pieces])
    return await asyncio.to_thread(
        prepare_passages,
        pieces,
        vectors,
        tenant_id=claim.tenant_id,
        project_id=claim.project_id,
        document_id=claim.document_id,
        title=title,
    )


async def _store(session: AsyncSession, claim: Claim, extracted: Extracted, prepared: PreparedPassages) -> bool:
    newest = await session.execute(
        select(Document.id).where(Document.id == claim.document_id, Document.epoch == claim.epoch).with_for_update()
    )
    if newest.scalar_one_or_none() is None:
        return False
    body = {"body": extracted.text, "page_starts": extracted.page_starts}
    await session.execute(
        insert(DocumentText)
        .values(tenant_id=claim.tenant_id, document_id=claim.document_id, **body)
        .on_conflict_do_update(index_elements=["tenant_id", "document_id"], set_=body)
    )
    await replace_passages(session, prepared)
    warnings = [*extracted.warnings, *([] if prepared.rows or extracted.warnings else [NO_TEXT])]
    await session.execute(
        update(Document)
        .where(Document.id == claim.document_id)
        .values(
            status="indexed",
            reason=None,
            warning=" ".join(warnings) or None,
            page_count=len(extracted.page_starts) or None,
            passage_count=len(prepared.rows),
            language=prepared.language,
            updated_at=func.now(),
        )
    )
    return True
