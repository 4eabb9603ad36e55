"""Conversations, their messages, and the passages each answer rests on."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Float, ForeignKeyConstraint, Index, Text, func
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
    """A question or an answer; `mode`, `grounded` and `degraded` are set on answers."""

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
