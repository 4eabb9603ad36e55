"""Conversations as rows: open a turn, close it, read it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import ColumnElement, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.projects import NO_PROJECT, require, visible_projects
from pharos.chat.models import Conversation, Message, MessageSource, TurnRow
from pharos.identity.principal import Principal
from pharos.infra.database_errors import flush_unless_taken
from pharos.infra.errors import Conflict, NotFound
from pharos.infra.ids import ConversationId, MessageId, ProjectId, new_id
from pharos.providers.contract import Candidate, CutReason

HISTORY_MESSAGES = 30
"""Read at most; how many of them a model is given is counted in tokens."""
MEMORIES_READ = 50
TITLE_CHARACTERS = 80


# A row's xmin changes with each write to it. That of the project does with each document that comes, goes or is read
# again, since its passages are counted there; grants, members and memories have rows of their own. After a restore all
# of them differ, which costs the first answers and nothing else.
STANDING = text(
    """
    select concat_ws('|', project.xmin, project.passage_count, (select cleared_at from answer_cache),
        (select string_agg(cast(xmin as text), ',' order by id) from project_grants where project_id = project.id),
        (select string_agg(cast(xmin as text), ',' order by user_id) from project_members
         where project_id = project.id),
        (select string_agg(cast(xmin as text), ',' order by id) from project_memories where project_id = project.id),
        (select string_agg(cast(id as text), ',' order by id) from vector_spaces where state = 'live')) as version,
        array(select body from project_memories where project_id = project.id
              order by created_at, id limit :most) as memories
    from projects project where project.id = :project_id
    """
)
ASK = text(
    """
    with conversation as (
        insert into conversations (tenant_id, id, project_id, user_id, share_token_id, title)
        select :tenant_id, :conversation_id, :project_id, cast(:user_id as uuid), cast(:share_token_id as uuid),
               cast(:title as text)
        where cast(:title as text) is not null
    ), question as (
        insert into messages (tenant_id, id, conversation_id, role, body)
        values (:tenant_id, :question_id, :conversation_id, 'user', :question)
    )
    insert into turns (tenant_id, id, conversation_id, question_id, wish, owner)
    select :tenant_id, :message_id, :conversation_id, :question_id, cast(:wish as text), cast(:owner as text)
    where cast(:owner as text) is not null
    """
)

AnswerCut = CutReason | Literal["stopped", "time"]
"""Why an answer ends before its end: at its length, by the vendor's filter, by who reads it, or by its time."""

STILL_RUNNING = Conflict("This answer is still in the making. Stop it first.", code="still_running")


@dataclass(frozen=True)
class Source:
    """A passage, or the sentence of it that an answer quotes; `index` is its number in the answer, from 1.

    `start` and `end` count characters of the document's text; `text` is exactly what lies between them.
    """

    index: int
    document_id: str
    document: str
    page: int | None
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Turn:
    """An opened turn: the question is stored, the answer will be `message_id`.

    `model` is the project's setting, `wish` the model that the question named, and `candidates` what it was found to
    mean, if that is known already.
    `memories` are what the project wants every answer to know, `version` differs whenever anything of the project that
    an answer rests on does. `replaces` is an earlier answer to the same question,
    which is shown no more when this one is there; `is_anew`: somebody wants another answer than they got.
    """

    conversation_id: ConversationId
    project_id: ProjectId
    message_id: MessageId
    question_id: MessageId
    question: str
    history: tuple[tuple[str, str], ...]
    instructions: str
    model: str | None = None
    wish: str | None = None
    candidates: tuple[Candidate, ...] | None = None
    memories: tuple[str, ...] = ()
    version: str = ""
    replaces: MessageId | None = None
    is_anew: bool = False


@dataclass(frozen=True)
class MadeBy:
    """Which model wrote an answer, and the providers that were asked before and did not answer, in order.

    `cut` is why the answer ends before its end, if it does.
    """

    provider: str
    model: str
    failed_over_from: tuple[str, ...] = ()
    cut: AnswerCut | None = None


@dataclass(frozen=True)
class Draft:
    """An answer before it is stored. `degraded`: a part of the search or the model did not answer.

    `unsupported` are the offsets in `body` where sentences end that the passages they cite do not support. `made_by`:
    None where no model wrote it.
    """

    body: str
    mode: Literal["extractive", "model"]
    grounded: bool
    confidence: float
    degraded: bool
    sources: tuple[Source, ...]
    unsupported: tuple[int, ...] = ()
    made_by: MadeBy | None = None


