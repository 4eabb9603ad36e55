"""Cut a text into passages of about 200 tokens, each an exact slice of it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from pharos.library.terms import UNSPACED

CHARACTERS_PER_TOKEN = 4.4
"""English prose in MiniLM's WordPiece; measured. Splitting by characters is 150 times faster than by tokens."""
CHARACTERS_PER_TOKEN_UNSPACED = 1.0
MAX_HEADING_CHARACTERS = 200
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Piece:
    """`text` is characters `start` to `end` of the source; `page` counts from 1, None where there are no pages;
    `heading` is the path of Markdown headings above it, outermost first, joined by " > "."""

    start: int
    end: int
    page: int | None
    heading: str
    text: str


def split_text(
    text: str, *, page_starts: Sequence[int] = (), max_tokens: int = 200, markdown: bool = False
) -> list[Piece]:
    """All of a text but blank space, in order. A passage never crosses the border of a page, so that its page is right.

    `page_starts` are ascending character offsets; `max_tokens` is an estimate, kept well below the model's 256.
    """
    headings = list(_headings(text)) if markdown else []
    heading_starts = [start for start, _ in headings]
    pieces: list[Piece] = []
    for number, (page_start, page_end) in enumerate(_pages(len(text), page_starts), start=1):
        for start, end in _slices(text, page_start, page_end, max_tokens=max_tokens, markdown=markdown):
            above = bisect_right(heading_starts, start) - 1
            pieces.append(
                Piece(
                    start=start,
                    end=end,
                    page=number if page_starts else None,
                    heading=headings[above][1] if above >= 0 else "",
                    text=text[start:end],
                )
            )
    return pieces


def _pages(length: int, page_starts: Sequence[int]) -> list[tuple[int, int]]:
    if not page_starts:
        return [(0, length)]
    starts = [0, *page_starts[1:]]
    return list(zip(starts, [*starts[1:], length], strict=True))


def _slices(text: str, start: int, end: int, *, max_tokens: int, markdown: bool) -> Iterator[tuple[int, int]]:
    page = text[start:end]
    if not page.strip():
        return
    splitter = _splitter(_max_characters(page, max_tokens), markdown)
    for offset, piece in splitter.chunk_indices(page):
        lead = len(piece) - len(piece.lstrip())
        body = piece.strip()
        if body:
            yield start + offset + lead, start + offset + lead + len(body)


def _max_characters(page: str, max_tokens: int) -> int:
    unspaced = sum(len(run) for run in UNSPACED.findall(page)) / len(page)
    per_token = unspaced * CHARACTERS_PER_TOKEN_UNSPACED + (1 - unspaced) * CHARACTERS_PER_TOKEN
    return max(50, int(max_tokens * per_token) // 10 * 10)


@lru_cache(maxsize=512)
def _splitter(max_characters: int, markdown: bool) -> TextSplitter | MarkdownSplitter:
    return MarkdownSplitter(max_characters) if markdown else TextSplitter(max_characters)


def _headings(text: str) -> Iterator[tuple[int, str]]:
    path: list[tuple[int, str]] = []
    for match in HEADING.finditer(text):
        level = len(match.group(1))
        path = [(above, title) for above, title in path if above < level] + [(level, match.group(2))]
        yield match.start(), " > ".join(title for _, title in path)[:MAX_HEADING_CHARACTERS]
