"""Found passages for the pure parts of a turn."""

from __future__ import annotations

import math
from collections import Counter

from pharos.infra.ids import DocumentId, PassageId, new_id
from pharos.library.terms import query_terms, terms_of
from pharos.retrieval.search import FoundPassage, SearchOutcome


def passage(
    text: str, *, page: int | None = None, start: int = 0, score: float = 1.0, dense: float | None = 0.6
) -> FoundPassage:
    return FoundPassage(
        passage_id=PassageId(new_id()),
        document_id=DocumentId(new_id()),
        document_name="notes.txt",
        page=page,
        start_char=start,
        end_char=start + len(text),
        heading="",
        text=text,
        score=score,
        dense=dense,
        lexical=1.0,
    )


def found(question: str, *passages: FoundPassage) -> SearchOutcome:
    """What a search that holds only these passages would return."""
    held = Counter(term for each in passages for term in terms_of(each.text))
    idf = {term: math.log(1 + len(passages) / held[term]) for term in query_terms(question) if held[term]}
    return SearchOutcome(passages=passages, degraded=False, idf=idf, query_vector=None)
