"""Delete a document so that nothing of it is left: passages, vectors, text, quotations and, a day later, its bytes."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import ARRAY, Text, Uuid, any_, delete, func, literal, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.principal import Principal
from pharos.infra.database_roles import connection_urls, with_database
from pharos.infra.db import create_database
from pharos.infra.ids import DocumentId, TenantId
from pharos.infra.logs import get_logger
from pharos.infra.models import BlobLease
from pharos.library.documents import get_document
from pharos.library.models import Document
from pharos.library.passages import delete_passages
from pharos.runtime import Runtime

log = get_logger(__name__)

# Quotations are kept with answers so that these stay readable; of a deleted document they go too.
BLANK_QUOTATIONS = text("update message_sources set text = '' where document_id = any(:document_ids)")

KEPT_DATABASES = text(
    "select datname from pg_database "
    "where datname ~ ('^' || current_database() || '_(restore|(before|failed)_[0-9]{14})$') order by datname"
)
"""What a restore keeps beside the live one, or makes there (`ops/backup/rollback_points.py`)."""

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

    None while a lease lasts: a backup copies what its snapshot names, also when its document is deleted meanwhile. And
    none that a database names which a restore has kept beside the live one: it may be swapped back.
    """
    candidates = await asyncio.to_thread(runtime.blobs.older_than, tenant_id, grace_seconds, now=time.time())
    if not candidates:
        return 0
    async with runtime.db.transaction(tenant_id) as session:
        used = await _named(session, candidates)
    unused = await _unneeded(runtime, tenant_id, [sha256 for sha256 in candidates if sha256 not in used])
    return await asyncio.to_thread(runtime.blobs.delete_older_than, tenant_id, unused, grace_seconds, now=time.time())


async def sweep_aside(runtime: Runtime, *, grace_seconds: float = BLOB_GRACE_SECONDS) -> int:
    """Remove the folders of bytes that a wipe took out of use that long ago, for the same reasons only those of which
    nothing is needed; returns how many."""
    removed = 0
    for folder in await asyncio.to_thread(runtime.blobs.aside_for, grace_seconds, now=time.time()):
        for tenant in folder.iterdir():
            hashes = [file.name for file in tenant.glob("??/??/*")]
            if await _unneeded(runtime, TenantId(UUID(tenant.name)), hashes) != hashes:
                break
        else:
            await asyncio.to_thread(shutil.rmtree, folder)
            removed += 1
    return removed


async def _unneeded(runtime: Runtime, tenant_id: TenantId, hashes: Sequence[str]) -> list[str]:
    """Of bytes that the live database does not name: those that no kept one names either, while no lease lasts.

    None of them when that cannot be said: a kept database does not answer, or a swap has changed which one is live.
    """
    if not hashes:
        return []
    named = set()
    async with runtime.db.transaction(tenant_id) as session:
        kept = await _kept_databases(session)
    for name in kept:
        database = create_database(with_database(connection_urls(runtime.settings).direct, name), pool_size=1)
        try:
            async with database.transaction(tenant_id) as session:
                named |= await _named(session, hashes)
        except SQLAlchemyError as error:
            log.warning("blobs.not_swept", database=name, error=type(error).__name__)
            return []
        finally:
            await database.dispose()
    async with runtime.db.transaction(tenant_id) as session:
        # Asked last: a lease that begins after this belongs to a snapshot in which these bytes have no name either.
        if await is_leased(session) or await _kept_databases(session) != kept:
            return []
    return [sha256 for sha256 in hashes if sha256 not in named]


async def _kept_databases(session: AsyncSession) -> list[str]:
    return list((await session.execute(KEPT_DATABASES)).scalars())


async def _named(session: AsyncSession, hashes: Iterable[str]) -> set[str]:
    one_of_them = Document.sha256 == any_(literal(list(hashes), ARRAY(Text)))
    found = await session.execute(select(Document.sha256).where(one_of_them))
    return set(found.scalars())


async def is_leased(session: AsyncSession) -> bool:
    """Whether no bytes may be removed now: a backup copies them."""
    lasting = select(BlobLease.id).where(BlobLease.until > func.now()).limit(1)
    return (await session.execute(lasting)).first() is not None
