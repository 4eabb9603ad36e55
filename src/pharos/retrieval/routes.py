"""Search over HTTP."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from pharos.access.projects import require
from pharos.identity.current import CurrentReader, CurrentRuntime
from pharos.infra.ids import ProjectId
from pharos.retrieval.search import search

router = APIRouter(tags=["retrieval"])


class Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class SearchQuestion(Body):
    text: Annotated[str, Field(min_length=1, max_length=2000)]
    project_id: Annotated[UUID | None, Field(description="Without it: every project the caller can reach.")] = None
    limit: Annotated[int, Field(ge=1, le=50)] = 8


class Passage(Body):
    """`text` is exactly characters `start` to `end` of the document's text; `page` is 1-based."""

    document_id: UUID
    document: str
    page: int | None
    start: int
    end: int
    heading: str
    text: str
    score: float


class SearchAnswer(Body):
    """Passages best first; `degraded` says that a part of the search did not answer."""

    passages: list[Passage]
    degraded: bool


@router.post("/api/v1/search")
async def search_passages(body: SearchQuestion, principal: CurrentReader, runtime: CurrentRuntime) -> SearchAnswer:
    """The passages that fit a question best, among those the caller may read."""
    project_id = ProjectId(body.project_id) if body.project_id else None
    if project_id is not None:
        async with runtime.db.transaction(principal.tenant_id) as session:
            await require(session, principal, project_id, "use")
    found = await search(runtime, principal, text=body.text, project_id=project_id, limit=body.limit)
    passages = [
        Passage(
            document_id=passage.document_id,
            document=passage.document_name,
            page=passage.page,
            start=passage.start_char,
            end=passage.end_char,
            heading=passage.heading,
            text=passage.text,
            score=passage.score,
        )
        for passage in found.passages
    ]
    return SearchAnswer(passages=passages, degraded=found.degraded)
