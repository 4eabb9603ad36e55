"""Write passages with what search reads of them, and keep the counts that rank them in step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.ids import DocumentId, ProjectId, TenantId, new_id
from pharos.library.models import TERM_SPACE
from pharos.library.split import Piece
from pharos.library.terms import FALLBACK_LANGUAGE, detect_language, terms_of

if TYPE_CHECKING:  # a command that touches no vector need not wait for their library
    import numpy as np
    from numpy.typing import NDArray

K1, B = 1.2, 0.75
"""Robertson's usual BM25 constants (Lucene's and Anserini's defaults, 0.9/0.4, are for longer texts)."""
NOMINAL_LENGTH = 90.0
"""Terms of an average passage. Passages are cut to one size, so a constant stands for the corpus average: with the
true average every weight would change with every upload."""

MAX_TITLE_CHARACTERS = 100
"""Some 25 tokens: what a passage of 200 leaves free of the model's 254."""


@dataclass(frozen=True)
class PassageRow:
    id: UUID
    ordinal: int
    piece: Piece
    terms: Counter[int]
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class PreparedPassages:
    """All that is stored of one document's passages; made without the database."""

    tenant_id: TenantId
    project_id: ProjectId
    document_id: DocumentId
    language: str | None
    rows: tuple[PassageRow, ...]


def prepare_passages(
    pieces: Sequence[Piece],
    vectors: NDArray[np.float32],
    *,
    tenant_id: TenantId,
    project_id: ProjectId,
    document_id: DocumentId,
    title: str = "",
) -> PreparedPassages:
    """Passages of a document with their terms; the document's language is that of its beginning.

    `title` says what the document is about: a passage is found by its words too, since it seldom repeats them.
    """
    language = detect_language(" ".join(piece.text for piece in pieces[:4]))
    rows = tuple(
        PassageRow(
            id=new_id(),
            ordinal=ordinal,
            piece=piece,
            terms=terms_of(f"{title} {piece.heading} {piece.text}", language or FALLBACK_LANGUAGE),
            vector=vector,
        )
        for ordinal, (piece, vector) in enumerate(zip(pieces, vectors, strict=True))
    )
    return PreparedPassages(tenant_id, project_id, document_id, language, rows)


def title_of(name: str) -> str:
    """What a file's name says it is about: without its folders and its ending, the words apart.

    >>> title_of("finance/2022_Q3-report.pdf")
    '2022 Q3 report'
    """
    return " ".join(re.split(r"[\s_-]+", PurePath(name).stem))[:MAX_TITLE_CHARACTERS].strip()


def embedded_text(title: str, piece: Piece) -> str:
    """What the model reads of a passage: the document's title before it, so that "it" and "the study" have a name."""
    return f"{title[:MAX_TITLE_CHARACTERS]}\n{piece.text}" if title else piece.text


async def replace_passages(session: AsyncSession, prepared: Sequence[PreparedPassages]) -> None:
    """Put these passages in the place of whatever their documents had; safe to run twice."""
    removed = await _remove(session, [document.document_id for document in prepared])
    added: dict[ProjectId, Counted] = {}
    for document in prepared:
        counted = added.setdefault(document.project_id, Counted())
        for row in document.rows:
            counted.add(row.terms)
    if any(document.rows for document in prepared):
        await session.execute(INSERT, _parameters(prepared))
    await _count(session, added=added, removed=removed)


async def delete_passages(session: AsyncSession, *, document_ids: Iterable[DocumentId]) -> None:
    """Remove all passages of documents, and what search counted of them."""
    await _count(session, added={}, removed=await _remove(session, list(document_ids)))


def bm25_weight(count: int, length: int) -> float:
    """What `count` occurrences weigh in a passage of `length` terms, without the idf: 0 to K1 + 1."""
    return count * (K1 + 1) / (count + K1 * (1 - B + B * length / NOMINAL_LENGTH))


def sparse_literal(terms: Counter[int]) -> str:
    """A passage's terms as pgvector reads them: `{term:weight,…}/dimensions`."""
    length = sum(terms.values())
    entries = ",".join(f"{term}:{bm25_weight(terms[term], length):.4f}" for term in sorted(terms))
    return f"{{{entries}}}/{TERM_SPACE}"


def dense_literal(vector: NDArray[np.float32]) -> str:
    """A vector as pgvector reads it; five digits, more than a half-precision float holds."""
    return f"[{','.join(['%.5g'] * len(vector))}]" % tuple(vector.tolist())


