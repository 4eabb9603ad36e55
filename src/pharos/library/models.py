"""Documents, their text, and what search reads: passages, terms and vectors."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKeyConstraint, Index, Integer, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from pharos.infra.db import Table
from pharos.infra.ids import new_id
from pharos.infra.vectors import HalfVector, SparseVector

TERM_SPACE = 1_000_000_000
"""Number of term ids; pgvector allows a sparsevec at most 1e9 dimensions."""


def _project_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"], ondelete="CASCADE")


def _document_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "document_id"], ["documents.tenant_id", "documents.id"], ondelete="CASCADE"
    )


def _passage_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "passage_id"], ["passages.tenant_id", "passages.id"], ondelete="CASCADE")


class ProjectMemory(Table):
    """A fact a project wants every answer to know."""

    __tablename__ = "project_memories"
    __table_args__ = (_project_key(), Index("ix_project_memories_project_id", "tenant_id", "project_id"))

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID]
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Document(Table):
    """A file in a project. `epoch` fences a run of ingest: only the newest run may write its result."""

    __tablename__ = "documents"
    __table_args__ = (
        _project_key(),
        CheckConstraint("status in ('pending', 'processing', 'indexed', 'failed')", name="status"),
        Index("uq_documents_bytes", "tenant_id", "project_id", "sha256", unique=True),
        Index("ix_documents_name", "tenant_id", "project_id", "name"),
        Index("ix_documents_unfinished", "updated_at", postgresql_where=text("status in ('pending', 'processing')")),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID]
    name: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="pending")
    reason: Mapped[str | None] = mapped_column(Text)
    warning: Mapped[str | None] = mapped_column(Text)
    page_count: Mapped[int | None]
    passage_count: Mapped[int] = mapped_column(server_default="0")
    language: Mapped[str | None] = mapped_column(Text)
    epoch: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DocumentText(Table):
    """The text of a document; every span of a passage counts characters of it."""

    __tablename__ = "document_texts"
    __table_args__ = (_document_key(),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    document_id: Mapped[UUID] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    page_starts: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class Passage(Table):
    """About 200 tokens of a document: `text` is exactly characters `start_char` to `end_char` of its text."""

    __tablename__ = "passages"
    __table_args__ = (
        _document_key(),
        Index("ix_passages_document_id", "tenant_id", "document_id", "ordinal", unique=True),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID]
    document_id: Mapped[UUID]
    ordinal: Mapped[int]
    page: Mapped[int | None]
    start_char: Mapped[int]
    end_char: Mapped[int]
    heading: Mapped[str] = mapped_column(Text, server_default="")
    text: Mapped[str] = mapped_column(Text)


class PassageTerms(Table):
    """The lexical leg: BM25 weights of a passage's terms, without the idf that the query brings."""

    __tablename__ = "passage_terms"
    __table_args__ = (_passage_key(), Index("ix_passage_terms_project_id", "tenant_id", "project_id"))

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    passage_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    terms: Mapped[str] = mapped_column(SparseVector(TERM_SPACE))


class Lexicon(Table):
    """In how many passages of a project a term stands."""

    __tablename__ = "lexicon"
    __table_args__ = (_project_key(), {"postgresql_with": {"fillfactor": "70"}})

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID] = mapped_column(primary_key=True)
    term: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    passages: Mapped[int]


class VectorSpace(Table):
    """A model, its dimension and the table of its vectors; search reads exactly one live space."""

    __tablename__ = "vector_spaces"
    __table_args__ = (CheckConstraint("state in ('building', 'live', 'retired')", name="state"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    model: Mapped[str] = mapped_column(Text)
    dimension: Mapped[int]
    table_name: Mapped[str] = mapped_column(Text, unique=True)
    state: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PassageVector(Table):
    """The dense leg in the space of MiniLM-L6-v2."""

    __tablename__ = "passage_vectors_minilm_l6_v2"
    __table_args__ = (
        _passage_key(),
        Index("ix_passage_vectors_minilm_l6_v2_project_id", "tenant_id", "project_id"),
        Index(
            "ix_passage_vectors_minilm_l6_v2_hnsw",
            "embedding",
            postgresql_using="hnsw",
            postgresql_with={"m": 16, "ef_construction": 64},
            postgresql_ops={"embedding": "halfvec_cosine_ops"},
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    passage_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    embedding: Mapped[str] = mapped_column(HalfVector(384))
