"""The audit log and the security events over HTTP, for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, Field

from pharos.identity.audit import list_audit
from pharos.identity.current import CurrentAdmin, CurrentRuntime
from pharos.identity.schemas import Body
from pharos.identity.security import Severity, list_security_events

router = APIRouter(tags=["audit"])

Since = Annotated[AwareDatetime | None, Query(description="Only what happened since then.")]
Before = Annotated[UUID | None, Query(description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Word = Annotated[str | None, Query(max_length=254)]


class AuditEntryOut(Body):
    id: UUID
    at: datetime
    actor: str
    action: str
    subject: str
    person: Annotated[str, Field(description="The present e-mail address of the person it concerns, if it is one.")]
    detail: dict[str, object]


class AuditPage(Body):
    """Newest first; `next` is None on the last page."""

    entries: list[AuditEntryOut]
    next: UUID | None


class SecurityEventOut(Body):
    id: UUID
    at: datetime
    event_type: str
    severity: str
    user_id: UUID | None
    person: Annotated[str, Field(description="The present e-mail address of that user, if there is one.")]
    subject: str
    ip: Annotated[str, Field(description="Anonymised.")]
    agent: str
    detail: dict[str, object]


class SecurityPage(Body):
    """Newest first; `next` is None on the last page."""

    events: list[SecurityEventOut]
    next: UUID | None


@router.get("/audit-log")
async def audit_log(
    principal: CurrentAdmin,
    runtime: CurrentRuntime,
    *,
    since: Since = None,
    actor: Word = None,
    action: Word = None,
    before: Before = None,
    limit: Limit = 50,
) -> AuditPage:
    """What was done and by whom; an `action` that ends with a dot stands for all that begin with it."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await list_audit(session, since=since, actor=actor, action=action, before=before, limit=limit + 1)
    entries = [AuditEntryOut.model_validate(line, from_attributes=True) for line in found[:limit]]
    return AuditPage(entries=entries, next=entries[-1].id if len(found) > limit else None)


@router.get("/security-events")
async def security_events(
    principal: CurrentAdmin,
    runtime: CurrentRuntime,
    *,
    since: Since = None,
    event_type: Annotated[str | None, Query(alias="eventType", max_length=100)] = None,
    severity: Annotated[Severity | None, Query(description="The least one shown.")] = None,
    person: Annotated[str | None, Query(max_length=254, description="E-mail address of whom they concern.")] = None,
    before: Before = None,
    limit: Limit = 50,
) -> SecurityPage:
    """Sign-ins that failed, lockouts, tokens used twice, keys that changed."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await list_security_events(
            session,
            since=since,
            event_type=event_type,
            severity=severity,
            person=person,
            before=before,
            limit=limit + 1,
        )
    events = [SecurityEventOut.model_validate(line, from_attributes=True) for line in found[:limit]]
    return SecurityPage(events=events, next=events[-1].id if len(found) > limit else None)
