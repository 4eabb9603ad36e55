"""Tenants, people, where they belong, and their sign-in sessions."""

from __future__ import annotations

from datetime import datetime
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
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
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
    """A person; one account whatever the number of tenants.

    Sessions whose holder proved who they are no later than `sessions_valid_from` have ended, in every tenant.
    """

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str] = mapped_column(Text, unique=True)
    username: Mapped[str | None] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    must_change_password: Mapped[bool] = mapped_column(server_default="false")
    failed_sign_ins: Mapped[int] = mapped_column(server_default="0")
    locked_until: Mapped[datetime | None]
    sessions_valid_from: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Membership(Table):
    """A person in a tenant, with the platform role and the position there; a disabled one cannot sign in there."""

    __tablename__ = "memberships"
    __table_args__ = (
        CheckConstraint("platform_role in ('none', 'admin', 'engineer', 'superadmin')", name="platform_role"),
        CheckConstraint("org_position in ('member', 'manager', 'ceo')", name="org_position"),
        Index(
            "uq_memberships_superadmin", "tenant_id", unique=True, postgresql_where=text("platform_role = 'superadmin'")
        ),
        Index("uq_memberships_ceo", "tenant_id", unique=True, postgresql_where=text("org_position = 'ceo'")),
        ForeignKeyConstraint(
            ["tenant_id", "department_id"],
            ["departments.tenant_id", "departments.id"],
            name="fk_memberships_tenant_id_departments",
            ondelete="SET NULL (department_id)",
        ),
        Index("ix_memberships_user_id", "user_id"),
        Index("ix_memberships_department_id", "tenant_id", "department_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    platform_role: Mapped[str] = mapped_column(Text, server_default="none")
    org_position: Mapped[str] = mapped_column(Text, server_default="member")
    department_id: Mapped[UUID | None]
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Department(Table):
    __tablename__ = "departments"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Group(Table):
    """People who are given access together; of one department, or of the whole tenant."""

    __tablename__ = "groups"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        ForeignKeyConstraint(
            ["tenant_id", "department_id"],
            ["departments.tenant_id", "departments.id"],
            ondelete="SET NULL (department_id)",
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    department_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class GroupMember(Table):
    __tablename__ = "group_members"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "group_id"], ["groups.tenant_id", "groups.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["memberships.tenant_id", "memberships.user_id"], ondelete="CASCADE"
        ),
        Index("ix_group_members_user_id", "tenant_id", "user_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    group_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class BootstrapState(Table):
    """The one row that says whether this installation has its first account (ID-01)."""

    __tablename__ = "bootstrap_state"
    __table_args__ = (CheckConstraint("singleton", name="one_row"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    is_initialized: Mapped[bool] = mapped_column(server_default=text("false"))
    setup_token_hash: Mapped[str | None] = mapped_column(Text)


class SignInSession(Table):
    """One signed-in browser (`token_hash` is of its cookie) or program (its refresh tokens are its family).

    `proved_at`: when its holder proved who they are, which is before it was made. `parent_session_id`: of the session
    in another tenant that asked for this one and with which it ends.
    """

    __tablename__ = "sessions"
    __table_args__ = (UniqueConstraint("tenant_id", "token_hash"), Index("ix_sessions_user_id", "tenant_id", "user_id"))

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    token_hash: Mapped[str | None] = mapped_column(Text)
    door: Mapped[str] = mapped_column(Text, server_default="password")
    agent: Mapped[str] = mapped_column(Text, server_default="")
    ip: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_seen_at: Mapped[datetime] = mapped_column(server_default=NOW)
    proved_at: Mapped[datetime] = mapped_column(server_default=NOW)
    parent_tenant_id: Mapped[UUID | None]
    parent_session_id: Mapped[UUID | None]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class RefreshToken(Table):
    """One refresh token of a session; used once, then only known as used."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "session_id"], ["sessions.tenant_id", "sessions.id"], ondelete="CASCADE"),
        Index("ix_refresh_tokens_session_id", "tenant_id", "session_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(Text, primary_key=True)
    session_id: Mapped[UUID]
    issued_at: Mapped[datetime] = mapped_column(server_default=NOW)
    used_at: Mapped[datetime | None]


class ApiKey(Table):
    """A key that opens Pharos to a program; kept as a hash, known by its prefix."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "key_hash"),)

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text)
    key_hash: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_by: Mapped[str] = mapped_column(Text)
    created_by_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class OneTimeToken(Table):
    """What a mail of ours opens once: a sign-in, a new password, a place in a tenant, a new address."""

    __tablename__ = "one_time_tokens"
    __table_args__ = (
        UniqueConstraint("tenant_id", "token_hash"),
        CheckConstraint("purpose in ('magic_link', 'password_reset', 'invitation', 'email_change')", name="purpose"),
        Index("ix_one_time_tokens_email", "tenant_id", "purpose", "email"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    purpose: Mapped[str] = mapped_column(Text)
    email: Mapped[str] = mapped_column(Text)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    token_hash: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, object]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class SecurityEvent(Table):
    """Something an administrator may want to know of a sign-in, a token or a key; rows are only added."""

    __tablename__ = "security_events"
    __table_args__ = (
        CheckConstraint("severity in ('low', 'medium', 'high', 'critical')", name="severity"),
        Index("ix_security_events_created_at", "tenant_id", "created_at", "event_type"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    event_type: Mapped[str] = mapped_column(Text)
    severity: Mapped[str] = mapped_column(Text)
    user_id: Mapped[UUID | None]
    subject: Mapped[str] = mapped_column(Text, server_default="")
    ip: Mapped[str] = mapped_column(Text, server_default="")
    agent: Mapped[str] = mapped_column(Text, server_default="")
    detail: Mapped[dict[str, object]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


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


class AuditSeal(Table):
    """A link of a tenant's chain: the hash of the seal before it and of one entry of a log; rows are only added."""

    __tablename__ = "audit_seals"
    __table_args__ = (
        CheckConstraint("log in ('audit', 'security')", name="log"),
        UniqueConstraint("tenant_id", "log", "entry_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    log: Mapped[str] = mapped_column(Text)
    entry_id: Mapped[UUID]
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    sealed_at: Mapped[datetime] = mapped_column(server_default=NOW)
