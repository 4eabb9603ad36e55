"""The chain that shows whether the audit log was changed: each seal hashes the seal before it and one entry.

Entries are sealed some seconds after they were written, by the worker, so that writers never wait for one another.
Whoever owns the database can remove the newest entries together with their seals, and then nothing here differs;
a head that was noted elsewhere finds that out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from uuid import UUID

from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import AuditEntry, AuditSeal
from pharos.infra.ids import TenantId

BATCH = 1000
NO_SEAL = bytes(32)
"""What stands before the first seal."""
LATE_SECONDS = 300
"""An entry that is older and not sealed is worth a look: the worker does not run, or somebody took its seal away."""
REACH = timedelta(days=1)
"""Only entries written since a day before the last seal are looked at: it bounds the search, and no transaction is open
for a day. Older ones that have no seal stay visible as late."""

LOCK = text("select pg_try_advisory_xact_lock(hashtextextended('audit_seals:' || :tenant_id, 0))")


@dataclass(frozen=True)
class Head:
    """The last seal: its number, from 1, and its hash in hexadecimal."""

    number: int
    hash: str


@dataclass(frozen=True)
class ChainReport:
    """What reading a chain found. `fault` is a sentence about the first bad seal, None when all hold.

    `bad_entry` is the id of the entry it is about. `waiting` entries have no seal yet, `late` ones for too long.
    """

    sealed: int
    waiting: int
    late: int
    head: Head | None
    fault: str | None = None
    bad_entry: UUID | None = None


async def seal_audit(session: AsyncSession, tenant_id: TenantId) -> int:
    """Seal up to `BATCH` entries of the tenant, oldest first; returns how many. Does nothing while another does it."""
    if not (await session.execute(LOCK, {"tenant_id": str(tenant_id)})).scalar_one():
        return 0
    last = (await session.execute(select(AuditSeal).order_by(AuditSeal.number.desc()).limit(1))).scalar_one_or_none()
    unsealed = (
        select(AuditEntry)
        .outerjoin(AuditSeal, (AuditSeal.tenant_id == AuditEntry.tenant_id) & (AuditSeal.entry_id == AuditEntry.id))
        .where(AuditSeal.number.is_(None))
        .order_by(AuditEntry.at, AuditEntry.id)
        .limit(BATCH)
    )
    if last is not None:
        unsealed = unsealed.where(AuditEntry.at > last.sealed_at - REACH)
    number, previous = (last.number, last.hash) if last is not None else (0, NO_SEAL)
    rows = []
    for entry in (await session.execute(unsealed)).scalars():
        number, previous = number + 1, seal_hash(previous, entry)
        rows.append({"tenant_id": tenant_id, "number": number, "entry_id": entry.id, "hash": previous})
    if rows:
        await session.execute(insert(AuditSeal), rows)
    return len(rows)


def seal_hash(previous: bytes, entry: AuditEntry) -> bytes:
    """SHA-256 of the seal before and the entry as canonical JSON: sorted keys, no spaces, UTF-8, times in UTC."""
    content = {
        "tenant_id": str(entry.tenant_id),
        "id": str(entry.id),
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": entry.detail,
    }
    written = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(previous + written.encode()).digest()


async def verify_audit(session: AsyncSession, *, noted: Head | None = None) -> ChainReport:
    """Read the tenant's whole chain and compare it with the log, up to the first fault.

    `noted` is a head that was written down before: its seal must still be there with the same hash.
    """
    number, previous, fault, bad_entry = 0, NO_SEAL, None, None
    async for seal, entry in _chain(session):
        fault = _fault_of(seal, entry, number, previous)
        if fault is None and noted is not None and noted.number == seal.number and noted.hash != seal.hash.hex():
            fault = f"Seal {seal.number} is not the one that was noted: the chain was made anew since then."
        if fault is not None:
            bad_entry = seal.entry_id
            break
        number, previous = seal.number, seal.hash
    if fault is None and noted is not None and noted.number > number:
        fault = f"The chain ends at seal {number}, but seal {noted.number} was noted: the newest entries were removed."
    waiting, late = await _unsealed(session)
    head = Head(number, previous.hex()) if number else None
    return ChainReport(number, waiting, late, head, fault, bad_entry)


def _fault_of(seal: AuditSeal, entry: AuditEntry | None, number: int, previous: bytes) -> str | None:
    if seal.number != number + 1:
        return f"Seal {number + 1} is missing: the next one is seal {seal.number}."
    if entry is None:
        return f"Entry {seal.entry_id} of seal {seal.number} was removed."
    if seal_hash(previous, entry) != seal.hash:
        return f"Entry {entry.id} ({entry.action}) was altered after it was sealed with seal {seal.number}."
    return None


async def _chain(session: AsyncSession) -> AsyncIterator[tuple[AuditSeal, AuditEntry | None]]:
    """Each seal with its entry, by number, in batches: the log may be larger than memory."""
    after, full = 0, True
    while full:
        rows = await session.execute(
            select(AuditSeal, AuditEntry)
            .outerjoin(
                AuditEntry, (AuditEntry.tenant_id == AuditSeal.tenant_id) & (AuditEntry.id == AuditSeal.entry_id)
            )
            .where(AuditSeal.number > after)
            .order_by(AuditSeal.number)
            .limit(BATCH)
            .execution_options(populate_existing=True)
        )
        batch = [(row[0], row[1]) for row in rows]
        for pair in batch:
            yield pair
        full = len(batch) == BATCH
        after = batch[-1][0].number if batch else after
        session.expunge_all()


async def _unsealed(session: AsyncSession) -> tuple[int, int]:
    its_seal = (AuditSeal.tenant_id == AuditEntry.tenant_id) & (AuditSeal.entry_id == AuditEntry.id)
    missing = ~select(AuditSeal.number).where(its_seal).exists()
    is_late = AuditEntry.at < func.now() - timedelta(seconds=LATE_SECONDS)
    counted = select(func.count(), func.count().filter(is_late)).select_from(AuditEntry).where(missing)
    waiting, late = (await session.execute(counted)).one()
    return int(waiting), int(late)
