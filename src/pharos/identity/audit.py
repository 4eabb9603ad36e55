"""The audit log: what was done and by whom, in the transaction that did it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.models import AuditEntry, User
from pharos.identity.principal import Principal

PERSON = "user:"
"""How the subject begins that is a person; their id follows."""


async def record_audit(
    session: AsyncSession, principal: Principal, *, action: str, subject: str, **detail: object
) -> None:
    """Add one entry; `action` is a past-tense `noun.verb`, `subject` a `kind:id`. Never content or secrets."""
    session.add(
        AuditEntry(tenant_id=principal.tenant_id, actor=principal.name, action=action, subject=subject, detail=detail)
    )
    await session.flush()


@dataclass(frozen=True)
class AuditLine:
    """One entry of the log as it is shown; `person`: the present address of whom it concerns, "" for no person."""

    id: UUID
    at: datetime
    actor: str
    action: str
    subject: str
    person: str
    detail: dict[str, object]


async def list_audit(
    session: AsyncSession,
    *,
    since: datetime | None = None,
    actor: str | None = None,
    action: str | None = None,
    before: UUID | None = None,
    limit: int = 50,
) -> list[AuditLine]:
    """Entries of the tenant, newest first; `before` is the last id of the page before.

    An `action` that ends with a dot, such as "project.", stands for all that begin with it.
    """
    entries = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if since is not None:
        entries = entries.where(AuditEntry.at >= since)
    if actor is not None:
        entries = entries.where(AuditEntry.actor == actor)
    if action is not None:
        begins = AuditEntry.action.startswith(action, autoescape=True)
        entries = entries.where(begins if action.endswith(".") else AuditEntry.action == action)
    if before is not None:
        entries = entries.where(AuditEntry.id < before)
    found = list((await session.execute(entries)).scalars())
    people = await _people(session, {row.subject for row in found})
    return [
        AuditLine(row.id, row.at, row.actor, row.action, row.subject, people.get(row.subject, ""), row.detail)
        for row in found
    ]


def detail_words(values: Mapping[str, object]) -> str:
    """What an entry says besides: what is empty is left out, a change is "before → after".

    >>> detail_words({"tier": {"old": None, "new": "use"}, "scopes": ["read", "ask"], "until": None})
    'tier: – → use; scopes: read, ask'
    """
    said = {name: _said(value) for name, value in values.items()}
    return "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in said.items() if value)


def _said(value: object) -> str:
    if isinstance(value, dict) and value.keys() == {"old", "new"}:
        before, after = (_said(value[side]) or "–" for side in ("old", "new"))
        return "" if before == after else f"{before} → {after}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return "" if value is None else str(value)


async def _people(session: AsyncSession, subjects: set[str]) -> dict[str, str]:
    """The addresses of those subjects that are people. They are asked for, not kept: the log grows for ever."""
    ids = [UUID(subject.removeprefix(PERSON)) for subject in subjects if subject.startswith(PERSON)]
    rows = (await session.execute(select(User.id, User.email).where(User.id.in_(ids)))) if ids else ()
    return {f"{PERSON}{row.id}": row.email for row in rows}
