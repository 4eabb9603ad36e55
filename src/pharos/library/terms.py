"""Text to terms for the lexical leg: words folded and stemmed by language, bigrams where words have no spaces."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import Stemmer

from pharos.library.models import TERM_SPACE

WORD = re.compile(r"\w+")
# Han, Hiragana, Katakana, Hangul, Thai, Lao, Khmer, Burmese: written without spaces (or, Hangul, with particles
# glued on), so that a "word" would be a whole phrase. Character bigrams are the usual cure.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+")

# Function words: they tell the language of a text, and are not indexed.
FUNCTION_WORDS = {
    "english": "a an and are as at be been but by can did do does for from had has have how if in into is it its of on "
    "or than that the their there these they this those to was were what when where which who whom whose why will "
    "with would",
    "german": "aber als am an auch auf aus bei bis da das dass dem den der des die doch durch ein eine einem einen "
    "einer eines er es für hat hatte ich im in ist kann mit nach nicht noch nur oder sein sich sie sind so über um und "
    "unter vom von vor wann war waren warum was welche welchem welchen welcher welches wem wen wer wie wird wo wurde "
    "wurden zu zum zur zwischen",
    "french": "au aux avec ce ces cette comment dans de des du elle en est et il ils la le les leur mais ne ou où par "
    "pas pour quand que quel quelle quels qui sa se ses son sont sur un une été était",
    "spanish": "al cómo con cuál cuándo cuánto de del donde dónde el en entre era es está fue ha la las lo los más no "
    "o para pero por que qué quién se su sus un una y",
    "italian": "al alla che chi come con cosa da dal dei del della delle di dove e era gli ha i il in la le lo nel "
    "nella non o per perché più quale quali quando quanto si sono su un una è",
    "portuguese": "ao as com como da das de do dos e em entre era foi mais na nas no nos não o os onde para pela pelo "
    "por qual quando que quem se seu sua um uma é",
    "dutch": "aan als bij dat de den deze die dit door een en er het hoe in is met naar niet of om onder op te tot "
    "uit van voor waar wanneer waren was wat welke werd wie wordt zijn",
    "swedish": "att av de den det du då en ett från för har hur i inte med när och om på som till var vad vem vilken "
    "är",
    "russian": "а в во где для до его ее если и из или их к как какая какие какой когда кто мы на не но о об он она "
    "они от по при с со так то у что это",
    "turkish": "bir bu da de için ile kim mi nasıl ne neden nerede ve veya zaman",
}
STOP_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}
FALLBACK_LANGUAGE = "english"

_stemmers = {language: Stemmer.Stemmer(language) for language in FUNCTION_WORDS}


def detect_language(text: str) -> str | None:
    """The Snowball language whose function words the first 2,000 characters hold most of; None when they hold none."""
    words = Counter(_words(text[:2000]))
    scores = {language: sum(words[word] for word in stops if word in words) for language, stops in STOP_WORDS.items()}
    best = max(scores, key=lambda language: scores[language])
    return best if scores[best] else None


def terms_of(text: str, language: str | None = None) -> Counter[int]:
    """Term ids (1 to 1e9) with how often each stands in a text.

    `language` is a Snowball name; None detects it. A text and a question meet when both stem a word alike, so both
    must know their language.
    """
    language = language or detect_language(text) or FALLBACK_LANGUAGE
    stops = STOP_WORDS[language]
    counts: Counter[int] = Counter()
    for word in _words(text):
        if word not in stops:
            counts[_term_id(language, word)] += 1
    return counts


def query_terms(question: str) -> set[int]:
    """The terms a question looks for. One too short to show its language looks for its stems in every language:
    a stem of the wrong one is a word nobody wrote, and finds nothing."""
    language = detect_language(question)
    languages = [language] if language else list(STOP_WORDS)
    return {term for each in languages for term in terms_of(question, each)}


def term_id(stem: str) -> int:
    """A stable id of a stem. BLAKE2b over 1e9 ids: two words of a vocabulary of 100,000 share one in 1 of 20 cases."""
    digest = hashlib.blake2b(stem.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TERM_SPACE + 1


@lru_cache(maxsize=200_000)
def _term_id(language: str, word: str) -> int:
    return term_id(_stemmers[language].stemWord(word))


def _words(text: str) -> Iterator[str]:
    for match in WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = match.group()
        if word.isascii() or not UNSPACED.search(word):
            yield word
        else:
            yield from _split_unspaced(word)


def _split_unspaced(word: str) -> Iterator[str]:
    position = 0
    for run in UNSPACED.finditer(word):
        if run.start() > position:
            yield word[position : run.start()]
        characters = run.group()
        yield from (characters[i : i + 2] for i in range(max(1, len(characters) - 1)))
        position = run.end()
    if position < len(word):
        yield word[position:]
