"""Text to terms for the lexical leg: words folded and stemmed by language, bigrams where words have no spaces.

Passages and questions must meet, so both come through `_words` and `_stem`. A question is often too short to show its
language, and is then looked up with the stems of every language it could be in.
"""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections import Counter
from functools import lru_cache

import Stemmer

from pharos.library.languages import LATIN_LANGUAGES, is_function_word, language_of
from pharos.library.models import TERM_SPACE

# Han, Hiragana, Katakana, Hangul, Thai, Lao, Khmer, Burmese: written without spaces (or, Hangul, with particles
# glued on), so that a "word" would be a whole phrase. Character bigrams are the usual cure: without them Chinese
# questions find their passage in one case of nine, with them in nineteen of twenty.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_UNSPACED}]+")
# Vowel signs belong to the word: `\w` alone would cut हिन्दी into four.
_MARKS = "".join(chr(code) for code in range(0x300, 0x1E00) if unicodedata.category(chr(code)) in {"Mn", "Mc"})
WORD = re.compile(f"(?P<unspaced>[{_UNSPACED}]+)|(?:[^\\W_{_UNSPACED}]|[{_MARKS}])+")
ACCENT = re.compile("[\u0300-\u036f]")

STEMMER_BY_SCRIPT = {
    "CYRILLIC": "russian",
    "GREEK": "greek",
    "ARABIC": "arabic",
    "DEVANAGARI": "hindi",
    "ARMENIAN": "armenian",
    "TAMIL": "tamil",
}
FALLBACK_LANGUAGE = "english"
MIN_STEMMED_CHARACTERS = 3
EVIDENCE_CHARACTERS = 4000

_stemmers: dict[str, Stemmer.Stemmer] = {}
_stemmers_lock = threading.Lock()  # a Snowball stemmer keeps its buffers between calls


def detect_language(text: str) -> str | None:
    """The Snowball language whose function words the beginning of a text holds most of; None when nothing tells."""
    return language_of(_words(text[:EVIDENCE_CHARACTERS]))


def terms_of(text: str, language: str | None = None) -> Counter[int]:
    """Term ids (1 to 1e9) with how often each stands in a text, function words left out.

    `language` is a Snowball name; None detects it. A text and a question meet when both stem a word alike, so both
    must know their language.
    """
    words = _words(text)
    language = language or language_of(words) or FALLBACK_LANGUAGE
    return Counter([_term_id(word, language) for word in words if not is_function_word(word, language)])


def query_terms(question: str) -> set[int]:
    """The terms a question looks for, of all its words."""
    return {term for word in query_words(question) for term in word}


def query_words(question: str) -> list[frozenset[int]]:
    """Each word of a question, function words left out, as the terms that stand for it.

    A question too short to show its language has a word's stems in every language it could be in: a stem of the wrong
    one is a word nobody wrote, and finds nothing.
    """
    words = _words(question)
    language = language_of(words)
    languages = (language,) if language else LATIN_LANGUAGES
    stems = {
        word: frozenset(_term_id(word, each) for each in languages if not is_function_word(word, each))
        for word in words
    }
    return [terms for terms in stems.values() if terms]


def term_id(stem: str) -> int:
    """A stable id of a stem. BLAKE2b over 1e9 ids: of a vocabulary of 100,000 some five pairs share one."""
    digest = hashlib.blake2b(stem.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TERM_SPACE + 1


def _words(text: str) -> list[str]:
    """Folded words in their order; of unspaced scripts each pair of neighbours, a single character alone."""
    words: list[str] = []
    for match in WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = match.group()
        if match.lastgroup is None or len(word) == 1:
            words.append(word)
        else:
            words.extend(word[start : start + 2] for start in range(len(word) - 1))
    return words


@lru_cache(maxsize=200_000)
def _term_id(word: str, language: str) -> int:
    return term_id(_stem(word, language))


def _stem(word: str, language: str) -> str:
    """The word without its ending, then without accents: who types `cafe` finds `café`."""
    script = _script(word[0])
    stemmer = language if script == "LATIN" else STEMMER_BY_SCRIPT.get(script)
    if stemmer and len(word) >= MIN_STEMMED_CHARACTERS:
        word = _stemmed(word, stemmer)
    return word if word.isascii() else ACCENT.sub("", unicodedata.normalize("NFD", word))


def _stemmed(word: str, language: str) -> str:
    with _stemmers_lock:
        if language not in _stemmers:
            _stemmers[language] = Stemmer.Stemmer(language, 0)
        stem: str = _stemmers[language].stemWord(word)
        return stem


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """The script by the first word of the character's Unicode name: LATIN, CYRILLIC, CJK…"""
    return unicodedata.name(character, "UNKNOWN").split(maxsplit=1)[0]
