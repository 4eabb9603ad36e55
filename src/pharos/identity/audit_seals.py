"""The chain that shows whether the audit log or the security events were changed.

Each seal hashes the seal before it and one entry; one chain of a tenant runs over both logs. Entries are sealed some
seconds after they were written, by the worker, so that writers never wait for one another. Whoever owns the database
can remove the newest entries together with their seals, and then nothing here differs; a head that was noted elsewhere
finds that out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import AuditEntry, AuditSeal, SecurityEvent
from pharos.infra.ids import TenantId

BATCH = 1000
NO_SEAL = bytes(32)
"""What stands before the first seal."""
LATE_SECONDS = 300
"""An entry that is older and not sealed is worth a look: the worker does not run, or somebody took its seal away."""
REACH = timedelta(days=1)
"""Only entries written since a day before the last seal are looked at: it bounds the search, and no transaction is open
for a day. Older ones that have no seal stay visible as late."""

Entry = AuditEntry | SecurityEvent
LOGS: dict[str, Any] = {"audit": AuditEntry, "security": SecurityEvent}

LOCK = text("select pg_try_advisory_xact_lock(hashtextextended('audit_seals:' || :tenant_id, 0))")
# One statement, and the only one for a tenant to whom nothing happened.
UNSEALED = text(
    """
    with since as (
        select coalesce((select sealed_at - :reach from audit_seals order by number desc limit 1), '-infinity') as at
    )
    select log, id from (
        select 'audit' as log, e.id, e.at from audit_log e where e.at > (select at from since)
        union all
        select 'security', e.id, e.created_at from security_events e where e.created_at > (select at from since)
    ) as entries
    where not exists (select from audit_seals s where s.log = entries.log and s.entry_id = entries.id)
    order by at, id limit :most
    """
)
COUNT_UNSEALED = text(
    """
    select count(*), count(*) filter (where at < now() - :late) from (
        select 'audit' as log, id, at from audit_log
        union all
        select 'security', id, created_at from security_events
    ) as entries
    where not exists (select from audit_seals s where s.log = entries.log and s.entry_id = entries.id)
    """
)


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


async def seal_logs(session: AsyncSession, tenant_id: TenantId) -> int:
    """Seal up to `BATCH` entries of the tenant, oldest first; returns how many. Does nothing while another does it."""
    if not await _find_unsealed(session, most=1):
        return 0
    if not (await session.execute(LOCK, {"tenant_id": str(tenant_id)})).scalar_one():
        return 0
    last = (await session.execute(select(AuditSeal).order_by(AuditSeal.number.desc()).limit(1))).scalar_one_or_none()
    number, previous = (last.number, last.hash) if last is not None else (0, NO_SEAL)
    unsealed = await _find_unsealed(session, most=BATCH)
    entries = await _load(session, unsealed)
    rows = []
    for log, entry_id in unsealed:
        number, previous = number + 1, seal_hash(previous, entries[log, entry_id])
        rows.append({"tenant_id": tenant_id, "number": number, "log": log, "entry_id": entry_id, "hash": previous})
    if rows:
        await session.execute(insert(AuditSeal), rows)
    return len(rows)


def seal_hash(previous: bytes, entry: Entry) -> bytes:
    """SHA-256 of the seal before, and of the name of the entry's table and its whole row as canonical JSON.

    Canonical: sorted keys, no spaces, UTF-8, times in UTC with microseconds.
    """
    row = {column.name: getattr(entry, column.name) for column in entry.__table__.columns}
    content = {"log": entry.__tablename__, "row": row}
    written = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(previous + written.encode()).digest()


async def verify_audit(session: AsyncSession, *, noted: Head | None = None) -> ChainReport:
    """Read the tenant's whole chain and compare it with both logs, up to the first fault.

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
    waiting, late = await _count_unsealed(session)
    head = Head(number, previous.hex()) if number else None
    return ChainReport(number, waiting, late, head, fault, bad_entry)


def _fault_of(seal: AuditSeal, entry: Entry | None, number: int, previous: bytes) -> str | None:
    kind = "Security event" if seal.log == "security" else "Entry"
    if seal.number != number + 1:
        return f"Seal {number + 1} is missing: the next one is seal {seal.number}."
    if entry is None:
        return f"{kind} {seal.entry_id} of seal {seal.number} was removed."
    if seal_hash(previous, entry) != seal.hash:
        name = entry.event_type if isinstance(entry, SecurityEvent) else entry.action
        return f"{kind} {entry.id} ({name}) was altered after it was sealed with seal {seal.number}."
    return None


async def _chain(session: AsyncSession) -> AsyncIterator[tuple[AuditSeal, Entry | None]]:
    """Each seal with its entry, by number, in batches: the logs may be larger than memory."""
    after, full = 0, True
    while full:
        numbered = select(AuditSeal).where(AuditSeal.number > after).order_by(AuditSeal.number).limit(BATCH)
        seals = (await session.execute(numbered.execution_options(populate_existing=True))).scalars().all()
        entries = await _load(session, [(seal.log, seal.entry_id) for seal in seals])
        for seal in seals:
            yield seal, entries.get((seal.log, seal.entry_id))
        full = len(seals) == BATCH
        after = seals[-1].number if seals else after
        session.expunge_all()


async def _load(session: AsyncSession, keys: list[tuple[str, UUID]]) -> dict[tuple[str, UUID], Entry]:
    found: dict[tuple[str, UUID], Entry] = {}
    for log, table in LOGS.items():
        ids = [entry_id for of_log, entry_id in keys if of_log == log]
        query = select(table).where(table.id.in_(ids)).execution_options(populate_existing=True)
        found |= {(log, entry.id): entry for entry in (await session.execute(query)).scalars()} if ids else {}
    return found


async def _find_unsealed(session: AsyncSession, *, most: int) -> list[tuple[str, UUID]]:
    rows = await session.execute(UNSEALED, {"reach": REACH, "most": most})
    return [(row.log, row.id) for row in rows]


async def _count_unsealed(session: AsyncSession) -> tuple[int, int]:
    counted = await session.execute(COUNT_UNSEALED, {"late": timedelta(seconds=LATE_SECONDS)})
    waiting, late = counted.one()
    return int(waiting), int(late)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    assert isinstance(value, UUID)
    return str(value)