async def open_turn(
    session: AsyncSession,
    principal: Principal,
    *,
    project_id: ProjectId,
    question: str,
    conversation_id: ConversationId | None,
    earlier: Sequence[tuple[str, str]] = (),
    wish: str | None = None,
    owner: str | None = None,
) -> Turn:
    """Store a question in its conversation (a new one without an id) and read what was said before.

    `earlier` are (role, body) of a conversation that this one goes on from; with an `owner`, the process that answers,
    the turn is stored too.
    """
    project = await require(session, principal, project_id, "use")
    history: Sequence[Message] = ()
    if conversation_id is not None:
        conversation = await get_conversation(session, principal, conversation_id=conversation_id)
        if conversation.project_id != project_id:
            raise NotFound(
                "This conversation belongs to another project. Start a new one.", code="no_such_conversation"
            )
        history = await list_messages(session, conversation_id=conversation_id)
    version, memories = await _read_standing(session, project_id)
    turn = Turn(
        conversation_id=conversation_id or ConversationId(new_id()),
        project_id=project_id,
        message_id=MessageId(new_id()),
        question_id=MessageId(new_id()),
        question=question,
        history=(*earlier, *((message.role, message.body) for message in history))[-HISTORY_MESSAGES:],
        instructions=project.instructions,
        model=project.model,
        wish=wish,
        memories=memories,
        version=version,
    )
    asked = {
        "tenant_id": principal.tenant_id,
        "conversation_id": turn.conversation_id,
        "project_id": project_id,
        "user_id": principal.user_id,
        "share_token_id": principal.guest_share_id,
        "title": question[:TITLE_CHARACTERS] if conversation_id is None else None,
        "question_id": turn.question_id,
        "question": question,
        "message_id": turn.message_id,
        "wish": wish,
        "owner": owner,
    }
    await session.execute(ASK, asked)
    return turn


async def reopen_turn(
    session: AsyncSession,
    principal: Principal,
    *,
    conversation_id: ConversationId,
    question_id: MessageId,
    wish: str | None = None,
    owner: str,
) -> Turn:
    """A new turn for the last question of a conversation; an answer that is there stays until the new one is.

    Raises `Conflict` for an earlier question and for one that is being answered, and as `open_turn` does.
    """
    conversation = await get_conversation(session, principal, conversation_id=conversation_id)
    project_id = ProjectId(conversation.project_id)
    project = await require(session, principal, project_id, "use")
    message_id = MessageId(new_id())
    session.add(
        TurnRow(
            tenant_id=principal.tenant_id,
            id=message_id,
            conversation_id=conversation_id,
            question_id=question_id,
            wish=wish,
            owner=owner,
        )
    )
    # Before the answers are read: what another one adds meanwhile would not be replaced.
    await flush_unless_taken(session, STILL_RUNNING)
    messages = await list_messages(session, conversation_id=conversation_id)
    place = next((index for index, message in enumerate(messages) if message.id == question_id), len(messages))
    later = messages[place + 1 :]
    if place == len(messages) or any(message.role == "user" for message in later):
        raise Conflict("Only the last answer of a conversation can be made anew. Ask again.", code="not_the_last")
    answers = select(Message.id).where(Message.conversation_id == conversation_id)
    await session.execute(
        delete(TurnRow).where(
            TurnRow.question_id == question_id, TurnRow.state != "running", TurnRow.id.not_in(answers)
        )
    )
    version, memories = await _read_standing(session, project_id)
    return Turn(
        conversation_id=conversation_id,
        project_id=project_id,
        message_id=message_id,
        question_id=question_id,
        question=messages[place].body,
        history=tuple((message.role, message.body) for message in messages[:place])[-HISTORY_MESSAGES:],
        instructions=project.instructions,
        model=project.model,
        wish=wish,
        memories=memories,
        version=version,
        replaces=MessageId(later[-1].id) if later else None,
        is_anew=True,
    )


async def _read_standing(session: AsyncSession, project_id: ProjectId) -> tuple[str, tuple[str, ...]]:
    """The version of a project, and what it wants every answer to know, the oldest first."""
    row = (await session.execute(STANDING, {"project_id": project_id, "most": MEMORIES_READ})).one_or_none()
    if row is None:  # deleted since it was looked up
        raise NO_PROJECT
    return row.version, tuple(row.memories)


