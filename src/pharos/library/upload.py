"""Receive a file: bytes to the store, one row and one job, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ARRAY, Text, any_, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.projects import require
from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.infra.blobs import Blob
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.ids import DocumentId, ProjectId, TenantId, new_id
from pharos.library.documents import queue_ingest
from pharos.library.extract.sniff import safe_name, sniff_file
from pharos.library.models import Document
from pharos.runtime import Runtime

UNIQUE_BYTES = ["tenant_id", "project_id", "sha256"]


class DuplicateDocument(Conflict):
    """The project already holds a file with these bytes."""

    code = "duplicate_document"

    def __init__(self, existing: Document) -> None:
        super().__init__(
            f"The project already holds these bytes as “{existing.name}”.",
            existing_id=str(existing.id),
            existing_name=existing.name,
        )
        self.existing = existing


async def receive(
    runtime: Runtime, principal: Principal, *, project_id: ProjectId, name: str, chunks: AsyncIterator[bytes]
) -> Document:
    """Store a streamed file in a project and queue it.

    The document is returned once its bytes are flushed to the disk and its job is committed: from then on no crash
    loses it. Raises `DuplicateDocument`, `TooLarge`, `StorageFull`, `Invalid` (empty), `NotFound`, `NotAllowed`.
    """
    async with runtime.db.transaction(principal.tenant_id) as session:
        await require(session, principal, project_id, "edit")
    stored = await store(runtime, principal.tenant_id, name=name, chunks=chunks)
    async with runtime.db.transaction(principal.tenant_id) as session:
        ((document, is_new),) = await record(session, principal, project_id=project_id, files=[stored])
        if is_new:
            subject = f"document:{document.id}"
            await record_audit(session, principal, action="document.uploaded", subject=subject, project=str(project_id))
    if not is_new:
        raise DuplicateDocument(document)
    return document


@dataclass(frozen=True)
class Stored:
    """A file whose bytes are safe on the disk, and what it is by its content; `name` is as it will be shown."""

    name: str
    blob: Blob
    media_type: str


async def store(runtime: Runtime, tenant_id: TenantId, *, name: str, chunks: AsyncIterator[bytes]) -> Stored:
    """The bytes of a file into the tenant's store. Raises `TooLarge`, `StorageFull`, or `Invalid` for an empty one."""
    blob = await runtime.blobs.write(tenant_id, chunks, max_bytes=runtime.settings.max_upload_bytes)
    return await asyncio.to_thread(_describe, runtime, tenant_id, name=name, blob=blob)


def store_file(runtime: Runtime, tenant_id: TenantId, *, name: str, path: Path) -> Stored:
    """The same with a local file, for a thread. Raises also `OSError` when the file cannot be read."""
    blob = runtime.blobs.write_file(tenant_id, path, max_bytes=runtime.settings.max_upload_bytes)
    return _describe(runtime, tenant_id, name=name, blob=blob)


def _describe(runtime: Runtime, tenant_id: TenantId, *, name: str, blob: Blob) -> Stored:
    if blob.size_bytes == 0:
        raise Invalid("The file is empty. Check it and send it again.", code="empty_file")
    return Stored(safe_name(name), blob, sniff_file(runtime.blobs.path(tenant_id, blob.sha256), name=name))


async def record(
    session: AsyncSession, principal: Principal, *, project_id: ProjectId, files: Sequence[Stored]
) -> list[tuple[Document, bool]]:
    """The rows of stored files and one job for those that are new.

    For each file, in their order: its document, and whether it is new; otherwise the project held these bytes already.
    """
    await require(session, principal, project_id, "edit")
    # In the order of their bytes: two such transactions with the same files must not wait for each other.
    rows = [
        {
            "tenant_id": principal.tenant_id,
            "id": new_id(),
            "project_id": project_id,
            "name": file.name,
            "sha256": file.blob.sha256,
            "size_bytes": file.blob.size_bytes,
            "media_type": file.media_type,
        }
        for file in sorted(files, key=lambda file: file.blob.sha256)
    ]
    # The unique index decides between two uploads of the same bytes at once; a look-up before would not.
    new = insert(Document).on_conflict_do_nothing(index_elements=UNIQUE_BYTES).returning(Document)
    added = {document.sha256: document for document in (await session.execute(new, rows)).scalars()}
    if added:
        await queue_ingest(session, *added.values())
    known = await find_by_bytes(session, project_id=project_id, hashes=[file.blob.sha256 for file in files])
    return [(known[file.blob.sha256], added.pop(file.blob.sha256, None) is not None) for file in files]


async def find_by_bytes(session: AsyncSession, *, project_id: ProjectId, hashes: Sequence[str]) -> dict[str, Document]:
    """The documents of a project that have these bytes, by their hash."""
    is_one = Document.sha256 == any_(literal(list(hashes), ARRAY(Text)))
    found = await session.execute(select(Document).where(Document.project_id == project_id, is_one))
    return {document.sha256: document for document in found.scalars()}


async def find_by_name(
    session: AsyncSession, *, project_id: ProjectId, names: Sequence[str]
) -> dict[str, list[DocumentId]]:
    """The documents of a project with these names, as they are shown; those of one name oldest first."""
    is_one = Document.name == any_(literal(list(names), ARRAY(Text)))
    found = await session.execute(
        select(Document.name, Document.id).where(Document.project_id == project_id, is_one).order_by(Document.id)
    )
    by_name: dict[str, list[DocumentId]] = {}
    for name, document_id in found:
        by_name.setdefault(name, []).append(DocumentId(document_id))
    return by_name
