"""Is the index in step with the documents? Counts what does not fit; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True)
class IndexReport:
    """Documents looked at, and those or the projects where a count does not fit."""

    documents: int
    documents_out_of_step: int
    projects_out_of_step: int
    lexicon_out_of_step: int

    @property
    def out_of_step(self) -> int:
        return self.documents_out_of_step + self.projects_out_of_step + self.lexicon_out_of_step


async def check_index(session: AsyncSession) -> IndexReport:
    """Compare, for the tenant of the transaction, each document's passage count with its passages, terms and vectors,
    each project's with its documents, and the lexicon with the terms that are there."""
    row = (await session.execute(CHECK)).one()
    return IndexReport(row.documents, row.documents_out_of_step, row.projects_out_of_step, row.lexicon_out_of_step)


CHECK = text(
    """
    with counted as (
        select document.id, document.project_id, document.status, document.passage_count,
               count(passage.id) as passages, count(terms.passage_id) as terms, count(vector.passage_id) as vectors
        from documents document
        left join passages passage on passage.tenant_id = document.tenant_id and passage.document_id = document.id
        left join passage_terms terms on terms.tenant_id = passage.tenant_id and terms.passage_id = passage.id
        left join passage_vectors_minilm_l6_v2 vector
               on vector.tenant_id = passage.tenant_id and vector.passage_id = passage.id
        group by document.tenant_id, document.id
    ), actual as (
        select terms.project_id, cast(split_part(entry, ':', 1) as int) as term, count(*) as passages
        from passage_terms terms,
             unnest(string_to_array(split_part(trim(leading '{' from cast(terms.terms as text)), '}', 1), ',')) entry
        where entry <> ''
        group by 1, 2
    )
    select (select count(*) from counted) as documents,
           (select count(*) from counted
             where passages <> passage_count or terms <> passages or vectors <> passages) as documents_out_of_step,
           (select count(*) from projects project
             where passage_count <> (select count(*) from passages where project_id = project.id)
           ) as projects_out_of_step,
           (select count(*) from lexicon full join actual using (project_id, term)
             where coalesce(lexicon.passages, 0) <> coalesce(actual.passages, 0)) as lexicon_out_of_step
    """
)
