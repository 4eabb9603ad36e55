"""An answer without a model: the sentences that say it, word for word, or an honest "not in these documents"."""

from __future__ import annotations

import re
import unicodedata
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

ASKING_UNSPACED = re.compile(
    "为什么|為什麼|什么时候|什麼時候|什么|什麼|甚麼|多少|多久|多长|多大|几|幾|谁|誰|哪里|哪裡|哪儿|哪个|哪些|哪|怎么样|怎么|怎麼|怎样|怎樣|如何|何时|何時|是否|吗|嗎|呢"
    "|ですか|ますか|いつ|どこ|だれ|いくつ|いくら|どう|なに|なぜ"
)
"""What asks in Chinese and Japanese: its bigrams, and those across its borders, stand in no answer."""
DEFINITION = re.compile(
    r"\s*(?:what(?:'s|\s+is|\s+are|\s+was|\s+were)|who(?:'s|\s+is|\s+was)|was\s+(?:ist|sind|war)|wer\s+(?:ist|war))\s+"
    r"(?P<subject>[^?]+?)[\s?]*|(?P<unspaced>[^?？]+?)是(?:什么|什麼|谁|誰)[?？\s]*|什么是(?P<after>[^?？]+?)[?？\s]*",
    re.IGNORECASE,
)
ARTICLE = re.compile(r"(?:the|an?|der|die|das|ein|eine)\s+", re.IGNORECASE)
MAX_SUBJECT_WORDS = 4
"""A longer subject ("the name of the port of Rome") describes the answer and is not the name that is explained."""
NOT_DEFINING = 0.75
"""Where the question is "What is X?", other sentences weigh less than "X is a …", those of a better passage too."""

MIN_SUPPORT = 0.70
"""Coverage plus cosine from which a passage is about the question. Coverage is the share of the question's weight whose
words stand in the passage. The figures are in docs/adr/0023-extractive-answers.md."""
MIN_SUPPORT_ENGLISH = 0.80
"""The same for English, where cosines are higher all round: questions share a cosine of .2 with anything written."""
MIN_COVERAGE_UNSPACED = 0.26
"""The same where words are character bigrams: many of a question's bigrams straddle two words and stand nowhere, and
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
    coverages = [_coverage(_claims(question, passage), passage, words, total) for passage in read]
    confidence = max(_confidence(question, passage, share) for passage, share in zip(read, coverages, strict=True))
    if confidence < ANSWERED:
        return Extract(is_answered=False, confidence=round(confidence, 3), quotations=())
    quotations = [
        quotation
        for passage, share in zip(read, coverages, strict=True)
        for quotation in _quote(question, passage, share, words, total)
    ]
    if not quotations:
        return NOTHING
    ranked = sorted(quotations, key=lambda quotation: -quotation.score)
    best = [quoted for quoted in ranked if quoted.score >= MIN_SHARE_OF_BEST * ranked[0].score][:MAX_SENTENCES]
    return Extract(is_answered=True, confidence=round(confidence, 3), quotations=tuple(_in_order(best)))


def weigh_words(question: str, idf: Mapping[int, float]) -> list[tuple[frozenset[int], float]]:
    """The words of a question with their weights; `idf` knows the terms that some readable passage holds."""
    rarest = max(idf.values(), default=1.0)
    asked_of = query_words(_without_asking(question)) or query_words(question)
    return [(word, max((idf[term] for term in word if term in idf), default=rarest)) for word in asked_of]


def _without_asking(question: str) -> str:
    """A question without the words that ask, where these have no spaces around them; else as it is.

    A single character that is left over (the 天 of 多少天) is dropped: passages are known by their pairs.
    """
    runs = ASKING_UNSPACED.sub(" ", question)
    return (
        question if runs == question else UNSPACED.sub(lambda run: run.group() if len(run.group()) > 1 else " ", runs)
    )


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
    question: str,
    passage: FoundPassage,
    passage_coverage: float,
    words: Sequence[tuple[frozenset[int], float]],
    total: float,
) -> list[Quotation]:
    quotations = []
    defines = _definition_of(question)
    answers_next = False
    for start, end in split_sentences(passage.text):
        sentence = passage.text[start:end]
        if _repeats(question, sentence):
            answers_next = _is_only(question, sentence)
            continue
        # What follows the question itself is its answer, in whatever words.
        own = 1.0 if answers_next else _coverage(sentence, passage, words, total)
        answers_next = False
        if not own:
            continue
        score = (1 - PASSAGE_SHARE) * own + PASSAGE_SHARE * passage_coverage * passage.score
        if NOT_A_SENTENCE.match(sentence):
            score *= PLACE_NOT_CLAIM
        if defines is not None and not defines.match(sentence):
            score *= NOT_DEFINING
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


def _claims(question: str, passage: FoundPassage) -> str:
    """The words of a passage that may support an answer: where the question is only mentioned, nothing answers it.

    A heading that is the question counts: what stands below it is the answer.
    """
    text = f"{passage.heading} {passage.text}"
    if not _repeats(question, text):
        return text
    sentences = (passage.text[start:end] for start, end in split_sentences(passage.text))
    said = [each for each in sentences if not _repeats(question, each) or _is_only(question, each)]
    return " ".join([passage.heading, *said])


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _asked(question: str) -> str:
    return _folded(question).rstrip("? ") + "?"


def _repeats(question: str, text: str) -> bool:
    """Whether the question stands in a text word for word, with its question mark."""
    return _asked(question) in _folded(text)


def _is_only(question: str, sentence: str) -> bool:
    """Whether a sentence is the question and nothing else but marks and a number, as in a list of questions."""
    rest = _folded(sentence).replace(_asked(question), "")
    return re.search(r"[^\W\d_]{2}", rest) is None


def _definition_of(question: str) -> re.Pattern[str] | None:
    """What the beginning of a sentence looks like that says what X is; None where the question does not ask that."""
    match = DEFINITION.fullmatch(question)
    if match is None:
        return None
    subject = ARTICLE.sub("", next(group for group in match.groups() if group).strip(), count=1)
    if not subject or len(subject.split()) > MAX_SUBJECT_WORDS:
        return None
    name = r"\s+".join(re.escape(word) for word in subject.split())
    return re.compile(
        rf"\W*(?:(?:the|an?|der|die|das|ein|eine)\s+)?{name}\W{{0,3}}(?:\([^)]{{0,80}}\)\W{{0,3}})?"
        rf"(?:\b(?:is|are|was|were|means|refers\s+to|ist|sind|war|bezeichnet)\b|是|指)",
        re.IGNORECASE,
    )


def _in_order(quotations: Sequence[Quotation]) -> list[Quotation]:
    """Best passage first, and inside a passage as it was written."""
    best: dict[object, float] = {}
    for quotation in quotations:
        key = quotation.passage.passage_id
        best[key] = max(best.get(key, 0.0), quotation.score)
    return sorted(quotations, key=lambda q: (-best[q.passage.passage_id], str(q.passage.passage_id), q.start))
