"""Delete a document so that nothing of it is left: passages, vectors, text, quotations and, a day later, its bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from sqlalchemy import ARRAY, Text, Uuid, any_, delete, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.infra.ids import DocumentId, TenantId
from pharos.infra.models import BlobLease
from pharos.library.documents import get_document
from pharos.library.models import Document
from pharos.library.passages import delete_passages
from pharos.runtime import Runtime

# Quotations are kept with answers so that these stay readable; of a deleted document they go too.
BLANK_QUOTATIONS = text("update message_sources set text = '' where document_id = any(:document_ids)")

BLOB_GRACE_SECONDS = 24 * 3600
"""Bytes that no document names wait this long: an upload of the same bytes may be on its way to its row."""


async def delete_documents(session: AsyncSession, principal: Principal, *, document_ids: Sequence[DocumentId]) -> None:
    """Remove documents the principal may edit, with all that was made of them; `sweep_blobs` takes their bytes."""
    for document_id in document_ids:
        await get_document(session, principal, document_id=document_id, tier="edit")
    if not document_ids:
        return
    # A run that is just storing passages holds the rows of their documents: they must be there to be counted off.
    # All rows first, in the order of their ids, as that run takes them: so neither can wait for the other.
    are_these = Document.id == any_(literal(list(document_ids), ARRAY(Uuid)))
    await session.execute(select(Document.id).where(are_these).order_by(Document.id).with_for_update())
    await delete_passages(session, document_ids=document_ids)
    await session.execute(BLANK_QUOTATIONS, {"document_ids": list(document_ids)})
    await session.execute(delete(Document).where(are_these).execution_options(synchronize_session=False))
    for document_id in document_ids:
        await record_audit(session, principal, action="document.deleted", subject=f"document:{document_id}")


async def sweep_blobs(runtime: Runtime, tenant_id: TenantId, *, grace_seconds: float = BLOB_GRACE_SECONDS) -> int:
    """Remove the tenant's bytes that no document has named for `grace_seconds`; returns how many files.

    None while a lease lasts: a backup copies what its snapshot names, also when its document is deleted meanwhile.
    """
    candidates = await asyncio.to_thread(runtime.blobs.older_than, tenant_id, grace_seconds, now=time.time())
    if not candidates:
        return 0
    async with runtime.db.transaction(tenant_id) as session:
        used = await _named(session, candidates)
        # Asked last: a lease that begins after this belongs to a snapshot in which these bytes have no name either.
        if await is_leased(session):
            return 0
    unused = [sha256 for sha256 in candidates if sha256 not in used]
    return await asyncio.to_thread(runtime.blobs.delete_older_than, tenant_id, unused, grace_seconds, now=time.time())


async def _named(session: AsyncSession, hashes: Iterable[str]) -> set[str]:
    one_of_them = Document.sha256 == any_(literal(list(hashes), ARRAY(Text)))
    found = await session.execute(select(Document.sha256).where(one_of_them))
    return set(found.scalars())


async def is_leased(session: AsyncSession) -> bool:
    """Whether no bytes may be removed now: a backup copies them, or an old database still names them."""
    lasting = select(BlobLease.id).where(BlobLease.until > func.now()).limit(1)
    return (await session.execute(lasting)).first() is not None
