"""An answer without a model: the sentences that say it, word for word, or an honest "not in these documents"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pharos.chat.sentences import split_sentences
from pharos.library.terms import UNSPACED, detect_language, query_words, terms_of
from pharos.retrieval.search import FoundPassage, SearchOutcome

MAX_SENTENCES = 3
PASSAGES_READ = 4
"""Sentences are taken from the best passages only: beyond the fourth, one in fifty held the answer."""
PASSAGE_SHARE = 0.5
"""How much of a sentence's score is its passage's: a sentence alone is often silent about what it speaks of."""

MIN_SHARE_OF_BEST = 0.5
"""A second or third sentence must come this near the best one: what is added only because there is room is noise."""
NOT_A_SENTENCE = re.compile(r"\s*(?:#{1,6}\s|\||```|={3,}|-{3,})")
PLACE_NOT_CLAIM = 0.4
"""Headings and rows of tables name the answer's place rather than say it: quoted where there is nothing else."""

MIN_SUPPORT = 0.70
"""Coverage plus cosine from which a passage is about the question. Coverage is the share of the question's weight whose
words stand in the passage. The figures are in docs/adr/0023-extractive-answers.md."""
MIN_SUPPORT_ENGLISH = 0.80
"""The same for English, where cosines are higher all round: questions share a cosine of .2 with anything written."""
MIN_COVERAGE_UNSPACED = 0.22
"""The same where words are character bigrams: half of a question's bigrams straddle two words and stand nowhere, and
the dense model knows nothing of these scripts, so coverage decides alone."""
MIN_COVERAGE_DEGRADED = 0.5
"""And where the dense leg did not answer."""


@dataclass(frozen=True)
class Quotation:
    """A sentence of a passage: characters `start` to `end` of the document's text are exactly `text`."""

    passage: FoundPassage
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Extract:
    """`quotations` in the order to be read; none when `is_answered` is false. `confidence` is 0 to 1."""

    is_answered: bool
    confidence: float
    quotations: tuple[Quotation, ...]


ANSWERED = 0.5
"""The confidence from which an answer is given."""
NOTHING = Extract(is_answered=False, confidence=0.0, quotations=())


def extract_answer(question: str, found: SearchOutcome) -> Extract:
    """Choose up to three sentences that speak of what the question asks, from the best passages found.

    A word of the question weighs its idf; one that no readable document holds weighs as much as the rarest that does,
    so that a question about something else is not answered by the words it shares with everything.
    """
    words = weigh_words(question, found.idf)
    total = sum(weight for _, weight in words)
    if not words or not found.passages:
        return NOTHING
    read = found.passages[:PASSAGES_READ]
    coverages = [_coverage(f"{passage.heading} {passage.text}", passage, words, total) for passage in read]
    confidence = max(_confidence(question, passage, share) for passage, share in zip(read, coverages, strict=True))
    if confidence < ANSWERED:
        return Extract(is_answered=False, confidence=round(confidence, 3), quotations=())
    quotations = [
        quotation
        for passage, share in zip(read, coverages, strict=True)
        for quotation in _quote(passage, share, words, total)
    ]
    ranked = sorted(quotations, key=lambda quotation: -quotation.score)
    best = [quoted for quoted in ranked if quoted.score >= MIN_SHARE_OF_BEST * ranked[0].score][:MAX_SENTENCES]
    return Extract(is_answered=True, confidence=round(confidence, 3), quotations=tuple(_in_order(best)))


def weigh_words(question: str, idf: Mapping[int, float]) -> list[tuple[frozenset[int], float]]:
    """The words of a question with their weights; `idf` knows the terms that some readable passage holds."""
    rarest = max(idf.values(), default=1.0)
    return [(word, max((idf[term] for term in word if term in idf), default=rarest)) for word in query_words(question)]


def _coverage(text: str, passage: FoundPassage, words: Sequence[tuple[frozenset[int], float]], total: float) -> float:
    """Share of the question's weight whose words stand in a text, 0 to 1."""
    terms = terms_of(text, detect_language(passage.text)).keys()
    return sum(weight for word, weight in words if not word.isdisjoint(terms)) / total


def _confidence(question: str, passage: FoundPassage, coverage: float) -> float:
    """0 to 1; `ANSWERED` is the threshold of the question's script."""
    if UNSPACED.search(question):
        return min(1.0, ANSWERED * coverage / MIN_COVERAGE_UNSPACED)
    if passage.dense is None:
        return min(1.0, ANSWERED * coverage / MIN_COVERAGE_DEGRADED)
    needed = MIN_SUPPORT_ENGLISH if detect_language(question) in (None, "english") else MIN_SUPPORT
    return min(1.0, ANSWERED * (coverage + max(passage.dense, 0.0)) / needed)


def _quote(
    passage: FoundPassage, passage_coverage: float, words: Sequence[tuple[frozenset[int], float]], total: float
) -> list[Quotation]:
    quotations = []
    for start, end in split_sentences(passage.text):
        sentence = passage.text[start:end]
        own = _coverage(sentence, passage, words, total)
        if not own:
            continue
        score = (1 - PASSAGE_SHARE) * own + PASSAGE_SHARE * passage_coverage * passage.score
        if NOT_A_SENTENCE.match(sentence):
            score *= PLACE_NOT_CLAIM
        quotations.append(
            Quotation(
                passage=passage,
                start=passage.start_char + start,
                end=passage.start_char + end,
                text=sentence,
                score=round(score, 4),
            )
        )
    return quotations


def _in_order(quotations: Sequence[Quotation]) -> list[Quotation]:
    """Best passage first, and inside a passage as it was written."""
    best: dict[object, float] = {}
    for quotation in quotations:
        key = quotation.passage.passage_id
        best[key] = max(best.get(key, 0.0), quotation.score)
    return sorted(quotations, key=lambda q: (-best[q.passage.passage_id], str(q.passage.passage_id), q.start))
