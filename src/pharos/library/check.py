"""Is the index in step with the documents? Counts what does not fit, and puts it right when asked."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.library.documents import queue_ingest
from pharos.library.models import Document


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


async def repair_index(session: AsyncSession) -> int:
    """Count anew what search counts, and queue the documents whose passages are out of step; returns how many.

    Nothing is lost meanwhile: a document's old passages stay until the new ones take their place.
    """
    out_of_step = (await session.execute(OUT_OF_STEP)).scalars().all()
    # The projects' rows are the lock under which the lexicon is written.
    await session.execute(COUNT_PASSAGES)
    await session.execute(COUNT_TERMS)
    await session.execute(DROP_UNUSED_TERMS)
    found = await session.execute(select(Document).where(Document.id.in_(out_of_step)).with_for_update())
    documents = found.scalars().all()
    for document in documents:
        document.status, document.reason, document.warning = "pending", None, None
        await queue_ingest(session, document)
    return len(documents)


COUNTED = """
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
    """
CHECK = text(
    COUNTED  # noqa: S608 - constants only
    + """
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
OUT_OF_STEP = text(
    COUNTED  # noqa: S608 - constants only
    + "select id from counted where passages <> passage_count or terms <> passages or vectors <> passages"
)
COUNT_PASSAGES = text(
    """
    update projects project set passage_count = (select count(*) from passages where project_id = project.id)
    """
)
COUNT_TERMS = text(
    COUNTED  # noqa: S608 - constants only
    + """
    insert into lexicon (tenant_id, project_id, term, passages)
    select nullif(current_setting('pharos.tenant_id', true), '')::uuid, project_id, term, passages from actual
    on conflict (tenant_id, project_id, term) do update set passages = excluded.passages
    """
)
DROP_UNUSED_TERMS = text(
    COUNTED  # noqa: S608 - constants only
    + """
    delete from lexicon where not exists (
        select from actual where actual.project_id = lexicon.project_id and actual.term = lexicon.term
    )
    """
)
