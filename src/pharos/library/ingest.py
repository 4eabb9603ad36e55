"""From stored files to passages that search can find.

Every step can run twice. A run takes each document's next `epoch` when it begins and writes its result only if that
is still the newest: a worker that was thought dead and comes back cannot overwrite its successor's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import ARRAY, Uuid, any_, func, literal, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import PharosError
from pharos.infra.ids import DocumentId, ProjectId, TenantId
from pharos.infra.logs import get_logger
from pharos.library.documents import UNFINISHED, give_up
from pharos.library.extract import Extracted, extract_document
from pharos.library.models import Document
from pharos.library.passages import PreparedPassages, embedded_text, prepare_passages, replace_passages, title_of
from pharos.library.split import CountTokens, Piece, split_text, token_counter
from pharos.runtime import Runtime

if TYPE_CHECKING:  # a command that touches no vector need not wait for their library
    import numpy as np
    from numpy.typing import NDArray

log = get_logger(__name__)

MAX_PASSAGE_TOKENS = 200
MARKDOWN = {"text/markdown", "text/html"}
"""What is read as Markdown: a web page is written as it when its text is taken."""
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


@dataclass(frozen=True)
class Read:
    """A claimed document with its text and the passages that it will have."""

    claim: Claim
    extracted: Extracted
    pieces: list[Piece]

    @property
    def title(self) -> str:
        return title_of(self.claim.name)

    @property
    def warning(self) -> str | None:
        warnings = [*self.extracted.warnings, *([] if self.pieces or self.extracted.warnings else [NO_TEXT])]
        return " ".join(warnings) or None


async def ingest_documents(runtime: Runtime, tenant_id: TenantId, document_ids: Sequence[DocumentId]) -> None:
    """Extract, split, embed and store documents; each ends `indexed`, or `failed` with a reason.

    Those that are gone or indexed already are left alone. They are stored in one transaction: with short documents
    the number of statements is most of the cost. Errors that later may not happen again (`Unavailable`) are raised
    for the queue to retry; the documents stay `processing` meanwhile.
    """
    async with runtime.db.transaction(tenant_id) as session:
        claims = await _claim(session, tenant_id, document_ids)
    extracted = [(claim, text) for claim in claims if (text := await _extract(runtime, claim)) is not None]
    if not extracted:
        return
    read = await asyncio.to_thread(_split, extracted, token_counter(runtime.settings.models_dir))
    vectors = await runtime.embedding.embed(
        [embedded_text(document.title, piece) for document in read for piece in document.pieces]
    )
    prepared = await asyncio.to_thread(_prepare, read, vectors)
    async with runtime.db.transaction(tenant_id) as session:
        stored = await _store(session, read, prepared)
    for document in read:
        log.info(
            "document.ingested",
            document_id=str(document.claim.document_id),
            passages=len(document.pieces),
            superseded=document.claim.document_id not in stored,
        )


async def _claim(session: AsyncSession, tenant_id: TenantId, document_ids: Sequence[DocumentId]) -> list[Claim]:
    rows = await session.execute(
        update(Document)
        .where(Document.id == any_(literal(list(document_ids), ARRAY(Uuid))), Document.status.in_(UNFINISHED))
        .values(status="processing", epoch=Document.epoch + 1, updated_at=func.now())
        .returning(Document.id, Document.project_id, Document.epoch, Document.name, Document.sha256)
        .execution_options(synchronize_session=False)
    )
    return [
        Claim(
            tenant_id=tenant_id,
            document_id=DocumentId(row.id),
            project_id=ProjectId(row.project_id),
            epoch=row.epoch,
            name=row.name,
            sha256=row.sha256,
        )
        for row in rows
    ]


async def _extract(runtime: Runtime, claim: Claim) -> Extracted | None:
    """The text of a document; None when there is none to be had, and the document says why."""
    try:
        return await extract_document(runtime.blobs.path(claim.tenant_id, claim.sha256), name=claim.name)
    except PharosError as error:
        if error.retryable:
            raise
        async with runtime.db.transaction(claim.tenant_id) as session:
            await give_up(session, document_id=claim.document_id, reason=error.message, epoch=claim.epoch)
        log.info("document.failed", document_id=str(claim.document_id), code=error.code)
        return None


def _split(documents: list[tuple[Claim, Extracted]], count_tokens: CountTokens | None) -> list[Read]:
    return [
        Read(
            claim,
            extracted,
            split_extracted(extracted, count_tokens),
        )
        for claim, extracted in documents
    ]


def split_extracted(extracted: Extracted, count_tokens: CountTokens | None) -> list[Piece]:
    """The passages of a document's text, in its order."""
    return split_text(
        extracted.text,
        page_starts=extracted.page_starts,
        max_tokens=MAX_PASSAGE_TOKENS,
        markdown=extracted.media_type in MARKDOWN,
        count_tokens=count_tokens,
    )