async def close_turn(session: AsyncSession, principal: Principal, turn: Turn, draft: Draft) -> None:
    """Store the answer and the passages it rests on, in place of the answer it replaces."""
    if turn.replaces is not None:
        await session.execute(update(Message).where(Message.id == turn.replaces).values(is_replaced=True))
        await session.execute(delete(TurnRow).where(TurnRow.id == turn.replaces))
    session.add(
        Message(
            tenant_id=principal.tenant_id,
            id=turn.message_id,
            conversation_id=turn.conversation_id,
            role="assistant",
            body=draft.body,
            mode=draft.mode,
            grounded=draft.grounded,
            confidence=draft.confidence,
            degraded=draft.degraded,
            unsupported=list(draft.unsupported),
            made_by=asdict(draft.made_by) if draft.made_by is not None else None,
        )
    )
    await session.flush()
    session.add_all(
        MessageSource(
            tenant_id=principal.tenant_id,
            message_id=turn.message_id,
            position=source.index,
            document_id=source.document_id,
            document_name=source.document,
            page=source.page,
            start_char=source.start,
            end_char=source.end,
            text=source.text,
            score=source.score,
        )
        for source in draft.sources
    )


async def get_conversation(
    session: AsyncSession, principal: Principal, *, conversation_id: ConversationId
) -> Conversation:
    """One's own conversation in a project one can still reach; anybody else's is `NotFound`."""
    found = await session.execute(
        select(Conversation).where(
            Conversation.id == conversation_id,
            _is_own(principal),
            Conversation.project_id.in_(visible_projects(principal)),
        )
    )
    conversation = found.scalar_one_or_none()
    if conversation is None:
        raise NotFound("There is no such conversation. Start a new one.", code="no_such_conversation")
    return conversation


async def list_conversations(
    session: AsyncSession, principal: Principal, *, project_id: ProjectId, limit: int
) -> Sequence[Conversation]:
    """One's own conversations in a project, the newest first, at most `limit`."""
    found = await session.execute(
        select(Conversation)
        .where(
            Conversation.project_id == project_id,
            _is_own(principal),
            Conversation.project_id.in_(visible_projects(principal)),
        )
        .order_by(Conversation.created_at.desc(), Conversation.id.desc())
        .limit(limit)
    )
    return found.scalars().all()


async def list_titles(
    session: AsyncSession, *, conversation_ids: Sequence[ConversationId]
) -> dict[ConversationId, str]:
    """What conversations of the tenant are called, whoever had them; for who decides on sharing them."""
    named = select(Conversation.id, Conversation.title).where(Conversation.id.in_(conversation_ids))
    return {ConversationId(row.id): row.title for row in await session.execute(named)}


def _is_own(principal: Principal) -> ColumnElement[bool]:
    """A person's are theirs, a guest's are those of their link; nobody's belong to the operator and to programs."""
    return Conversation.user_id.is_not_distinct_from(
        principal.user_id
    ) & Conversation.share_token_id.is_not_distinct_from(principal.guest_share_id)


async def list_messages(session: AsyncSession, *, conversation_id: ConversationId) -> Sequence[Message]:
    """The messages of a conversation, oldest first, without answers that were made anew."""
    found = await session.execute(
        select(Message)
        .where(Message.conversation_id == conversation_id, ~Message.is_replaced)
        .order_by(Message.created_at, Message.id)
    )
    return found.scalars().all()


async def list_sources(session: AsyncSession, *, conversation_id: ConversationId) -> dict[MessageId, list[Source]]:
    """The sources of each answer of a conversation, in the order of their numbers."""
    found = await session.execute(
        select(MessageSource)
        .join(Message, Message.id == MessageSource.message_id)
        .where(Message.conversation_id == conversation_id)
        .order_by(MessageSource.message_id, MessageSource.position)
    )
    sources: dict[MessageId, list[Source]] = {}
    for row in found.scalars():
        sources.setdefault(MessageId(row.message_id), []).append(
            Source(
                index=row.position,
                document_id=str(row.document_id),
                document=row.document_name,
                page=row.page,
                start=row.start_char,
                end=row.end_char,
                text=row.text,
                score=row.score,
            )
        )
    return sources
