"""A conversation that was shared by a link: what its guest reads, and what they may ask on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.models import ShareRequest
from pharos.access.shares import NO_LINK, OpenedLink, ask_to_share, open_link
from pharos.chat.answer import begin_turn
from pharos.chat.history import Source, Turn, get_conversation, list_messages, list_sources
from pharos.chat.models import Conversation, Message
from pharos.chat.turn_rows import TurnView, get_turn, list_open_turns
from pharos.identity.principal import Principal
from pharos.infra.ids import ConversationId, MessageId, ProjectId
from pharos.infra.limits import GUEST_QUESTION
from pharos.runtime import Runtime


@dataclass(frozen=True)
class SharedConversation:
    """What a guest reads: the messages up to the approval, and, with a branch, what they asked since.

    `sources` are those of each answer, by message; `open_turns` those of the branch that left no answer, or none yet.
    """

    title: str
    project_id: ProjectId
    expires_at: datetime
    messages: tuple[Message, ...]
    branch: tuple[Message, ...]
    open_turns: tuple[TurnView, ...]
    sources: dict[MessageId, list[Source]]


async def request_share(
    session: AsyncSession, principal: Principal, *, conversation_id: ConversationId, message: str
) -> ShareRequest:
    """Ask to share one's own conversation. Raises `NotFound` for anybody else's, `Conflict` while one waits."""
    conversation = await get_conversation(session, principal, conversation_id=conversation_id)
    return await ask_to_share(
        session,
        principal,
        project_id=ProjectId(conversation.project_id),
        conversation_id=conversation_id,
        message=message,
    )


async def read_shared(
    runtime: Runtime, token: str, *, ip: str, branch_id: ConversationId | None = None
) -> SharedConversation:
    """The conversation behind a link, and the guest's own branch if named; the visit is counted.

    Raises `NotFound` in the same words for a link that is unknown, foreign, ended or revoked and for a conversation
    that is gone; `LimitReached`.
    """
    link = await open_link(runtime, token, ip=ip, is_visit=True)
    async with runtime.db.transaction(link.guest.tenant_id) as session:
        conversation = await _shared(session, link)
        messages = await _snapshot(session, link)
        sources = await list_sources(session, conversation_id=link.conversation_id)
        branch: Sequence[Message] = ()
        open_turns: Sequence[TurnView] = ()
        if branch_id is not None:
            await get_conversation(session, link.guest, conversation_id=branch_id)
            branch = await list_messages(session, conversation_id=branch_id)
            open_turns = await list_open_turns(session, conversation_id=branch_id)
            sources |= await list_sources(session, conversation_id=branch_id)
    shown = {message.id for message in (*messages, *branch)}
    return SharedConversation(
        title=conversation.title,
        project_id=link.project_id,
        expires_at=link.expires_at,
        messages=tuple(messages),
        branch=tuple(branch),
        open_turns=tuple(open_turns),
        sources={message_id: found for message_id, found in sources.items() if message_id in shown},
    )


async def begin_shared(
    runtime: Runtime, token: str, *, ip: str, question: str, owner: str, branch_id: ConversationId | None = None
) -> tuple[Principal, Turn]:
    """A guest's question, in a branch of their own (a new one without an id): who asks, and the turn that answers.

    It reads the link's project and nothing else, and writes the branch and nothing else. Raises as `read_shared` does.
    """
    link = await open_link(runtime, token, ip=ip, is_visit=False)
    await runtime.limits.hit(GUEST_QUESTION, f"share:{link.guest.guest_share_id}")
    async with runtime.db.transaction(link.guest.tenant_id) as session:
        await _shared(session, link)
        earlier = [(message.role, message.body) for message in await _snapshot(session, link)]
    turn = await begin_turn(
        runtime,
        link.guest,
        project_id=link.project_id,
        question=question,
        conversation_id=branch_id,
        earlier=earlier,
        owner=owner,
    )
    return link.guest, turn


async def find_shared_turn(runtime: Runtime, token: str, *, ip: str, turn_id: MessageId) -> Principal:
    """Whose turn it is, if it was asked by this link; any other is `NotFound`."""
    link = await open_link(runtime, token, ip=ip, is_visit=False)
    async with runtime.db.transaction(link.guest.tenant_id) as session:
        await get_turn(session, link.guest, turn_id=turn_id)
    return link.guest


async def _shared(session: AsyncSession, link: OpenedLink) -> Conversation:
    found = await session.execute(
        select(Conversation).where(Conversation.id == link.conversation_id, Conversation.project_id == link.project_id)
    )
    conversation = found.scalar_one_or_none()
    if conversation is None:
        raise NO_LINK
    return conversation


async def _snapshot(session: AsyncSession, link: OpenedLink) -> list[Message]:
    messages = await list_messages(session, conversation_id=link.conversation_id)
    return [message for message in messages if message.created_at <= link.approved_at]
