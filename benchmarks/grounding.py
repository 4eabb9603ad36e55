"""Does the verifier know a supported sentence from another?

Cases are made of the XQuAD questions of three languages, 150 a language with one seed:

supported      the sentence that holds the answer, against its own paragraph; and the question followed by its answer, a
               claim in other words than the paragraph's.
unsupported    the same two against another paragraph of the same article (a near miss), and the sentence with its
               answer replaced by that of another paragraph (a changed fact; figures and other words apart).

The threshold with the best F1 over supported and near misses is found on every other question and everything is
reported on the rest. Changed facts are reported and not tuned on: words cannot see all of them.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.scratch import scratch_installation
from numpy.typing import NDArray

from pharos.chat.grounding import FIGURE, SUPPORTED, support
from pharos.chat.sentences import split_sentences
from pharos.infra.settings import Settings
from pharos.providers.contract import EmbeddingModel
from pharos.runtime import open_runtime

LANGUAGES = ("en", "de", "zh")
QUESTIONS = 150
PARAGRAPHS_AN_ARTICLE = 5
SEED = 7
BATCH = 64


@dataclass(frozen=True)
class Case:
    """A claim and the passage it is held against; `half` 0 finds the threshold, 1 is reported."""

    language: str
    kind: str
    is_supported: bool
    claim: str
    passage: str
    half: int


def main(eval_dir: Path) -> dict[str, Any]:
    corpus = {row["id"]: row["text"] for row in _read(eval_dir / "xquad" / "corpus.jsonl")}
    questions = _read(eval_dir / "xquad" / "queries.jsonl")
    cases = [case for language in LANGUAGES for case in make_cases(language, corpus, questions)]
    with scratch_installation() as scratch:
        return asyncio.run(_measure(scratch.settings, cases))


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def make_cases(language: str, corpus: dict[str, str], questions: Sequence[dict[str, Any]]) -> list[Case]:
    """Every case of a language, question by question."""
    chance = random.Random(SEED)
    own = [question for question in questions if question["lang"] == language]
    cases: list[Case] = []
    for index, question in enumerate(chance.sample(own, QUESTIONS)):
        passage, answer = corpus[question["answer_doc"]], question["answer"]
        near = [
            other
            for other in own
            if _article(other) == _article(question) and other["answer_doc"] != question["answer_doc"]
        ]
        miss = chance.choice(near)
        sentence = next(passage[a:b] for a, b in split_sentences(passage) if b > question["start"])
        stated = question["text"].rstrip("?？ ") + " " + answer

        def add(kind: str, claim: str, passage: str, *, supported: bool = False, half: int = index % 2) -> None:
            cases.append(Case(language, kind, supported, claim, passage, half))

        add("sentence", sentence, passage, supported=True)
        add("stated", stated, passage, supported=True)
        add("sentence, near miss", sentence, corpus[miss["answer_doc"]])
        add("stated, near miss", stated, corpus[miss["answer_doc"]])
        is_figure = FIGURE.fullmatch(answer) is not None
        changes = [o["answer"] for o in near if (FIGURE.fullmatch(o["answer"]) is not None) == is_figure]
        changes = [change for change in changes if change not in passage]
        if answer in sentence and changes:
            kind = "changed figure" if is_figure else "changed words"
            add(kind, sentence.replace(answer, chance.choice(changes)), passage)
    return cases


def _article(question: dict[str, Any]) -> int:
    return int(question["answer_doc"].rsplit("-p", 1)[1]) // PARAGRAPHS_AN_ARTICLE


async def _measure(settings: Settings, cases: Sequence[Case]) -> dict[str, Any]:
    async with open_runtime(settings) as runtime:
        vectors = await _embed(runtime.embedding, cases)
    scores = [support(case.claim, [case.passage], vectors) for case in cases]
    words = [support(case.claim, [case.passage]) for case in cases]
    tuned = [(s, c.is_supported) for s, c in zip(scores, cases, strict=True) if c.half == 0 and "changed" not in c.kind]
    best = max(np.arange(0.3, 0.9, 0.01), key=lambda threshold: f1(tuned, float(threshold)))
    reported = [(s, w, c) for s, w, c in zip(scores, words, cases, strict=True) if c.half == 1]
    figures: dict[str, Any] = {"cases": len(cases), "best_threshold": round(float(best), 2), "threshold": SUPPORTED}
    for language in LANGUAGES:
        pairs = [(s, c.is_supported) for s, _, c in reported if c.language == language and "changed" not in c.kind]
        figures |= {f"{language}_{name}": value for name, value in precision_recall(pairs, SUPPORTED).items()}
    for kind in sorted({case.kind for case in cases}):
        kept = [(s >= SUPPORTED, w >= SUPPORTED) for s, w, c in reported if c.kind == kind]
        figures[f"counted_supported: {kind}"] = round(sum(by_both for by_both, _ in kept) / len(kept), 3)
        figures[f"counted_supported, words only: {kind}"] = round(sum(by_words for _, by_words in kept) / len(kept), 3)
    return figures


def f1(pairs: Sequence[tuple[float, bool]], threshold: float) -> float:
    found = precision_recall(pairs, threshold)
    return 2 * found["precision"] * found["recall"] / max(1e-9, found["precision"] + found["recall"])


def precision_recall(pairs: Sequence[tuple[float, bool]], threshold: float) -> dict[str, float]:
    """Of what counts as supported how much is, and of what is how much counts."""
    right = sum(score >= threshold for score, is_supported in pairs if is_supported)
    counted = sum(score >= threshold for score, _ in pairs)
    supported = sum(is_supported for _, is_supported in pairs)
    return {"precision": round(right / max(1, counted), 3), "recall": round(right / max(1, supported), 3)}


async def _embed(embedding: EmbeddingModel, cases: Sequence[Case]) -> dict[str, NDArray[np.float32]]:
    texts = sorted(
        {case.claim for case in cases}
        | {case.passage[start:end] for case in cases for start, end in split_sentences(case.passage)}
    )
    vectors: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        vectors |= dict(zip(batch, await embedding.embed(batch), strict=True))
    return vectors
