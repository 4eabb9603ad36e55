"""From a question to ranked passages: both legs, the access filter and the idf in one statement."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.access.projects import asker_values, visible_projects_sql
from pharos.identity.principal import Principal
from pharos.infra.errors import Unavailable
from pharos.infra.ids import DocumentId, PassageId, ProjectId
from pharos.infra.logs import get_logger
from pharos.library.models import TERM_SPACE
from pharos.library.passages import dense_literal
from pharos.library.terms import UNSPACED, detect_language, query_terms
from pharos.retrieval.fuse import fuse_scores
from pharos.runtime import Runtime

if TYPE_CHECKING:  # a command that touches no vector need not wait for their library
    import numpy as np
    from numpy.typing import NDArray

log = get_logger(__name__)

CANDIDATES = 100
EF_SEARCH = 400
"""Nodes the HNSW scan keeps in view. Among 35,000 real passages it finds .968, .982 and .994 of the ten nearest
with 100, 200 and 400; the exact lexical scan takes most of the statement either way."""
EXACT_SCAN_PASSAGES = 20_000
"""Up to this many visible passages every vector is compared (about 20 ms); beyond, the HNSW index answers."""

DENSE_SHARE_ENGLISH, DENSE_SHARE_LATIN, DENSE_SHARE_OTHER = 0.5, 0.3, 0.05
"""What MiniLM can do: it was trained on English, knows something of other languages in Latin letters, and sees other
scripts as unknown tokens (nDCG@10 .93 / .70 / .24 on the same questions in English, German, Chinese)."""


@dataclass(frozen=True)
class FoundPassage:
    """A passage with its scores; `score` is fused (0 to 1), `dense` a cosine, `lexical` a BM25 score.

    `text` is exactly characters `start_char` to `end_char` of the document's text.
    """

    passage_id: PassageId
    document_id: DocumentId
    document_name: str
    page: int | None
    start_char: int
    end_char: int
    heading: str
    text: str
    score: float
    dense: float | None
    lexical: float | None


@dataclass(frozen=True)
class SearchOutcome:
    """Passages best first. `degraded`: a leg did not answer. `idf`: of each term of the question that is known."""

    passages: tuple[FoundPassage, ...]
    degraded: bool
    idf: dict[int, float]
    query_vector: NDArray[np.float32] | None


async def search(
    runtime: Runtime,
    principal: Principal,
    *,
    text: str,
    project_id: ProjectId | None = None,
    limit: int = 8,
    embedding: Awaitable[NDArray[np.float32]] | None = None,
) -> SearchOutcome:
    """The passages that fit a question best, among those the principal may read.

    Without the embedder the lexical leg answers alone and the outcome says so. `embedding` is an `embed_question` of
    this text that was begun before.
    """
    vector: NDArray[np.float32] | None = None
    try:
        vector = await (embedding if embedding is not None else embed_question(runtime, text))
    except Unavailable as error:
        log.warning("search.degraded", reason=error.code)
    async with runtime.db.transaction(principal.tenant_id) as session:
        return await find_passages(
            session, principal, query_text=text, query_vector=vector, project_id=project_id, limit=limit
        )


async def embed_question(runtime: Runtime, text: str) -> NDArray[np.float32]:
    """The vector to search with. Raises `Unavailable` without the embedder."""
    vector: NDArray[np.float32]
    (vector,) = await runtime.embedding.embed([text])
    return vector


async def find_passages(
    session: AsyncSession,
    principal: Principal,
    *,
    query_text: str,
    query_vector: NDArray[np.float32] | None,
    project_id: ProjectId | None = None,
    limit: int = 8,
) -> SearchOutcome:
    """One round trip: candidates of both legs, each scored by both, fused best first."""
    parameters = search_parameters(principal, query_text, query_vector, project_id=project_id)
    rows = (await session.execute(search_statement(principal), parameters)).all()
    scores = fuse_scores(
        [row.dense for row in rows], [row.lexical for row in rows], dense_share=dense_share(query_text)
    )
    ranked = sorted(zip(scores, rows, strict=True), key=lambda pair: -pair[0])[:limit]
    idf = {int(term): float(value) for term, value in (rows[0].idf or {}).items()} if rows else {}
    passages = tuple(
        FoundPassage(
            passage_id=PassageId(row.passage_id),
            document_id=DocumentId(row.document_id),
            document_name=row.document_name,
            page=row.page,
            start_char=row.start_char,
            end_char=row.end_char,
            heading=row.heading,
            text=row.text,
            score=round(score, 4),
            dense=row.dense,
            lexical=row.lexical,
        )
        for score, row in ranked
    )
    return SearchOutcome(passages=passages, degraded=query_vector is None, idf=idf, query_vector=query_vector)


def search_statement(principal: Principal) -> TextClause:
    """The one statement of a search, with the principal's access filter written into it."""
    return _statement(visible_projects_sql(principal))


