"""Index what is text already, without a file and a job: evaluation sets, and what other parts of the product write."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pharos.infra.ids import DocumentId, ProjectId, TenantId, new_id
from pharos.library.models import Document, DocumentText
from pharos.library.passages import PreparedPassages, embedded_text, prepare_passages, replace_passages
from pharos.library.split import split_text, token_counter
from pharos.runtime import Runtime


@dataclass(frozen=True)
class NamedText:
    """A text under the name it is cited by; `title` is what it is about, if the name does not say it."""

    name: str
    text: str
    title: str = ""


async def index_texts(
    runtime: Runtime, tenant_id: TenantId, project_id: ProjectId, texts: Sequence[NamedText]
) -> dict[DocumentId, str]:
    """Split, embed and store texts as indexed documents, in one transaction; gives the name of each by its id.

    A few dozen texts at a time keep the embedder's batches full and the transaction short. Raises `Unavailable`.
    """
    count = token_counter(runtime.settings.models_dir)
    pieces = [await asyncio.to_thread(split_text, text.text, count_tokens=count) for text in texts]
    vectors = await runtime.embedding.embed(
        [embedded_text(text.title, piece) for text, of_text in zip(texts, pieces, strict=True) for piece in of_text]
    )
    names: dict[DocumentId, str] = {}
    prepared: list[PreparedPassages] = []
    documents: list[Document] = []
    bodies: list[DocumentText] = []
    done = 0
    for text, of_text in zip(texts, pieces, strict=True):
        document_id = DocumentId(new_id())
        names[document_id] = text.name
        passages = prepare_passages(
            of_text,
            vectors[done : done + len(of_text)],
            tenant_id=tenant_id,
            project_id=project_id,
            document_id=document_id,
            title=text.title,
        )
        done += len(of_text)
        prepared.append(passages)
        documents.append(_document(text, passages))
        bodies.append(DocumentText(tenant_id=tenant_id, document_id=document_id, body=text.text, page_starts=[]))
    async with runtime.db.transaction(tenant_id) as session:
        session.add_all(documents)
        await session.flush()
        session.add_all(bodies)
        await session.flush()
        await replace_passages(session, prepared)
    return names


def _document(text: NamedText, passages: PreparedPassages) -> Document:
    body = text.text.encode()
    return Document(
        tenant_id=passages.tenant_id,
        id=passages.document_id,
        project_id=passages.project_id,
        name=text.name,
        # Two texts may be equal and still be two documents: the name belongs to what is hashed.
        sha256=hashlib.sha256(text.name.encode() + b"\0" + body).hexdigest(),
        size_bytes=len(body),
        media_type="text/plain",
        status="indexed",
        passage_count=len(passages.rows),
        language=passages.language,
    )
