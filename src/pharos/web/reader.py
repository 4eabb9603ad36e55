"""A document's text cut for reading: into pages, with one passage marked, a part at a time when it is long."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

PART_CHARS = 150_000
"""About 50 printed pages: a phone lays that out in well under a second, a novel at once takes it ten."""


@dataclass(frozen=True)
class Piece:
    """A run of text; `first` is true on the first marked one of the whole view."""

    text: str
    marked: bool = False
    first: bool = False


@dataclass(frozen=True)
class Page:
    """`number` counts from 1; None where the document has no pages."""

    number: int | None
    pieces: list[Piece]


@dataclass(frozen=True)
class View:
    """What one reading page shows; `part` counts from 1."""

    pages: list[Page]
    part: int
    parts: int
    has_passage: bool
    passage_missing: bool


def document_view(
    text: str, page_starts: Sequence[int], *, start: int | None, end: int | None, part: int | None = None
) -> View:
    """The part of `text` that holds characters `start` to `end` marked, or the part asked for, or the first.

    `page_starts` are ascending offsets of the pages' first characters, empty for a document without pages. A span
    outside the text marks nothing and is reported as `passage_missing`: the document was replaced since.
    """
    wanted = (start, end) if start is not None and end is not None else None
    span = wanted if wanted and 0 <= wanted[0] < wanted[1] <= len(text) else None
    bounds = _part_bounds(len(text), page_starts)
    last = len(bounds) - 1
    if part is not None:
        index = min(max(part - 1, 0), last)
    else:
        index = bisect_right([low for low, _ in bounds], span[0]) - 1 if span else 0
    low, high = bounds[index]
    if span and span[1] > high:
        high = span[1]
    pages = _pages(text, page_starts, low, high, span)
    return View(
        pages=pages,
        part=index + 1,
        parts=len(bounds),
        has_passage=any(piece.first for page in pages for piece in page.pieces),
        passage_missing=wanted is not None and span is None,
    )


def _part_bounds(length: int, page_starts: Sequence[int]) -> list[tuple[int, int]]:
    starts = [0]
    while length - starts[-1] > PART_CHARS:
        limit = starts[-1] + PART_CHARS
        page = bisect_right(page_starts, limit) - 1
        # A part ends where a page does; a page longer than a part is cut.
        on_page = page_starts[page] if page >= 0 and page_starts[page] > starts[-1] else limit
        starts.append(on_page)
    return list(zip(starts, [*starts[1:], length], strict=True))


def _pages(text: str, page_starts: Sequence[int], low: int, high: int, span: tuple[int, int] | None) -> list[Page]:
    cuts: list[tuple[int | None, int, int]]
    if not page_starts:
        cuts = [(None, low, high)] if high > low else []
    else:
        ends = [*page_starts[1:], len(text)]
        numbered = enumerate(zip(page_starts, ends, strict=True), start=1)
        cuts = [(n, max(a, low), min(b, high)) for n, (a, b) in numbered if a < high and b > low]
    seen = False
    pages = []
    for number, begin, stop in cuts:
        pieces = _pieces(text, begin, stop, span, mark_first=not seen)
        seen = seen or any(piece.marked for piece in pieces)
        pages.append(Page(number, pieces))
    return pages


def _pieces(text: str, begin: int, stop: int, span: tuple[int, int] | None, *, mark_first: bool) -> list[Piece]:
    if span is None or span[1] <= begin or span[0] >= stop:
        return [Piece(text[begin:stop])]
    first, last = max(span[0], begin), min(span[1], stop)
    pieces = [
        Piece(text[begin:first]),
        Piece(text[first:last], marked=True, first=mark_first),
        Piece(text[last:stop]),
    ]
    return [piece for piece in pieces if piece.text]