@dataclass
class Counted:
    """Passages of a project, and in how many of them each term stands."""

    passages: int = 0
    terms: Counter[int] = field(default_factory=Counter)

    def add(self, terms: Iterable[int]) -> None:
        """One more passage, with these terms."""
        self.passages += 1
        self.terms.update(iter(terms))


async def _remove(session: AsyncSession, document_ids: list[DocumentId]) -> dict[ProjectId, Counted]:
    rows = await session.execute(REMOVE, {"documents": document_ids})
    removed: dict[ProjectId, Counted] = {}
    for project_id, literal in rows:
        entries = literal[1 : literal.index("}")].split(",")
        removed.setdefault(project_id, Counted()).add(int(entry.partition(":")[0]) for entry in entries if entry)
    return removed


async def _count(session: AsyncSession, *, added: dict[ProjectId, Counted], removed: dict[ProjectId, Counted]) -> None:
    # In the order of their ids: two writers over the same projects must not wait for each other.
    for project_id in sorted(added.keys() | removed.keys()):
        new, old = added.get(project_id, Counted()), removed.get(project_id, Counted())
        new.terms.subtract(old.terms)
        await _count_project(session, project_id, passages=new.passages - old.passages, terms=new.terms)


async def _count_project(session: AsyncSession, project_id: ProjectId, *, passages: int, terms: Counter[int]) -> None:
    # The project's row is the lock under which its lexicon is written: two writers cannot wait for each other.
    await session.execute(COUNT_PASSAGES, {"project": project_id, "passages": passages})
    changed = sorted((term, change) for term, change in terms.items() if change)
    if changed:
        await session.execute(
            COUNT_TERMS,
            {
                "project": project_id,
                "terms": [term for term, _ in changed],
                "changes": [change for _, change in changed],
            },
        )
    lost = [term for term, change in changed if change < 0]
    if lost:
        await session.execute(DROP_UNUSED_TERMS, {"project": project_id, "terms": lost})


def _parameters(prepared: Sequence[PreparedPassages]) -> dict[str, object]:
    rows = [(document, row) for document in prepared for row in document.rows]
    return {
        "tenant": prepared[0].tenant_id,
        "projects": [document.project_id for document, _ in rows],
        "documents": [document.document_id for document, _ in rows],
        "ids": [row.id for _, row in rows],
        "ordinals": [row.ordinal for _, row in rows],
        "pages": [row.piece.page for _, row in rows],
        "starts": [row.piece.start for _, row in rows],
        "ends": [row.piece.end for _, row in rows],
        "headings": [row.piece.heading for _, row in rows],
        "texts": [row.piece.text for _, row in rows],
        "terms": [sparse_literal(row.terms) for _, row in rows],
        "vectors": [dense_literal(row.vector) for _, row in rows],
    }


INSERT = text(
    """
    with given as (
        select * from unnest(
            cast(:projects as uuid[]), cast(:documents as uuid[]), cast(:ids as uuid[]), cast(:ordinals as int[]),
            cast(:pages as int[]), cast(:starts as int[]), cast(:ends as int[]), cast(:headings as text[]),
            cast(:texts as text[]), cast(:terms as text[]), cast(:vectors as text[])
        ) as row (
            project_id, document_id, id, ordinal, page, start_char, end_char, heading, text, terms, vector
        )
    ), passage as (
        insert into passages
            (tenant_id, id, project_id, document_id, ordinal, page, start_char, end_char, heading, text)
        select :tenant, id, project_id, document_id, ordinal, page, start_char, end_char, heading, text from given
        returning id
    ), term as (
        insert into passage_terms (tenant_id, passage_id, project_id, terms)
        select :tenant, id, project_id, cast(terms as sparsevec) from given
        returning passage_id
    )
    insert into passage_vectors_minilm_l6_v2 (tenant_id, passage_id, project_id, embedding)
    select :tenant, id, project_id, cast(vector as halfvec) from given
    """
)
REMOVE = text(
    """
    with gone as (delete from passages where document_id = any(:documents) returning id)
    select project_id, cast(terms as text) from passage_terms where passage_id in (select id from gone)
    """
)
COUNT_PASSAGES = text("update projects set passage_count = passage_count + :passages where id = :project")
COUNT_TERMS = text(
    """
    insert into lexicon (tenant_id, project_id, term, passages)
    select nullif(current_setting('pharos.tenant_id', true), '')::uuid, :project, term, change
    from unnest(cast(:terms as int[]), cast(:changes as int[])) as row (term, change)
    on conflict (tenant_id, project_id, term) do update set passages = lexicon.passages + excluded.passages
    """
)
DROP_UNUSED_TERMS = text(
    "delete from lexicon where project_id = :project and term = any(cast(:terms as int[])) and passages <= 0"
)
