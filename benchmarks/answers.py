"""Answers without a model, end to end: are they right, are they silent when they should be, do they point true, and
how long do they take.

The XQuAD paragraphs of one language are indexed as one project in a scratch tenant, 120 questions spread evenly over
the set are asked there through `answer_question`, as the web process asks them, and

- an answer is right when the marked words of the question's own paragraph lie inside a cited sentence (by characters of
  the stored text, so a chance occurrence elsewhere does not count);
- a citation points true when its characters of the stored text are exactly what it quotes;
- the latency is that of a whole answer with its two transactions and its embedding, one question at a time.

Then the same questions are asked in a project of 500 SciFact abstracts, where nothing answers them: an answer is false.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.scratch import scratch_installation
from sqlalchemy import select

from pharos.access.models import Project
from pharos.chat.answer import Answer, answer_question, gather_answer
from pharos.identity.principal import Principal, operator
from pharos.identity.tenants import scratch_tenant
from pharos.infra.ids import ProjectId
from pharos.infra.settings import Settings
from pharos.library.models import DocumentText
from pharos.library.texts import NamedText, index_texts
from pharos.runtime import Runtime, open_runtime

LANGUAGES = ("en", "de", "zh")
QUESTIONS, FOREIGN_ABSTRACTS = 120, 500
TEXTS_AT_ONCE = 32
MIN_RIGHT, MAX_FALSE, MIN_TRUE_SPANS, MAX_P50_MS = 0.80, 0.10, 0.99, 150.0


@dataclass(frozen=True)
class Question:
    """`start` to `end` of the paragraph `document` is what answers it."""

    text: str
    document: str
    start: int
    end: int


@dataclass
class Tally:
    """What became of the questions of one project."""

    asked: int = 0
    answered: int = 0
    right: int = 0
    citations: int = 0
    true_spans: int = 0

    def add(self, answer: Answer, question: Question, bodies: dict[str, str]) -> None:
        self.asked += 1
        self.answered += answer.grounded
        self.right += any(
            source.document == question.document and source.start <= question.start and question.end <= source.end
            for source in answer.sources
        )
        self.citations += len(answer.sources)
        self.true_spans += sum(
            bodies[source.document_id][source.start : source.end] == source.text for source in answer.sources
        )


def main(eval_dir: Path) -> dict[str, Any]:
    paragraphs = list(_read(eval_dir / "xquad" / "corpus.jsonl"))
    rows = list(_read(eval_dir / "xquad" / "queries.jsonl"))
    abstracts = [
        NamedText(name=str(row["id"]), text=row["text"], title=row["title"])
        for row in islice(_read(eval_dir / "scifact" / "corpus.jsonl"), FOREIGN_ABSTRACTS)
    ]
    corpora = {
        language: [NamedText(row["id"], row["text"]) for row in paragraphs if row["id"].startswith(f"{language}-")]
        for language in LANGUAGES
    }
    questions = {
        language: _spread(
            [Question(r["text"], r["answer_doc"], r["start"], r["end"]) for r in rows if r["lang"] == language]
        )
        for language in LANGUAGES
    }
    with scratch_installation() as scratch:
        return asyncio.run(_measure(scratch.settings, corpora, questions, abstracts))


def _read(file: Path) -> Iterable[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _spread(questions: Sequence[Question]) -> list[Question]:
    step = max(1, len(questions) // QUESTIONS)
    return list(questions[::step])[:QUESTIONS]


async def _measure(
    settings: Settings,
    corpora: dict[str, list[NamedText]],
    questions: dict[str, list[Question]],
    abstracts: list[NamedText],
) -> dict[str, Any]:
    seconds: list[float] = []
    async with open_runtime(settings) as runtime, scratch_tenant(runtime) as tenant_id:
        principal = operator(tenant_id)
        own = {
            language: await _ask(runtime, principal, await _index(runtime, principal, corpus), asked, seconds)
            for (language, corpus), asked in zip(corpora.items(), questions.values(), strict=True)
        }
        elsewhere = await _index(runtime, principal, abstracts)
        foreign = {
            language: await _ask(runtime, principal, elsewhere, asked, []) for language, asked in questions.items()
        }
    return _report(own, foreign, seconds)


def _report(own: dict[str, Tally], foreign: dict[str, Tally], seconds: list[float]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for language, tally in own.items():
        figures[f"{language}_asked"] = tally.asked
        figures[f"{language}_answered"] = round(tally.answered / tally.asked, 3)
        figures[f"{language}_right"] = round(tally.right / tally.asked, 3)
        figures[f"{language}_right_ok"] = tally.right / tally.asked >= MIN_RIGHT
    for language, tally in foreign.items():
        figures[f"{language}_falsely_answered"] = round(tally.answered / tally.asked, 3)
        figures[f"{language}_falsely_answered_ok"] = tally.answered / tally.asked <= MAX_FALSE
    citations = sum(tally.citations for tally in [*own.values(), *foreign.values()])
    true_spans = sum(tally.true_spans for tally in [*own.values(), *foreign.values()])
    p50 = float(np.median(seconds)) * 1000
    return {
        **figures,
        "citations": citations,
        "true_spans": round(true_spans / citations, 4),
        "true_spans_ok": true_spans / citations >= MIN_TRUE_SPANS,
        "p50_ms": round(p50, 1),
        "p95_ms": round(float(np.percentile(seconds, 95)) * 1000, 1),
        "p50_ok": p50 <= MAX_P50_MS,
    }


async def _index(runtime: Runtime, principal: Principal, texts: Sequence[NamedText]) -> ProjectId:
    async with runtime.db.transaction(principal.tenant_id) as session:
        # not `create_project`: its audit entry could never be removed, and would keep the tenant
        project = Project(tenant_id=principal.tenant_id, name=texts[0].name)
        session.add(project)
        await session.flush()
        project_id = ProjectId(project.id)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        await index_texts(runtime, principal.tenant_id, project_id, texts[start : start + TEXTS_AT_ONCE])
    return project_id


async def _ask(
    runtime: Runtime, principal: Principal, project_id: ProjectId, questions: Sequence[Question], seconds: list[float]
) -> Tally:
    """Ask one after the other; how long each took is added to `seconds`."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        rows = await session.execute(select(DocumentText.document_id, DocumentText.body))
        bodies = {str(document_id): body for document_id, body in rows}
    tally = Tally()
    for question in questions:
        started = time.perf_counter()
        answer = await gather_answer(answer_question(runtime, principal, project_id=project_id, question=question.text))
        seconds.append(time.perf_counter() - started)
        tally.add(answer, question, bodies)
    return tally
