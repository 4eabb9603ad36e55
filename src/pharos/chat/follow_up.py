"""What to search for when a question goes on from earlier ones: “And in winter?” finds nothing by itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from pharos.chat.history import Turn
from pharos.identity.principal import Principal
from pharos.infra.errors import PharosError
from pharos.infra.logs import get_logger
from pharos.library.terms import FALLBACK_LANGUAGE, UNSPACED, detect_language, query_words, terms_of
from pharos.providers.contract import Call, Candidate, ChatMessage, ChatRequest
from pharos.runtime import Runtime

log = get_logger(__name__)

SHORT_WORDS = 3
"""A question with so few words that carry meaning leans on what was said before."""
LEANING = re.compile(
    r"\b(?:it|its|they|them|their|this|that|these|those|he|she|his|her|there|then|also|"
    r"er|sie|es|ihn|ihm|ihr|ihre|deren|dessen|dies|diese[rsnm]?|jene[rsnm]?|dort|davon|dazu|damit|auch)\b"
    r"|^\s*(?:and|but|so|why|how so|und|aber|warum)\b",
    re.IGNORECASE,
)
MAX_REWRITTEN_CHARACTERS = 400
REWRITE_SECONDS = 5.0
"""A model that is silent for longer would be waited for twice: here, and for the answer."""
Until = Callable[[AsyncIterator[str]], AsyncIterator[str]]
REWRITE = """\
Rewrite the last question so that it can be understood without the conversation before it. Keep its language and its
meaning, name what its pronouns stand for, answer nothing. Reply with the question alone."""


def leans_on_history(question: str) -> bool:
    """Whether a question is short or speaks of something named before.

    >>> leans_on_history("And in winter?"), leans_on_history("When was the roof of building C renewed by Hansen?")
    (True, False)
    """
    if UNSPACED.search(question):
        return len(question.strip()) <= 8
    return len(query_words(question)) <= SHORT_WORDS or LEANING.search(question) is not None


def stands_alone(turn: Turn) -> bool:
    """Whether to search for a turn's question as it is."""
    return not turn.history or not leans_on_history(turn.question)


def standalone(question: str, history: Sequence[tuple[str, str]]) -> str:
    """The question with the words of the last one, where it leans on it: an honest rule that needs no model.

    Of 12 follow-ups over 8 short documents 12 are then answered from the right one, 8 by the question alone
    (tests/chat/test_follow_up.py).
    """
    last = next((text for role, text in reversed(history) if role == "user"), None)
    if last is None or not leans_on_history(question):
        return question
    known = {term for word in query_words(question) for term in word}
    language = detect_language(last) or FALLBACK_LANGUAGE
    added = [word for word in re.findall(r"[\w'’-]+", last) if _says_something(word, language, known)]
    return f"{question} {' '.join(dict.fromkeys(added))}" if added else question


async def find_search_text(
    runtime: Runtime, principal: Principal, turn: Turn, candidates: tuple[Candidate, ...], *, until: Until
) -> str:
    """What to search for: the question, and where it leans on earlier ones, rewritten by the model or by rule.

    `until` ends the model's words when nobody wants them any more.
    """
    if stands_alone(turn):
        return turn.question
    by_rule = standalone(turn.question, turn.history)
    if not candidates:
        return by_rule
    said = "\n".join(f"{role}: {text[:1000]}" for role, text in turn.history[-4:])
    asked = ChatMessage("user", f"{said}\n\nLast question: {turn.question}")
    request = ChatRequest((ChatMessage("system", REWRITE), asked), max_tokens=80)
    words = ""
    try:
        stream = runtime.models.stream(principal.tenant_id, candidates, request, Call(purpose="rewrite"))
        async with asyncio.timeout(REWRITE_SECONDS), aclosing(stream):
            async for piece in until(stream):
                words += piece
    except (PharosError, TimeoutError) as error:
        log.warning("rewrite.failed", code=error.code if isinstance(error, PharosError) else "too_slow")
        return by_rule
    rewritten = " ".join(words.split())
    return rewritten if 0 < len(rewritten) <= MAX_REWRITTEN_CHARACTERS else by_rule


def _says_something(word: str, language: str, known: set[int]) -> bool:
    terms = terms_of(word, language).keys()
    return bool(terms) and known.isdisjoint(terms)
