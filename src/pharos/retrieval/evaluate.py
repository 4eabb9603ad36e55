"""How well search finds what people marked as right: an evaluation set, indexed in a scratch tenant and asked.

A set is a folder with `corpus.jsonl` ({id, title, text}), `queries.jsonl` ({id, text} and optionally `lang`) and
what is right: `doc` and `spans` in a query, or else its lines in `qrels.tsv` (query, document, grade).
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from pharos.access.models import Project
from pharos.identity.principal import Principal, operator
from pharos.identity.tenants import scratch_tenant
from pharos.infra.errors import Invalid
from pharos.infra.ids import DocumentId, ProjectId, TenantId
from pharos.library.models import Passage
from pharos.library.texts import NamedText, index_texts
from pharos.retrieval.search import FoundPassage, search
from pharos.runtime import Runtime

TEXTS_AT_ONCE = 32
PASSAGES_ASKED = 100
"""Enough for 20 different documents where each has several passages among the best."""
SPAN_SHARE = 0.5

Span = tuple[int, int]


@dataclass(frozen=True)
class EvalQuery:
    """A question with what answers it: `spans` of the document `doc`, or `grades` of documents by their id."""

    id: str
    text: str
    lang: str | None
    doc: str
    spans: tuple[Span, ...]
    grades: Mapping[str, float]


@dataclass(frozen=True)
class EvalSet:
    texts: tuple[NamedText, ...]
    queries: tuple[EvalQuery, ...]


@dataclass(frozen=True)
class Figures:
    """Means over questions, 0 to 1."""

    queries: int
    ndcg_at_10: float
    recall_at_5: float
    recall_at_20: float
    mrr_at_10: float


@dataclass(frozen=True)
class EvalReport:
    """`latency_ms` of a search with its embedding: `p50`, `p95`. `per_lang`: by the `lang` of the queries."""

    documents: int
    passages: int
    overall: Figures
    per_lang: dict[str, Figures]
    latency_ms: dict[str, float]


def read_eval_set(folder: Path) -> EvalSet:
    """Read a set. Raises `Invalid` naming what is missing; questions without anything right are left out."""
    for name in ("corpus.jsonl", "queries.jsonl"):
        if not (folder / name).is_file():
            raise Invalid(f"{folder} has no {name}. An evaluation set has corpus.jsonl, queries.jsonl and qrels.tsv.")
    grades = _read_grades(folder / "qrels.tsv")
    texts = tuple(
        NamedText(name=str(row["id"]), text=row["text"], title=row.get("title") or "")
        for row in _read_lines(folder / "corpus.jsonl")
    )
    queries = tuple(
        EvalQuery(
            id=str(row["id"]),
            text=row["text"],
            lang=row.get("lang"),
            doc=str(row.get("doc", "")),
            spans=tuple((start, end) for start, end in row.get("spans", ())),
            grades=grades.get(str(row["id"]), {}),
        )
        for row in _read_lines(folder / "queries.jsonl")
    )
    return EvalSet(texts, tuple(query for query in queries if query.spans or query.grades))


async def evaluate(
    runtime: Runtime, evaluation: EvalSet, *, progress: Callable[[str, int, int], None] | None = None
) -> EvalReport:
    """Index the set in a scratch tenant, ask every question, remove the tenant.

    `progress` is told a step's verb, how much of it is done and how much there is. Raises `Unavailable`.
    """
    tell = progress or (lambda _verb, _done, _total: None)
    async with scratch_tenant(runtime) as tenant_id:
        principal = operator(tenant_id)
        async with runtime.db.transaction(tenant_id) as session:
            # not `create_project`: its audit entry could never be removed, and would keep the tenant
            project = Project(tenant_id=tenant_id, name="Evaluation")
            session.add(project)
        names = await _index(runtime, tenant_id, ProjectId(project.id), evaluation.texts, tell)
        spans = await _passage_spans(runtime, tenant_id, names)
        return await _ask(runtime, principal, evaluation, names=names, spans=spans, tell=tell)


async def _index(
    runtime: Runtime,
    tenant_id: TenantId,
    project_id: ProjectId,
    texts: Sequence[NamedText],
    tell: Callable[[str, int, int], None],
) -> dict[DocumentId, str]:
    names: dict[DocumentId, str] = {}
    remaining = iter(texts)
    while batch := list(islice(remaining, TEXTS_AT_ONCE)):
        names |= await index_texts(runtime, tenant_id, project_id, batch)
        tell("Indexing", len(names), len(texts))
    return names


async def _passage_spans(
    runtime: Runtime, tenant_id: TenantId, names: Mapping[DocumentId, str]
) -> dict[str, list[Span]]:
    """Every passage of each document, by the document's id in the set."""
    spans: dict[str, list[Span]] = defaultdict(list)
    async with runtime.db.transaction(tenant_id) as session:
        rows = await session.execute(select(Passage.document_id, Passage.start_char, Passage.end_char))
    for document_id, start, end in rows:
        spans[names[DocumentId(document_id)]].append((start, end))
    return spans


