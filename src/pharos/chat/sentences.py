"""Text to sentences with exact character spans: what an extractive answer quotes and a claim check compares.

Rules, not a model: a wrong cut costs half a quotation, never a wrong span. English, German and Chinese are measured
(docs/adr/0023-extractive-answers.md); other scripts fall back to their own full stops or to the length cap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_SENTENCE_CHARS = 600
"""Longer runs (tables, lists without full stops, code) are cut: a citation should be readable at a glance."""

_WRAPPED_LINE_WIDTH = 30
"""A line at least this wide may have been broken by a page margin; a narrower one ends where its author ended it."""

_CLOSERS = "\"'”’»›)\\]」』）】》"
_STOP = re.compile(
    rf"[。！？｡؟।]+[{_CLOSERS}]*"  # full stops that need no space after them
    rf"|[.!?…]+[{_CLOSERS}]*(?:\[\d{{1,3}}\])*(?=\s)"  # "end.[12] Next": note marks belong to the sentence before
    r"|\n"
)
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•‣◦▪–]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])[ \t]+\S")
_LINE_OF_ITS_OWN = re.compile(r"[ \t]*(?:#{1,6}[ \t]|\||```|>|=== |---|\Z)|.*\t.*\t")
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“„«‚]+\Z")
_INITIAL = re.compile(r"(?:\w\.)*\w")
_ORDINAL = re.compile(r"\d{1,2}")
_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uff60]")
_SOFTER_CUTS = (re.compile(r"\n"), re.compile(r"[;；:：]\s*"), re.compile(r"[,，、]\s*"), re.compile(r"\s"))

_ENGLISH = """
mr mrs ms dr prof st sr jr gen col lt sgt capt cmdr rev hon gov sen rep pres messrs mme mlle vs etc al cf ca e.g i.e viz
approx est fig figs eq eqs sec secs ch vol vols no nos pp ed eds inc ltd co corp dept univ assn ave blvd rd jan feb mar
apr jun jul aug sep sept oct nov dec ph.d a.m p.m
"""
_GERMAN = """
bzw evtl ggf inkl exkl max min mind zzgl abzgl bspw vgl sog usw usf nr str tel abs art kap abb tab bd jh jhd mio mrd tsd
hr fr frl dipl ing hl geb gest verh stellv ehem insb allg bes urspr lat griech engl franz dt österr schweiz mwst gegr
"""
_ROMANCE = "sra srta ud uds pág págs núm av ee.uu mm env chap sig sigg ecc pag"
_BEFORE_ORDINAL = "am vom im dem der des den das die zum zur beim ab bis seit und oder dieser diesem jeder jedem"
_AFTER_ORDINAL = """
januar jänner februar märz april mai juni juli august september oktober november dezember
jahrhundert jahrhunderts lebensjahr jahrestag platz mal auflage klasse stock weltkrieg
"""
_ABBREVIATIONS = frozenset(f"{_ENGLISH} {_GERMAN} {_ROMANCE}".split())
_GERMAN_BEFORE_ORDINAL = frozenset(_BEFORE_ORDINAL.split())
_GERMAN_AFTER_ORDINAL = frozenset(_AFTER_ORDINAL.split())


class Span(NamedTuple):
    """Characters `start` up to and without `end` of the text it was made from."""

    start: int
    end: int


def split_sentences(text: str, *, max_chars: int = MAX_SENTENCE_CHARS) -> list[Span]:
    """The sentences of `text` in order: spans that do not overlap, are not empty, and have no space at their ends.

    Between and around them stands nothing but white space, so no text is lost. A line of its own (heading, list item,
    table row) is a sentence; a line broken by a page margin is not. Marks without a word join the sentence before them.
    No span is longer than `max_chars` (at least 1): a longer one is cut at a line end, a semicolon, a comma, a space,
    or in the middle of a word, in this order.

    >>> for line in ["Dr. No pays 3.5 %. Z. B. Öl! 你好。再见"]:
    ...     [line[start:end] for start, end in split_sentences(line)]
    ['Dr. No pays 3.5 %.', 'Z. B. Öl!', '你好。', '再见']
    """
    spans: list[Span] = []
    start = 0
    for end in [*_boundaries(text), len(text)]:
        span = _trimmed(text, start, end)
        start = end
        if span is None:
            continue
        if spans and _is_only_marks(text, span) and span.end - spans[-1].start <= max_chars:
            spans[-1] = Span(spans[-1].start, span.end)
        else:
            spans.extend(_capped(text, span, max_chars))
    return spans


def _boundaries(text: str) -> Iterator[int]:
    """Positions in rising order at which one sentence ends."""
    for match in _STOP.finditer(text):
        first = text[match.start()]
        if first == "\n":
            if not _is_wrapped_line(text, match.start()):
                yield match.end()
        elif first in ".!?…":
            if _ends_sentence(text, match.start(), match.end()):
                yield match.end()
        else:
            yield match.end()


def _ends_sentence(text: str, stop: int, after: int) -> bool:
    """Whether the Latin full stop at `stop`, whose marks and quotes run up to `after`, ends a sentence."""
    rest = text[after : after + 80].lstrip()
    if rest[:1].islower():
        return False
    if text[stop] != "." or after - stop > 1:
        return True
    line_start = text.rfind("\n", 0, stop) + 1
    before = _WORD_BEFORE.search(text, max(line_start, stop - 40), stop)
    if before is None:
        return True
    word = before.group()
    if not text[line_start : before.start()].strip() and _LIST_ITEM.match(text, line_start):
        return False  # the stop of "1." or "a." that numbers a list item
    if _ORDINAL.fullmatch(word):
        return not _is_german_ordinal(text[max(line_start, before.start() - 20) : before.start()], rest)
    return not _is_abbreviation(word)


def _is_abbreviation(word: str) -> bool:
    """ "e.g", "Fig", "J": a word before a full stop that rarely ends a sentence."""
    return word.casefold().strip(".") in _ABBREVIATIONS or (
        _INITIAL.fullmatch(word) is not None and not word[-1].isdigit() and not _WIDE.match(word)
    )


def _is_german_ordinal(before: str, rest: str) -> bool:
    """ "am 3. Oktober", "im 19. Jahrhundert": a number whose stop makes it an ordinal."""
    words = before.split()
    following = re.match(r"\w+", rest)
    return (bool(words) and words[-1].casefold() in _GERMAN_BEFORE_ORDINAL) or (
        following is not None and following.group().casefold() in _GERMAN_AFTER_ORDINAL
    )


def _is_wrapped_line(text: str, newline: int) -> bool:
    """Whether the sentence goes on after this line end, as in text set to a page margin."""
    line_start = text.rfind("\n", 0, newline) + 1
    next_end = text.find("\n", newline + 1)
    line = text[line_start:newline].rstrip()
    following = text[newline + 1 : next_end if next_end >= 0 else len(text)]
    if _LINE_OF_ITS_OWN.match(line) or _LINE_OF_ITS_OWN.match(following) or _LIST_ITEM.match(following):
        return False
    if following.lstrip()[:1].islower():
        return True
    return len(line) + len(_WIDE.findall(line)) >= _WRAPPED_LINE_WIDTH


def _is_only_marks(text: str, span: Span) -> bool:
    return not any(character.isalnum() for character in text[span.start : span.end])


def _trimmed(text: str, start: int, end: int) -> Span | None:
    part = text[start:end]
    inner = part.strip()
    if not inner:
        return None
    start += len(part) - len(part.lstrip())
    return Span(start, start + len(inner))


def _capped(text: str, span: Span, max_chars: int) -> Iterator[Span]:
    """`span` in pieces of at most `max_chars`, none of them empty."""
    start, end = span
    while end - start > max_chars:
        cut = _soft_cut(text, start, start + max_chars)
        piece = _trimmed(text, start, cut)
        if piece is not None:
            yield piece
        start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    if start < end:
        yield Span(start, end)


def _soft_cut(text: str, start: int, limit: int) -> int:
    """The last place to cut in the second half of start..limit, so that pieces do not crumble; else `limit`."""
    middle = (start + limit + 1) // 2
    for pattern in _SOFTER_CUTS:
        cuts = [match.end() for match in pattern.finditer(text, middle, limit) if match.end() > start]
        if cuts:
            return cuts[-1]
    return limit
