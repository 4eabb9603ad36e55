"""Rows about the installation itself: backups, drills, and the operation that runs now. Of no tenant."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Double, Index, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id


class Backup(Table):
    """What is known of a backup beside its folder. The folder says what exists; a failed one has only this row."""

    __tablename__ = "backups"
    __table_args__ = (
        UniqueConstraint("name"),
        CheckConstraint("state in ('failed', 'written', 'verified', 'offsite')", name="state"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    made_at: Mapped[datetime] = mapped_column(server_default=func.now())
    state: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    documents: Mapped[int] = mapped_column(BigInteger, server_default="0")
    seconds: Mapped[float] = mapped_column(Double, server_default="0")
    verified_at: Mapped[datetime | None]
    offsite_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)


class Drill(Table):
    """One restore drill: what was checked, how long it took, and its log as Markdown."""

    __tablename__ = "drills"
    __table_args__ = (Index("ix_drills_started_at", "started_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    backup_name: Mapped[str] = mapped_column(Text, server_default="")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seconds: Mapped[float] = mapped_column(Double, server_default="0")
    passed: Mapped[bool] = mapped_column(server_default="false")
    by: Mapped[str] = mapped_column(Text, server_default="")
    report: Mapped[str] = mapped_column(Text, server_default="")
    checks: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")


class Operation(Table):
    """The operation that holds the lock now, for whoever has to wait for it; at most one row."""

    __tablename__ = "operations"
    __table_args__ = (CheckConstraint("singleton", name="one_row"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default="true")
    what: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