def _prepare(read: list[Read], vectors: NDArray[np.float32]) -> list[PreparedPassages]:
    prepared: list[PreparedPassages] = []
    done = 0
    for document in read:
        prepared.append(
            prepare_passages(
                document.pieces,
                vectors[done : done + len(document.pieces)],
                tenant_id=document.claim.tenant_id,
                project_id=document.claim.project_id,
                document_id=document.claim.document_id,
                title=document.title,
            )
        )
        done += len(document.pieces)
    return prepared


async def _store(session: AsyncSession, read: list[Read], prepared: list[PreparedPassages]) -> set[DocumentId]:
    """Write what is still this run's to write; gives the ids of those documents."""
    claims = [document.claim for document in read]
    runs = {"ids": [claim.document_id for claim in claims], "epochs": [claim.epoch for claim in claims]}
    ours = set((await session.execute(LOCK_NEWEST, runs)).scalars())
    written = [pair for pair in zip(read, prepared, strict=True) if pair[0].claim.document_id in ours]
    if written:
        await session.execute(STORE_TEXTS, _text_parameters([document for document, _ in written]))
        await replace_passages(session, [passages for _, passages in written])
        await session.execute(MARK_INDEXED, _mark_parameters(written))
    return ours


def _text_parameters(read: list[Read]) -> dict[str, object]:
    return {
        "tenant": read[0].claim.tenant_id,
        "ids": [document.claim.document_id for document in read],
        "bodies": [document.extracted.text for document in read],
        "page_starts": [f"{{{','.join(map(str, document.extracted.page_starts))}}}" for document in read],
    }


def _mark_parameters(written: list[tuple[Read, PreparedPassages]]) -> dict[str, object]:
    return {
        "ids": [document.claim.document_id for document, _ in written],
        "warnings": [document.warning for document, _ in written],
        "pages": [len(document.extracted.page_starts) or None for document, _ in written],
        "passages": [len(passages.rows) for _, passages in written],
        "languages": [passages.language for _, passages in written],
    }


# In the order of their ids: two runs over the same documents must not wait for each other.
LOCK_NEWEST = text(
    """
    select document.id from documents document
    join unnest(cast(:ids as uuid[]), cast(:epochs as int[])) as run (id, epoch) using (id, epoch)
    order by document.id for update of document
    """
)
STORE_TEXTS = text(
    """
    insert into document_texts (tenant_id, document_id, body, page_starts)
    select :tenant, id, body, cast(page_starts as int[])
    from unnest(cast(:ids as uuid[]), cast(:bodies as text[]), cast(:page_starts as text[]))
         as read (id, body, page_starts)
    on conflict (tenant_id, document_id) do update set body = excluded.body, page_starts = excluded.page_starts
    """
)
MARK_INDEXED = text(
    """
    update documents set status = 'indexed', reason = null, warning = read.warning, page_count = read.pages,
                         passage_count = read.passages, language = read.language, updated_at = now()
    from unnest(
        cast(:ids as uuid[]), cast(:warnings as text[]), cast(:pages as int[]), cast(:passages as int[]),
        cast(:languages as text[])
    ) as read (id, warning, pages, passages, language)
    where documents.id = read.id
    """
)
