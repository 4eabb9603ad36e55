"""Tenants, people, where they belong, and their sign-in sessions."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id

NOW = func.now()


class Tenant(Table):
    __tablename__ = "tenants"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    slug: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class User(Table):
    """A person; one account whatever the number of tenants."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Membership(Table):
    """A person in a tenant, with the platform role and the position there."""

    __tablename__ = "memberships"
    __table_args__ = (
        CheckConstraint("platform_role in ('none', 'admin', 'engineer', 'superadmin')", name="platform_role"),
        CheckConstraint("org_position in ('member', 'manager', 'ceo')", name="org_position"),
        Index(
            "uq_memberships_superadmin", "tenant_id", unique=True, postgresql_where=text("platform_role = 'superadmin'")
        ),
        Index("uq_memberships_ceo", "tenant_id", unique=True, postgresql_where=text("org_position = 'ceo'")),
        Index("ix_memberships_user_id", "user_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    platform_role: Mapped[str] = mapped_column(Text, server_default="none")
    org_position: Mapped[str] = mapped_column(Text, server_default="member")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class BootstrapState(Table):
    """The one row that says whether this installation has its first account (ID-01)."""

    __tablename__ = "bootstrap_state"
    __table_args__ = (CheckConstraint("singleton", name="one_row"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    is_initialized: Mapped[bool] = mapped_column(server_default=text("false"))
    setup_token_hash: Mapped[str | None] = mapped_column(Text)


class SignInSession(Table):
    """One signed-in browser or client; the token itself is kept as a hash only."""

    __tablename__ = "sessions"
    __table_args__ = (UniqueConstraint("tenant_id", "token_hash"), Index("ix_sessions_user_id", "tenant_id", "user_id"))

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    token_hash: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class AuditEntry(Table):
    """What was done, by whom; the app role can add rows and nothing else."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_at", "tenant_id", "at"),)

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, object]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
