"""What people think of answers: a row; while the database is away a file, which becomes the row when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from pharos.access.models import Project
from pharos.access.projects import visible_projects
from pharos.chat.history import get_conversation
from pharos.chat.models import Conversation, Feedback, Message, TurnRow
from pharos.identity.principal import Principal
from pharos.identity.unproved import Unproved, is_away, prove
from pharos.infra.database_errors import as_pharos_error
from pharos.infra.errors import Invalid, NotFound, PharosError, Unavailable
from pharos.infra.ids import ConversationId, MessageId, TenantId, new_id
from pharos.infra.logs import get_logger
from pharos.infra.metrics import FEEDBACK_SPOOLED
from pharos.infra.secret_files import write_secret
from pharos.runtime import Runtime

log = get_logger(__name__)

Rating = Literal["up", "down"]

MOST_SPOOLED = 2000
"""Files: nobody could be asked who sends them, so that there must be an end. 2,000 of at most 10 KB are 20 MB."""
REPLAY_EVERY_SECONDS = 5.0

NO_ANSWER = NotFound("There is no such answer in your conversations.", code="no_such_message")


@dataclass(frozen=True)
class Given:
    """One opinion of an answer."""

    message_id: MessageId
    rating: Rating
    comment: str
    given_at: datetime


async def store_feedback(session: AsyncSession, principal: Principal, given: Given) -> None:
    """Store an opinion of an answer in one's own conversation; of two of the same person the later one counts.

    Raises `NotFound` for anything else than such an answer.
    """
    asked = select(Message.conversation_id).where(Message.id == given.message_id, Message.role == "assistant")
    conversation_id = (await session.execute(asked)).scalar_one_or_none()
    if conversation_id is None:
        raise NO_ANSWER
    try:
        await get_conversation(session, principal, conversation_id=ConversationId(conversation_id))
    except NotFound as error:
        raise NO_ANSWER from error
    said = {"rating": given.rating, "comment": given.comment, "given_at": given.given_at}
    key = {"tenant_id": principal.tenant_id, "message_id": given.message_id, "given_by": _giver(principal)}
    row = insert(Feedback).values(**key, **said, id=new_id())
    later = Feedback.given_at <= row.excluded.given_at
    columns = ["tenant_id", "message_id", "given_by"]
    await session.execute(row.on_conflict_do_update(index_elements=columns, set_=said, where=later))


async def list_ratings(
    session: AsyncSession, principal: Principal, *, conversation_id: ConversationId
) -> dict[MessageId, str]:
    """What the principal thinks of the answers of a conversation."""
    rated = (
        select(Feedback.message_id, Feedback.rating)
        .join(Message, Message.id == Feedback.message_id)
        .where(Message.conversation_id == conversation_id, Feedback.given_by == _giver(principal))
    )
    return {MessageId(row.message_id): row.rating for row in await session.execute(rated)}


@dataclass(frozen=True)
class RatedDown:
    """An answer that did not help, its question, and what was said about it."""

    id: UUID
    project_id: UUID
    project: str
    question: str
    answer: str
    mode: str | None
    comment: str
    given_at: datetime


async def list_rated_down(
    session: AsyncSession, principal: Principal, *, before: UUID | None = None, limit: int
) -> list[RatedDown]:
    """Answers rated down in the projects that the principal sees, the opinions newest first.

    `before` is the id of the last one seen.
    """
    question, earlier = aliased(Message), aliased(Message)
    before_it = (
        select(earlier.body)
        .where(earlier.conversation_id == Message.conversation_id, earlier.role == "user")
        .where(earlier.created_at < Message.created_at)
        .order_by(earlier.created_at.desc())
        .limit(1)
        .correlate(Message)
        .scalar_subquery()
    )
    rows = await session.execute(
        select(Feedback, Message, Project, func.coalesce(question.body, before_it, "").label("question"))
        .join(Message, Message.id == Feedback.message_id)
        .join(Conversation, Conversation.id == Message.conversation_id)
        .join(Project, Project.id == Conversation.project_id)
        .outerjoin(TurnRow, TurnRow.id == Message.id)
        .outerjoin(question, question.id == TurnRow.question_id)
        .where(Feedback.rating == "down", Project.id.in_(visible_projects(principal)))
        .where(Feedback.id < before if before is not None else true())
        .order_by(Feedback.id.desc())
        .limit(limit)
    )
    return [
        RatedDown(
            id=row.Feedback.id,
            project_id=row.Project.id,
            project=row.Project.name,
            question=row.question,
            answer=row.Message.body,
            mode=row.Message.mode,
            comment=row.Feedback.comment,
            given_at=row.Feedback.given_at,
        )
        for row in rows
    ]


def spool_feedback(runtime: Runtime, shown: Unproved, given: Given) -> None:
    """Keep an opinion as a file. Raises `Unavailable` when there are too many already."""
    folder = _folder(runtime)
    if len(_files(folder)) >= MOST_SPOOLED:
        raise Unavailable("The database does not answer, and no more feedback can be kept. Try again later.")
    write_secret(folder / f"{new_id()}.json", json.dumps({"by": asdict(shown), "given": asdict(given)}, default=str))
    FEEDBACK_SPOOLED.set(len(_files(folder)))
    log.warning("feedback.spooled")


async def replay_feedback(runtime: Runtime) -> int:
    """Store what was kept as files; returns how many. Raises an error of SQL while the database is still away.

    What can never be stored is dropped, with a line in the log: it must not stand in the way of all others. Two
    processes may do it at once: storing the same again changes nothing.
    """
    stored = 0
    for file in _files(_folder(runtime)):
        try:
            stored += await _replay(runtime, file)
            file.unlink()
        except FileNotFoundError:
            continue
        except SQLAlchemyError as error:
            if is_away(error):
                raise
            log.error("feedback.kept_on", file=file.name, error=type(error).__name__)
    FEEDBACK_SPOOLED.set(len(_files(_folder(runtime))))
    return stored


@contextlib.asynccontextmanager
async def feedback_upkeep(runtime: Runtime) -> AsyncIterator[None]:
    """Replay kept feedback while the block runs."""
    task = asyncio.create_task(_keep_replaying(runtime))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_replaying(runtime: Runtime) -> None:
    while True:
        try:
            if stored := await replay_feedback(runtime):
                log.info("feedback.replayed", number=stored)
        except (SQLAlchemyError, OSError) as error:
            log.warning("feedback.not_replayed", error=type(error).__name__)
        await asyncio.sleep(REPLAY_EVERY_SECONDS)


async def _replay(runtime: Runtime, file: Path) -> int:
    """How many opinions were stored, one or none. Raises an error of SQL unless it is of what the file holds."""
    try:
        shown, opinion = _read(await asyncio.to_thread(file.read_text))
    except (ValueError, KeyError, TypeError) as error:
        log.warning("feedback.dropped", code="unreadable", error=type(error).__name__)
        return 0
    principal = await prove(runtime, shown)
    try:
        if principal is None:
            raise NO_ANSWER
        async with runtime.db.transaction(shown.tenant_id) as session:
            await store_feedback(session, principal, opinion)
    except PharosError as error:
        log.warning("feedback.dropped", code=error.code, is_known=principal is not None)
        return 0
    except SQLAlchemyError as error:
        unstorable = as_pharos_error(error)
        if not isinstance(unstorable, Invalid):
            raise
        log.warning("feedback.dropped", code=unstorable.code, is_known=True)
        return 0
    return 1


def _read(kept: str) -> tuple[Unproved, Given]:
    """What `spool_feedback` wrote. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    read = json.loads(kept)
    by, given = read["by"], read["given"]
    session_id = UUID(by["session_id"]) if by["session_id"] else None
    shown = Unproved(TenantId(UUID(by["tenant_id"])), session_id, tuple(by["token_hashes"]), by["key_hash"])
    given_at = datetime.fromisoformat(given["given_at"])
    return shown, Given(MessageId(UUID(given["message_id"])), given["rating"], given["comment"], given_at)


def now() -> datetime:
    """When an opinion was given, by the clock of this machine: the database's may be away."""
    return datetime.now(UTC)


def _giver(principal: Principal) -> str:
    return f"user:{principal.user_id}" if principal.user_id is not None else principal.name


def _folder(runtime: Runtime) -> Path:
    return runtime.settings.data_dir / "spool" / "feedback"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []
