"""Who works in a project, and what was granted to whom."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, Text, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id

TIERS = "'use', 'edit', 'full'"


def _project_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"], ondelete="CASCADE")


class Project(Table):
    """What documents, conversations and grants belong to."""

    __tablename__ = "projects"
    __table_args__ = (
        CheckConstraint(f"baseline_tier in ({TIERS})", name="baseline_tier"),
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        Index("uq_projects_name", "tenant_id", "name", unique=True),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    owner_id: Mapped[UUID | None]
    is_private: Mapped[bool] = mapped_column(server_default="false")
    baseline_tier: Mapped[str] = mapped_column(Text, server_default="use")
    is_handbook: Mapped[bool] = mapped_column(server_default="false")
    instructions: Mapped[str] = mapped_column(Text, server_default="")
    passage_count: Mapped[int] = mapped_column(server_default="0")
    model: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ProjectMember(Table):
    """A person who works in a project."""

    __tablename__ = "project_members"
    __table_args__ = (
        _project_key(),
        CheckConstraint(f"tier in ({TIERS})", name="tier"),
        Index("ix_project_members_user_id", "tenant_id", "user_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    tier: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ProjectGrant(Table):
    """A tier on a project for a user, a group or a department; an expired one does not count."""

    __tablename__ = "project_grants"
    __table_args__ = (
        _project_key(),
        CheckConstraint(f"tier in ({TIERS})", name="tier"),
        CheckConstraint("grantee_kind in ('user', 'group', 'department')", name="grantee_kind"),
        Index("uq_project_grants_grantee", "tenant_id", "project_id", "grantee_kind", "grantee_id", unique=True),
        Index("ix_project_grants_grantee", "tenant_id", "grantee_kind", "grantee_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID]
    grantee_kind: Mapped[str] = mapped_column(Text)
    grantee_id: Mapped[UUID]
    tier: Mapped[str] = mapped_column(Text)
    granted_by: Mapped[str] = mapped_column(Text, server_default="")
    expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class HiddenProject(Table):
    """A project a person has put out of sight, the handbook for instance; access is unchanged."""

    __tablename__ = "hidden_projects"
    __table_args__ = (_project_key(),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)


class ShareRequest(Table):
    """A member asks that somebody without an account may read one of their conversations."""

    __tablename__ = "share_requests"
    __table_args__ = (
        _project_key(),
        CheckConstraint("state in ('pending', 'approved', 'rejected')", name="state"),
        Index("ix_share_requests_state", "tenant_id", "state", "created_at"),
        Index(
            "uq_share_requests_pending",
            "tenant_id",
            "conversation_id",
            unique=True,
            postgresql_where=text("state = 'pending'"),
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID]
    conversation_id: Mapped[UUID]
    requested_by: Mapped[UUID]
    message: Mapped[str] = mapped_column(Text, server_default="")
    state: Mapped[str] = mapped_column(Text, server_default="pending")
    decided_by: Mapped[str | None] = mapped_column(Text)
    decided_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ShareToken(Table):
    """What an approved request gives: a link, kept as a hash, that ends and can be taken back."""

    __tablename__ = "share_tokens"
    __table_args__ = (
        UniqueConstraint("tenant_id", "token_hash"),
        ForeignKeyConstraint(
            ["tenant_id", "request_id"], ["share_requests.tenant_id", "share_requests.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    request_id: Mapped[UUID]
    project_id: Mapped[UUID]
    conversation_id: Mapped[UUID]
    token_hash: Mapped[str] = mapped_column(Text)
    uses: Mapped[int] = mapped_column(server_default="0")
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
