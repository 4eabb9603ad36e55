"""`GET /admin/stats`: what a tenant holds and how busy it is."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from sqlalchemy import func, select

from pharos.access.models import Project
from pharos.chat.models import Conversation, Message
from pharos.identity.current import CurrentAdmin, CurrentRuntime
from pharos.identity.models import Membership, SignInSession
from pharos.infra.db import Table
from pharos.infra.jobs import list_queue
from pharos.library.models import Document, Passage

router = APIRouter(tags=["admin"])

COUNTED: dict[str, type[Table]] = {
    "users": Membership,
    "projects": Project,
    "chunks": Passage,
    "conversations": Conversation,
    "messages": Message,
}


@router.get("/admin/stats")
async def stats(principal: CurrentAdmin, runtime: CurrentRuntime) -> dict[str, object]:
    """Counts of the caller's tenant; `queue` is the installation's."""
    by_status = select(Document.status, func.count()).group_by(Document.status)
    live_sessions = select(func.count()).where(
        SignInSession.revoked_at.is_(None), SignInSession.expires_at > func.now()
    )
    async with runtime.db.transaction(principal.tenant_id) as session:
        counts = {
            name: (await session.execute(select(func.count()).select_from(table))).scalar_one()
            for name, table in COUNTED.items()
        }
        documents = {row[0]: row[1] for row in await session.execute(by_status)}
        sessions = (await session.execute(live_sessions)).scalar_one()
        queue = await list_queue(session)
    return {
        **counts,
        "documents": {"total": sum(documents.values()), **documents},
        "sessions": sessions,
        "queue": [asdict(line) for line in queue],
    }