@cache
def _statement(visible: str) -> TextClause:
    return text(STATEMENT.replace("VISIBLE_PROJECTS", visible))


def search_parameters(
    principal: Principal,
    query_text: str,
    query_vector: NDArray[np.float32] | None,
    *,
    project_id: ProjectId | None = None,
) -> dict[str, object]:
    """What the principal's `search_statement` asks for; without a vector the lexical leg answers alone."""
    return {
        **asker_values(principal),
        "project": project_id,
        "terms": sorted(query_terms(query_text)),
        "vector": dense_literal(query_vector) if query_vector is not None else None,
        "term_space": str(TERM_SPACE),
        "candidates": CANDIDATES,
        "ef_search": str(EF_SEARCH),
        "exact": EXACT_SCAN_PASSAGES,
    }


def dense_share(question: str) -> float:
    """How far the dense leg is trusted with the language of a question."""
    letters = [character for character in question if character.isalpha()]
    if not letters:
        return DENSE_SHARE_LATIN
    foreign = sum(ord(character) > 0x24F for character in letters)
    if foreign * 2 > len(letters) or UNSPACED.search(question):
        return DENSE_SHARE_OTHER
    return DENSE_SHARE_ENGLISH if detect_language(question) in (None, "english") else DENSE_SHARE_LATIN


# The arrays are InitPlans: computed once, then a plain filter the indexes can use. Of the two dense branches one runs:
# the other's condition is false before its scan begins. That condition reads `size`, so the settings of the HNSW scan
# made there stand before it starts: an index that stops at its nearest 40 would leave little of a narrow filter.
STATEMENT = """
with visible as materialized (
    select id, passage_count from projects
    where id in (VISIBLE_PROJECTS) and (cast(:project as uuid) is null or id = :project)
), size as materialized (
    select coalesce(sum(passage_count), 0) as passages,
           set_config('hnsw.iterative_scan', 'relaxed_order', true),
           set_config('hnsw.ef_search', cast(:ef_search as text), true)
    from visible
), weighted as materialized (
    select term, round(ln(1 + (greatest(size.passages - found, 0) + 0.5) / (found + 0.5)), 4) as idf
    from (
        select term, cast(sum(passages) as numeric) as found from lexicon
        where project_id = any (array(select id from visible)) and term = any (cast(:terms as int[]))
        group by term
    ) known, size
), question as materialized (
    select cast('{' || string_agg(term || ':' || idf, ',' order by term) || '}/' || :term_space as sparsevec) as terms,
           jsonb_object_agg(cast(term as text), idf) as idf
    from weighted
), lexical as materialized (
    select passage_id from (
        select passage_id, terms <#> (select terms from question) as distance from passage_terms
        where project_id = any (array(select id from visible)) and (select terms from question) is not null
        offset 0
    ) scored
    where distance < 0 order by distance limit cast(:candidates as int)
), exact as materialized (
    select passage_id, embedding <=> cast(:vector as halfvec) as distance from passage_vectors_minilm_l6_v2
    where project_id = any (array(select id from visible))
      and cast(:vector as text) is not null and (select passages from size) <= :exact
), approximate as materialized (
    select passage_id from passage_vectors_minilm_l6_v2
    where project_id = any (array(select id from visible))
      and cast(:vector as text) is not null and (select passages from size) > :exact
    order by embedding <=> cast(:vector as halfvec) limit cast(:candidates as int)
), candidates as (
    select passage_id from lexical
    union select passage_id from (select passage_id from exact order by distance limit cast(:candidates as int)) nearest
    union select passage_id from approximate
)
select passage.id as passage_id, passage.document_id, document.name as document_name, passage.page,
       passage.start_char, passage.end_char, passage.heading, passage.text,
       1 - (vector.embedding <=> cast(:vector as halfvec)) as dense,
       -(terms.terms <#> (select question.terms from question)) as lexical,
       (select question.idf from question) as idf
from candidates
join passages passage on passage.id = candidates.passage_id
join documents document on document.id = passage.document_id
join passage_terms terms on terms.passage_id = passage.id
join passage_vectors_minilm_l6_v2 vector on vector.passage_id = passage.id
"""
