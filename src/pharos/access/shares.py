"""Sharing a conversation with somebody who has no account: asked by its owner, decided by an administrator.

The link opens the conversation as it was when it was approved, and questions in its project with at most `use`. It
ends, can be taken back, and counts how often it was opened; only a hash of it is stored.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import Project, ShareRequest, ShareToken
from pharos.access.projects import require
from pharos.identity.audit import record_audit
from pharos.identity.models import User
from pharos.identity.people import require_administrator
from pharos.identity.principal import Principal
from pharos.identity.tokens import link_hash, tenant_of
from pharos.infra.database_errors import flush_unless_taken
from pharos.infra.errors import Conflict, Invalid, NotFound, NotSignedIn
from pharos.infra.ids import ConversationId, ProjectId, TenantId, new_id
from pharos.infra.limits import SHARE_LINK, ip_subject
from pharos.infra.settings import Settings
from pharos.runtime import Runtime

SHARE_PREFIX = "phl"
DEFAULT_DAYS, MAX_DAYS = 30, 365
MAX_MESSAGE_CHARACTERS = 2000

RequestState = Literal["pending", "approved", "rejected"]

SHARE_PENDING = Conflict("This conversation waits for a decision already.", code="share_pending")
NO_LINK = NotFound("This link opens nothing. Ask whoever sent it for a new one.", code="no_such_link")


@dataclass(frozen=True)
class ShareLink:
    """A link without its secret. `is_open`: it is neither past its end nor revoked."""

    id: UUID
    expires_at: datetime
    revoked_at: datetime | None
    uses: int
    is_open: bool


@dataclass(frozen=True)
class ShareRequestView:
    """What an administrator decides on, and what became of it; `link` is None unless it was approved."""

    id: UUID
    project_id: ProjectId
    project: str
    conversation_id: ConversationId
    requested_by: str
    message: str
    state: RequestState
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime
    link: ShareLink | None


@dataclass(frozen=True)
class OpenedLink:
    """A link that holds at this moment, and the guest who came by it."""

    guest: Principal
    project_id: ProjectId
    conversation_id: ConversationId
    approved_at: datetime
    expires_at: datetime


async def ask_to_share(
    session: AsyncSession,
    principal: Principal,
    *,
    project_id: ProjectId,
    conversation_id: ConversationId,
    message: str,
) -> ShareRequest:
    """Ask that a conversation may be read by somebody without an account; the caller has found it to be theirs.

    Raises `Conflict` while an earlier request for it waits.
    """
    await require(session, principal, project_id, "use")
    if principal.kind != "person" or principal.user_id is None:
        raise Invalid("Only a person can ask to share a conversation.", code="no_person")
    waiting = select(ShareRequest.id).where(
        ShareRequest.conversation_id == conversation_id, ShareRequest.state == "pending"
    )
    if (await session.execute(waiting)).first() is not None:
        raise SHARE_PENDING
    request = ShareRequest(
        tenant_id=principal.tenant_id,
        id=new_id(),
        project_id=project_id,
        conversation_id=conversation_id,
        requested_by=principal.user_id,
        message=message.strip()[:MAX_MESSAGE_CHARACTERS],
    )
    session.add(request)
    await flush_unless_taken(session, SHARE_PENDING)
    subject = f"share_request:{request.id}"
    await record_audit(session, principal, action="share.requested", subject=subject, project_id=str(project_id))
    return request


async def list_requests(
    session: AsyncSession, principal: Principal, *, state: RequestState | None = None, limit: int = 200
) -> list[ShareRequestView]:
    """Requests of the tenant, the newest first. Raises `NotAllowed` for anybody but administrators."""
    require_administrator(principal)
    is_open = ShareToken.revoked_at.is_(None) & (ShareToken.expires_at > func.now())
    asked = (
        select(ShareRequest, ShareToken, Project.name.label("project"), User.email, is_open.label("is_open"))
        .join(Project, Project.id == ShareRequest.project_id)
        .outerjoin(User, User.id == ShareRequest.requested_by)
        .outerjoin(ShareToken, ShareToken.request_id == ShareRequest.id)
        .order_by(ShareRequest.created_at.desc(), ShareRequest.id.desc())
        .limit(limit)
    )
    if state is not None:
        asked = asked.where(ShareRequest.state == state)
    return [
        _request_view(row.ShareRequest, row.ShareToken, row.project, row.email, is_open=bool(row.is_open))
        for row in await session.execute(asked)
    ]


async def find_last_request(session: AsyncSession, *, conversation_id: ConversationId) -> ShareRequestView | None:
    """The newest request for a conversation, which the caller has found to be theirs, and what became of it."""
    is_open = ShareToken.revoked_at.is_(None) & (ShareToken.expires_at > func.now())
    asked = (
        select(ShareRequest, ShareToken, is_open.label("is_open"))
        .outerjoin(ShareToken, ShareToken.request_id == ShareRequest.id)
        .where(ShareRequest.conversation_id == conversation_id)
        .order_by(ShareRequest.created_at.desc(), ShareRequest.id.desc())
        .limit(1)
    )
    row = (await session.execute(asked)).one_or_none()
    return _request_view(row.ShareRequest, row.ShareToken, "", None, is_open=bool(row.is_open)) if row else None


async def approve(
    session: AsyncSession, principal: Principal, *, request_id: UUID, days: int = DEFAULT_DAYS
) -> tuple[ShareToken, str]:
    """Let a request pass: the link's row, and its token, which is never seen again.

    Raises `NotAllowed`, `NotFound`, `Conflict` for a request that was decided, `Invalid` for the number of days.
    """
    if not 1 <= days <= MAX_DAYS:
        raise Invalid(f"A link lasts 1 to {MAX_DAYS} days.", code="bad_expiry")
    request = await _decide(session, principal, request_id, "approved")
    token = f"{SHARE_PREFIX}_{principal.tenant_id.hex}_{secrets.token_urlsafe(32)}"
    now: datetime = (await session.execute(select(func.now()))).scalar_one()
    link = ShareToken(
        tenant_id=principal.tenant_id,
        id=new_id(),
        request_id=request.id,
        project_id=request.project_id,
        conversation_id=request.conversation_id,
        token_hash=link_hash(token),
        expires_at=now + timedelta(days=days),
        uses=0,
    )
    session.add(link)
    await record_audit(
        session,
        principal,
        action="share.approved",
        subject=f"share_request:{request_id}",
        link_id=str(link.id),
        expires_at=link.expires_at.isoformat(),
    )
    return link, token


async def reject(session: AsyncSession, principal: Principal, *, request_id: UUID) -> None:
    """Refuse a request. Raises as `approve` does."""
    await _decide(session, principal, request_id, "rejected")
    await record_audit(session, principal, action="share.rejected", subject=f"share_request:{request_id}")


async def revoke_link(session: AsyncSession, principal: Principal, *, request_id: UUID) -> None:
    """Take the link of a request back; it opens nothing from now on. Changes nothing when it is revoked already."""
    require_administrator(principal)
    link = (
        await session.execute(select(ShareToken).where(ShareToken.request_id == request_id).with_for_update())
    ).scalar_one_or_none()
    if link is None:
        raise NotFound("There is no link of such a request.", code="no_such_link")
    if link.revoked_at is None:
        link.revoked_at = func.now()
        await record_audit(
            session, principal, action="share.revoked", subject=f"share_request:{request_id}", link_id=str(link.id)
        )


async def open_link(runtime: Runtime, token: str, *, ip: str, is_visit: bool) -> OpenedLink:
    """Who comes by a link; a visit is counted. Unknown, foreign, ended and revoked links are the same `NotFound`.

    Raises `LimitReached` for an address that tries too often.
    """
    await runtime.limits.hit(SHARE_LINK, ip_subject(ip))
    try:
        tenant_id = tenant_of(token, prefix=SHARE_PREFIX)
    except NotSignedIn as error:
        raise NO_LINK from error
    holds = (
        ShareToken.token_hash == link_hash(token),
        ShareToken.revoked_at.is_(None),
        ShareToken.expires_at > func.now(),
    )
    async with runtime.db.transaction(tenant_id) as session:
        counted = update(ShareToken).where(*holds).values(uses=ShareToken.uses + int(is_visit)).returning(ShareToken)
        link = (await session.execute(counted)).scalar_one_or_none()
    if link is None:
        raise NO_LINK
    return OpenedLink(
        guest=guest_of(link),
        project_id=ProjectId(link.project_id),
        conversation_id=ConversationId(link.conversation_id),
        approved_at=link.created_at,
        expires_at=link.expires_at,
    )


def share_url(settings: Settings, token: str) -> str:
    """The address to send to the guest."""
    return f"{settings.base_url}/share/{token}"


def guest_of(link: ShareToken) -> Principal:
    """Whoever holds the link: they reach one project, to use it."""
    return Principal(
        tenant_id=TenantId(link.tenant_id),
        user_id=None,
        name="guest",
        kind="guest",
        guest_project_id=ProjectId(link.project_id),
        guest_share_id=link.id,
    )


async def _decide(session: AsyncSession, principal: Principal, request_id: UUID, state: RequestState) -> ShareRequest:
    require_administrator(principal)
    found = await session.execute(select(ShareRequest).where(ShareRequest.id == request_id).with_for_update())
    request = found.scalar_one_or_none()
    if request is None:
        raise NotFound("There is no such request. `GET /admin/share-requests` lists them.", code="no_such_request")
    if request.state != "pending":
        raise Conflict(f"This request was {request.state} already.", code="already_decided")
    request.state, request.decided_by, request.decided_at = state, principal.name, func.now()
    await session.flush()
    return request


def _request_view(
    request: ShareRequest, link: ShareToken | None, project: str, email: str | None, *, is_open: bool
) -> ShareRequestView:
    return ShareRequestView(
        id=request.id,
        project_id=ProjectId(request.project_id),
        project=project,
        conversation_id=ConversationId(request.conversation_id),
        requested_by=email or "",
        message=request.message,
        state=request.state,  # type: ignore[arg-type]  # a check constraint holds the values
        decided_by=request.decided_by,
        decided_at=request.decided_at,
        created_at=request.created_at,
        link=ShareLink(link.id, link.expires_at, link.revoked_at, link.uses, is_open) if link else None,
    )
