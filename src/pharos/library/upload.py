"""Receive a file: bytes to the store, one row and one job, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.projects import require
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
        return await record(session, principal, project_id=project_id, name=name, stored=stored)


@dataclass(frozen=True)
class Stored:
    """A file whose bytes are safe on the disk, and what it is by its content."""

    blob: Blob
    media_type: str


async def store(runtime: Runtime, tenant_id: TenantId, *, name: str, chunks: AsyncIterator[bytes]) -> Stored:
    """The bytes of a file into the tenant's store. Raises `TooLarge`, `StorageFull`, or `Invalid` for an empty one."""
    blob = await runtime.blobs.write(tenant_id, chunks, max_bytes=runtime.settings.max_upload_bytes)
    if blob.size_bytes == 0:
        raise Invalid("The file is empty. Check it and send it again.", code="empty_file")
    path = runtime.blobs.path(tenant_id, blob.sha256)
    return Stored(blob, await asyncio.to_thread(sniff_file, path, name=name))


async def record(
    session: AsyncSession, principal: Principal, *, project_id: ProjectId, name: str, stored: Stored
) -> Document:
    """The row and the job of a stored file. Raises `DuplicateDocument`."""
    await require(session, principal, project_id, "edit")
    new = insert(Document).values(
        tenant_id=principal.tenant_id,
        id=new_id(),
        project_id=project_id,
        name=safe_name(name),
        sha256=stored.blob.sha256,
        size_bytes=stored.blob.size_bytes,
        media_type=stored.media_type,
    )
    # The unique index decides between two uploads of the same bytes at once; a look-up before would not.
    kept = await session.execute(new.on_conflict_do_nothing(index_elements=UNIQUE_BYTES).returning(Document))
    document = kept.scalar_one_or_none()
    if document is None:
        existing = await find_by_bytes(session, project_id=project_id, sha256=stored.blob.sha256)
        assert existing is not None
        raise DuplicateDocument(existing)
    await queue_ingest(session, document)
    return document


async def find_by_bytes(session: AsyncSession, *, project_id: ProjectId, sha256: str) -> Document | None:
    """The document of a project that has these bytes."""
    found = await session.execute(select(Document).where(Document.project_id == project_id, Document.sha256 == sha256))
    return found.scalar_one_or_none()


async def find_by_name(session: AsyncSession, *, project_id: ProjectId, name: str) -> list[DocumentId]:
    """Documents of a project with this name, oldest first."""
    found = await session.execute(
        select(Document.id).where(Document.project_id == project_id, Document.name == safe_name(name)).order_by("id")
    )
    return [DocumentId(row) for row in found.scalars()]
