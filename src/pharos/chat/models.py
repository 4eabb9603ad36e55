"""Conversations, their messages, and the passages each answer rests on."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Float, ForeignKeyConstraint, Index, Integer, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id


class Conversation(Table):
    """What one person asks in one project, or what a guest with a share link asks after reading."""

    __tablename__ = "conversations"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["tenant_id", "share_token_id"], ["share_tokens.tenant_id", "share_tokens.id"], ondelete="CASCADE"
        ),
        Index("ix_conversations_share_token_id", "tenant_id", "share_token_id"),
        Index("ix_conversations_user_id", "tenant_id", "project_id", "user_id", "created_at"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID]
    user_id: Mapped[UUID | None]
    share_token_id: Mapped[UUID | None]
    title: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Message(Table):
    """A question or an answer; `mode`, `grounded` and `degraded` are set on answers.

    `unsupported` are the offsets in `body` where sentences end that their cited passages do not support; `made_by` is
    a `MadeBy`, None where no model wrote it. `is_replaced`: an answer that was made anew; it is kept for what people
    thought of it, and shown to nobody else.
    """

    __tablename__ = "messages"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "conversation_id"], ["conversations.tenant_id", "conversations.id"], ondelete="CASCADE"
        ),
        CheckConstraint("role in ('user', 'assistant')", name="role"),
        Index("ix_messages_conversation_id", "tenant_id", "conversation_id", "id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    conversation_id: Mapped[UUID]
    role: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    mode: Mapped[str | None] = mapped_column(Text)
    grounded: Mapped[bool | None]
    confidence: Mapped[float | None] = mapped_column(Float)
    degraded: Mapped[bool | None]
    unsupported: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default="{}")
    made_by: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    is_replaced: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class MessageSource(Table):
    """A passage an answer cites, as it was then; it stays readable when the document is gone."""

    __tablename__ = "message_sources"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "message_id"], ["messages.tenant_id", "messages.id"], ondelete="CASCADE"),
        Index("ix_message_sources_document_id", "tenant_id", "document_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    message_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    document_id: Mapped[UUID]
    document_name: Mapped[str] = mapped_column(Text)
    page: Mapped[int | None]
    start_char: Mapped[int]
    end_char: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    score: Mapped[float] = mapped_column(Float)


class TurnRow(Table):
    """One answer in the making or made; its id is that of the answer's message.

    `owner` is the web process whose task it is. A running one whose heartbeat is old has lost it. `wish` is the model
    that the question named.
    """

    __tablename__ = "turns"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "conversation_id"], ["conversations.tenant_id", "conversations.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(["tenant_id", "question_id"], ["messages.tenant_id", "messages.id"], ondelete="CASCADE"),
        CheckConstraint("state in ('running', 'done', 'failed', 'stopped', 'interrupted')", name="state"),
        Index("ix_turns_conversation_id", "tenant_id", "conversation_id"),
        Index("ix_turns_question_id", "tenant_id", "question_id"),
        Index(
            "uq_turns_running_question",
            "tenant_id",
            "question_id",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
        Index("ix_turns_running", "tenant_id", "heartbeat_at", postgresql_where=text("state = 'running'")),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    conversation_id: Mapped[UUID]
    question_id: Mapped[UUID]
    state: Mapped[str] = mapped_column(Text, server_default="running")
    wish: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(Text)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    is_stop_asked: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class TurnEvent(Table):
    """What a turn has told, numbered from 1; kept until an hour after its end."""

    __tablename__ = "turn_events"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "turn_id"], ["turns.tenant_id", "turns.id"], ondelete="CASCADE"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)


class Feedback(Table):
    """What somebody thinks of an answer; `given_by` is `user:ID` or `key:NAME`, and their last word counts."""

    __tablename__ = "feedback"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "message_id"], ["messages.tenant_id", "messages.id"], ondelete="CASCADE"),
        UniqueConstraint("tenant_id", "message_id", "given_by"),
        CheckConstraint("rating in ('up', 'down')", name="rating"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    message_id: Mapped[UUID]
    given_by: Mapped[str] = mapped_column(Text)
    rating: Mapped[str] = mapped_column(Text)
    comment: Mapped[str] = mapped_column(Text, server_default="")
    given_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AnswerCache(Table):
    """Its one row says since when cached answers count; of no tenant."""

    __tablename__ = "answer_cache"
    __table_args__ = (CheckConstraint("singleton", name="one_row"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    cleared_at: Mapped[datetime] = mapped_column(server_default=func.now())
