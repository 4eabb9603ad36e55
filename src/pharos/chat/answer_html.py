"""An answer as HTML: rendered, sanitised, its numbers linked to the passages they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

from pharos.chat.history import Source
from pharos.infra.ids import ProjectId
from pharos.infra.render import CitationLink, render_markdown, render_quoted


def answer_html(
    body: str,
    *,
    mode: str | None,
    project_id: ProjectId | None,
    sources: Sequence[Source],
    unsupported: Sequence[int] = (),
) -> str:
    """The safe fragment that the page shows for a stored answer and at the end of a stream.

    What a model wrote is markdown; an extractive answer is quoted text and keeps every character. Without a project the
    numbers lead to the quotations on the same page. Behind the offsets `unsupported` stands
    the mark of a sentence that its passages do not support.
    """
    links = {
        source.index: CitationLink(href=passage_path(project_id, source), title=_title(source)) for source in sources
    }
    return (render_markdown if mode == "model" else render_quoted)(body, citations=links, doubtful_ends=unsupported)


def passage_path(project_id: ProjectId | None, source: Source) -> str:
    """The page that shows the passage of a source, marked; for a guest, who has no such page, its quotation here."""
    if project_id is None:
        return f"#quoted-{source.document_id}-{source.start}-{source.end}"
    span = {"start": source.start, "end": source.end} | ({"page": source.page} if source.page else {})
    return f"/projects/{project_id}/documents/{source.document_id}?{urlencode(span)}#passage"


def _title(source: Source) -> str:
    return f"{source.document}, p. {source.page}" if source.page else source.document
