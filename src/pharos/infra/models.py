"""Rows of the machinery: keys and what they encrypt, mail on its way, limits, leases on bytes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id


class EncryptionKey(Table):
    """A key-encryption key this database was used with, by its check value; the key itself is never here."""

    __tablename__ = "encryption_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]


class DataKey(Table):
    """A tenant's key for its secrets, wrapped by a key-encryption key."""

    __tablename__ = "data_keys"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("uq_data_keys_current", "tenant_id", unique=True, postgresql_where=text("is_current")),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    encryption_key_id: Mapped[str] = mapped_column(ForeignKey("encryption_keys.id"))
    nonce: Mapped[bytes] = mapped_column(LargeBinary)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    is_current: Mapped[bool] = mapped_column(server_default="true")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Secret(Table):
    """The one place where ciphertext lies; `prefix` and `length` are of the plain text, to tell keys apart."""

    __tablename__ = "secrets"
    __table_args__ = (
        UniqueConstraint("tenant_id", "kind", "name"),
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["tenant_id", "data_key_id"], ["data_keys.tenant_id", "data_keys.id"]),
        Index("ix_secrets_data_key_id", "tenant_id", "data_key_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    data_key_id: Mapped[UUID]
    nonce: Mapped[bytes] = mapped_column(LargeBinary)
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    prefix: Mapped[str] = mapped_column(Text, server_default="")
    length: Mapped[int] = mapped_column(server_default="0")
    is_enabled: Mapped[bool] = mapped_column(server_default="true")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    rotated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]


class Mail(Table):
    """A mail on its way or gone; its text is a secret while it waits, and removed once it is sent."""

    __tablename__ = "mails"
    __table_args__ = (
        CheckConstraint("state in ('queued', 'sent', 'failed')", name="state"),
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["tenant_id", "body_secret_id"], ["secrets.tenant_id", "secrets.id"], ondelete="SET NULL (body_secret_id)"
        ),
        Index("ix_mails_state", "tenant_id", "state", "created_at"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    recipient: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    body_secret_id: Mapped[UUID | None]
    state: Mapped[str] = mapped_column(Text, server_default="queued")
    attempts: Mapped[int] = mapped_column(server_default="0")
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]


class RateLimit(Table):
    """Hits of one key in its window. Of no tenant: a limit may be met before anybody is known."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index("ix_rate_limits_window_ends_at", "window_ends_at"), {"postgresql_with": {"fillfactor": 70}})

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    hits: Mapped[int]
    window_ends_at: Mapped[datetime]


class BlobLease(Table):
    """While one lasts, the sweep removes no bytes: a backup is copying them."""

    __tablename__ = "blob_leases"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    until: Mapped[datetime]


class AppEvent(Table):
    """What happened, numbered from 1 without a gap; the database writes it at the commit of the change itself.

    It concerns `user_id` alone, else who sees `project_id`, else who sees everything.
    """

    __tablename__ = "app_events"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("ix_app_events_at", "tenant_id", "at"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    name: Mapped[str] = mapped_column(Text)
    project_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