async def _ask(
    runtime: Runtime,
    principal: Principal,
    evaluation: EvalSet,
    *,
    names: Mapping[DocumentId, str],
    spans: Mapping[str, Sequence[Span]],
    tell: Callable[[str, int, int], None],
) -> EvalReport:
    figures: dict[str | None, list[Figures]] = defaultdict(list)
    seconds: list[float] = []
    for number, query in enumerate(evaluation.queries, start=1):
        started = time.perf_counter()
        outcome = await search(runtime, principal, text=query.text, limit=PASSAGES_ASKED)
        seconds.append(time.perf_counter() - started)
        gains, ideal = judge(query, outcome.passages, names=names, spans=spans)
        figures[query.lang].append(measure(gains, ideal))
        tell("Asking", number, len(evaluation.queries))
    every = [one for of_lang in figures.values() for one in of_lang]
    return EvalReport(
        documents=len(names),
        passages=sum(map(len, spans.values())),
        overall=mean(every),
        per_lang={lang: mean(of_lang) for lang, of_lang in sorted(figures.items(), key=str) if lang is not None},
        latency_ms={
            "p50": round(float(np.percentile(seconds, 50)) * 1000, 1),
            "p95": round(float(np.percentile(seconds, 95)) * 1000, 1),
        }
        if seconds
        else {},
    )


def judge(
    query: EvalQuery,
    found: Sequence[FoundPassage],
    *,
    names: Mapping[DocumentId, str],
    spans: Mapping[str, Sequence[Span]],
) -> tuple[list[float], list[float]]:
    """The gain of each thing found, best ranked first, and all gains there are to have, largest first.

    With gold spans the things are passages, else documents, each at the rank of its best passage.
    """
    if query.spans:
        gains = [
            float(names[each.document_id] == query.doc and is_relevant((each.start_char, each.end_char), query.spans))
            for each in found
        ]
        return gains, [1.0 for span in spans.get(query.doc, ()) if is_relevant(span, query.spans)]
    ranked = dict.fromkeys(names[each.document_id] for each in found)
    gains = [query.grades.get(name, 0.0) for name in ranked]
    return gains, sorted((grade for grade in query.grades.values() if grade > 0), reverse=True)


def is_relevant(passage: Span, gold: Iterable[Span]) -> bool:
    """Whether the passage covers at least half of a gold span, or lies at least half inside one."""
    for start, end in gold:
        overlap = min(end, passage[1]) - max(start, passage[0])
        if overlap > 0 and overlap >= SPAN_SHARE * min(end - start, passage[1] - passage[0]):
            return True
    return False


def measure(gains: Sequence[float], ideal: Sequence[float]) -> Figures:
    """One question's figures. Where nothing right exists (its passage was cut away) all are 0.

    >>> measure([0.0, 1.0], [1.0]).mrr_at_10
    0.5
    """
    right = [position for position, gain in enumerate(gains) if gain > 0]
    best = discounted(ideal[:10])
    return Figures(
        queries=1,
        ndcg_at_10=discounted(gains[:10]) / best if best else 0.0,
        recall_at_5=sum(position < 5 for position in right) / len(ideal) if ideal else 0.0,
        recall_at_20=sum(position < 20 for position in right) / len(ideal) if ideal else 0.0,
        mrr_at_10=1 / (right[0] + 1) if right and right[0] < 10 else 0.0,
    )


def discounted(gains: Sequence[float]) -> float:
    """The sum of gains, each divided by the logarithm to base 2 of its rank plus 1 (DCG with linear gain)."""
    return sum(gain / math.log2(position + 2) for position, gain in enumerate(gains))


def mean(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure, rounded to four places; zeros when there is none."""
    number = len(figures) or 1
    return Figures(
        queries=len(figures),
        ndcg_at_10=round(sum(each.ndcg_at_10 for each in figures) / number, 4),
        recall_at_5=round(sum(each.recall_at_5 for each in figures) / number, 4),
        recall_at_20=round(sum(each.recall_at_20 for each in figures) / number, 4),
        mrr_at_10=round(sum(each.mrr_at_10 for each in figures) / number, 4),
    )


def _read_lines(file: Path) -> Iterable[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _read_grades(file: Path) -> dict[str, dict[str, float]]:
    grades: dict[str, dict[str, float]] = defaultdict(dict)
    if not file.is_file():
        return grades
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        grades[query][document] = max(0.0, float(grade))
    return grades
