"""Is each sentence of an answer supported by the passage it cites?

A sentence is compared with the passages whose numbers it carries: by the share of its words that stand there and by the
cosine to the nearest sentence there. A figure that stands in no cited passage is never supported, however near the
rest comes. docs/adr/0031-grounding.md has the measurements; what this cannot see is a claim made of the passage's own
words in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pharos.chat.citations import MARKS
from pharos.chat.sentences import split_sentences
from pharos.infra.errors import Unavailable
from pharos.infra.logs import get_logger
from pharos.library.terms import detect_language, query_words, terms_of
from pharos.providers.contract import EmbeddingModel

if TYPE_CHECKING:  # a command that checks nothing need not wait for its library
    import numpy as np
    from numpy.typing import NDArray

log = get_logger(__name__)

SUPPORTED = 0.44
"""From this score a sentence counts as supported: the best F1 on one half of the cases in benchmarks/grounding.py."""
COSINE_SHARE = 0.3
MISSING_NAME = 0.15
"""What a name that no cited passage holds takes from the score. More would refuse sentences that call things by other
names; figures have no other names, so a missing one decides alone."""

FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
NAME = re.compile(r"(?<=[^\W\d_] )[^\W\d_a-z][\w-]{2,}")
"""A capitalised word inside a sentence. German writes every noun so: there it is any noun."""
ENDED = re.compile(r"(?:[.!?…。！？]['\")”’»]*|\])$")
NOT_A_CLAIM = re.compile(r"\s*(?:#{1,6}\s|```|={3,}|-{3,})|.*[:?：？]\s*$", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """A sentence of an answer: characters `start` to `end` of its text; `cited` are the numbers of its sources."""

    start: int
    end: int
    text: str
    cited: tuple[int, ...]


async def find_unsupported(
    embedding: EmbeddingModel, claims: Sequence[Claim], passages: Mapping[int, str]
) -> list[Claim]:
    """Those of an answer's claims that the passages they cite do not support; those that cite nothing are among them.

    `passages` are the texts of the sources by their number in the answer. Without the embedder words decide alone.
    """
    texts = {number: passage for number, passage in passages.items() if any(number in claim.cited for claim in claims)}
    vectors = await _embed(embedding, claims, texts)
    return [
        claim
        for claim in claims
        if support(claim.text, [texts[number] for number in claim.cited if number in texts], vectors) < SUPPORTED
    ]


def judged_claims(body: str, *, is_cut: bool = False) -> list[Claim]:
    """The claims of an answer; of one that was cut off without the half sentence at its end, of which nobody can say.

    >>> [claim.text for claim in judged_claims("It turns [2]. It was bui", is_cut=True)]
    ['It turns.']
    """
    claims = list(claims_of(body))
    is_half = is_cut and claims and not body[claims[-1].end :].strip() and not ENDED.search(body.rstrip())
    return claims[:-1] if is_half else claims


def claims_of(body: str) -> Iterator[Claim]:
    """The sentences of an answer that claim something, without their marks.

    A sentence without a mark rests on those of the next one in its paragraph: models cite at the end of a thought.

    >>> [(claim.text, claim.cited) for claim in claims_of("It turns. It shines [2].")]
    [('It turns.', (2,)), ('It shines.', (2,))]
    """
    for paragraph in re.finditer(r"[^\n]+", body):
        cited: tuple[int, ...] = ()
        claims = []
        for start, end in reversed(split_sentences(paragraph.group())):
            sentence = paragraph.group()[start:end]
            cited = tuple(int(n) for marks in MARKS.finditer(sentence) for n in re.findall(r"\d+", marks[2])) or cited
            text = MARKS.sub("", sentence).strip()
            if not NOT_A_CLAIM.fullmatch(text) and not NOT_A_CLAIM.match(sentence) and query_words(text):
                claims.append(Claim(paragraph.start() + start, paragraph.start() + end, text, cited))
        yield from reversed(claims)


def support(claim: str, passages: Sequence[str], vectors: Mapping[str, NDArray[np.float32]] | None = None) -> float:
    """How far passages together support a claim: 0 to 1, `SUPPORTED` is the threshold.

    `vectors` holds the claim and every sentence of the passages; without it words decide alone.
    """
    whole = "\n".join(passages)
    words = query_words(claim)
    if not words or _figures(claim) - _figures(whole):
        return 0.0
    said = terms_of(whole, detect_language(whole)).keys()
    score = sum(not word.isdisjoint(said) for word in words) / len(words)
    if vectors is not None:
        cosines = (float(vectors[claim] @ vectors[sentence]) for each in passages for sentence in _sentences(each))
        score = (1 - COSINE_SHARE) * score + COSINE_SHARE * max(cosines, default=0.0)
    unnamed = any(name not in whole.casefold() for name in map(str.casefold, NAME.findall(claim)))
    return max(0.0, score - MISSING_NAME * unnamed)


async def _embed(
    embedding: EmbeddingModel, claims: Sequence[Claim], texts: Mapping[int, str]
) -> dict[str, NDArray[np.float32]] | None:
    wanted = {claim.text for claim in claims}.union(*map(_sentences, texts.values()))
    if not wanted:
        return None
    ordered = sorted(wanted)
    try:
        return dict(zip(ordered, await embedding.embed(ordered), strict=True))
    except Unavailable as error:
        log.warning("grounding.words_only", code=error.code)
        return None


def _sentences(passage: str) -> list[str]:
    return [passage[start:end] for start, end in split_sentences(passage)]


def _figures(text: str) -> set[str]:
    """The figures of a text, without the marks that group their digits: 1,000 and 1.000 are one figure."""
    return {re.sub("[.,]", "", figure) for figure in FIGURE.findall(text)}
