"""Is each sentence of an answer supported by the passage it cites?

A sentence is compared with the passages whose numbers it carries: by the share of its words that stand there and by the
cosine to the nearest sentence there. A figure that stands in no cited passage is never supported, however near the
rest comes. docs/adr/0031-grounding.md has the measurements; what this cannot see is a claim made of the passage's own
words in another order.
"""

from __future__ import annotations

import asyncio
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
LONGEST_SECONDS = 10.0
"""For the embedder, which many answers that end at once must share: an answer waits no longer for its check."""

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

    `passages` are the texts of the sources by their number in the answer. The embedder is asked of those claims only
    that words leave open; without it, or when it takes too long, words decide alone.
    """
    cited = {
        claim.cited: _Cited([passages[number] for number in claim.cited if number in passages]) for claim in claims
    }
    judged = [(claim, cited[claim.cited], _share(claim.text, cited[claim.cited])) for claim in claims]
    vectors = await _embed(embedding, [(claim, where) for claim, where, share in judged if share.leaves_open])
    return [
        claim
        for claim, where, share in judged
        # Where words decide, no cosine changes the verdict, and not all that is cited was embedded.
        if _score(claim.text, where, share, vectors if share.leaves_open else None) < SUPPORTED
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
    where = _Cited(passages)
    return _score(claim, where, _share(claim, where), vectors)


class _Cited:
    """Passages as a claim is held against them, made once for all claims that cite the same."""

    def __init__(self, passages: Sequence[str]) -> None:
        whole = "\n".join(passages)
        self.folded = whole.casefold()
        self.terms = terms_of(whole, detect_language(whole)).keys()
        self.figures = _figures(whole)
        self.sentences = [passage[start:end] for passage in passages for start, end in split_sentences(passage)]


@dataclass(frozen=True)
class _Share:
    """What words say: the share of a claim's that stand in its passages, and what a missing name takes; a claim without
    words, or with a figure that stands nowhere there, is refused."""

    words: float = 0.0
    missing: float = 0.0
    is_refused: bool = False

    @property
    def leaves_open(self) -> bool:
        """Whether some cosine would make it supported and another one not."""
        least = (1 - COSINE_SHARE) * self.words - self.missing
        return not self.is_refused and least < SUPPORTED <= least + COSINE_SHARE


def _share(claim: str, where: _Cited) -> _Share:
    words = query_words(claim)
    if not words or not where.folded or _figures(claim) - where.figures:
        return _Share(is_refused=True)
    unnamed = any(name not in where.folded for name in map(str.casefold, NAME.findall(claim)))
    found = sum(not word.isdisjoint(where.terms) for word in words)
    return _Share(found / len(words), MISSING_NAME * unnamed)


def _score(claim: str, where: _Cited, share: _Share, vectors: Mapping[str, NDArray[np.float32]] | None) -> float:
    if share.is_refused:
        return 0.0
    score = share.words
    if vectors is not None:
        cosines = [float(vectors[claim] @ vectors[each]) for each in where.sentences]
        score = (1 - COSINE_SHARE) * score + COSINE_SHARE * max([0.0, *cosines])
    return max(0.0, score - share.missing)


async def _embed(
    embedding: EmbeddingModel, claims: Sequence[tuple[Claim, _Cited]]
) -> dict[str, NDArray[np.float32]] | None:
    """Of claims and of all sentences they cite; None when words must decide alone."""
    ordered = sorted({claim.text for claim, _ in claims}.union(*(where.sentences for _, where in claims)))
    if not ordered:
        return {}
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            return dict(zip(ordered, await embedding.embed(ordered), strict=True))
    except (Unavailable, TimeoutError) as error:
        log.warning("grounding.words_only", code=getattr(error, "code", "too_slow"))
        return None


def _figures(text: str) -> set[str]:
    """The figures of a text, without the marks that group their digits: 1,000 and 1.000 are one figure."""
    return {re.sub("[.,]", "", figure) for figure in FIGURE.findall(text)}
