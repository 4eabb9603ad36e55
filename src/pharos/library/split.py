"""Cut a text into passages of about 200 tokens, each an exact slice of it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from pharos.library.terms import UNSPACED
from pharos.providers.embedder.model import TOKENIZER_FILE, model_folder

CountTokens = Callable[[list[str]], list[int]]
"""Tokens of each text, without the two marks that a model adds."""

MOST_TOKENS = 254
"""What the model takes beside its two marks; it would cut a longer passage off, and that text would never be found."""
CHARACTERS_PER_TOKEN = 4.4
"""English prose in MiniLM's WordPiece; measured. Used where no tokenizer is at hand."""
CHARACTERS_PER_TOKEN_UNSPACED = 1.0
SAMPLES, SAMPLE_CHARACTERS = 8, 1000
SMALLEST_CHARACTERS = 16
MAX_CHARACTERS_A_TOKEN = 12
"""Layout made of blanks, or a word of 5,000 letters, costs few tokens and would make a passage that nobody can read."""
MAX_HEADING_CHARACTERS = 200
HEADING_OR_FENCE = re.compile(
    r"^ {0,3}(?:(?P<fence>```+|~~~+)|(?P<marks>#{1,6})[ \t]+(?P<title>.+?)[ \t]*#*\r?$)", re.M
)


@dataclass(frozen=True)
class Piece:
    """`text` is characters `start` to `end` of the source; `page` counts from 1, None where there are no pages;
    `heading` is the path of Markdown headings above it, outermost first, joined by " > "."""

    start: int
    end: int
    page: int | None
    heading: str
    text: str


@lru_cache(maxsize=4)
def token_counter(models_dir: Path) -> CountTokens | None:
    """Counts as the local model does; None where it is not prepared (an embedder elsewhere): then it is estimated."""
    file = model_folder(models_dir) / TOKENIZER_FILE
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return count


def split_text(
    text: str,
    *,
    page_starts: Sequence[int] = (),
    max_tokens: int = 200,
    markdown: bool = False,
    count_tokens: CountTokens | None = None,
) -> list[Piece]:
    """All of a text but blank space, in order. A passage never crosses the border of a page, so that its page is right.

    `page_starts` are ascending character offsets. Pieces are cut by characters, as many as `max_tokens` take in this
    text: that is 100 times faster than cutting by tokens, and some pieces come out a little longer. With
    `count_tokens` all are counted and none has more than `MOST_TOKENS`.
    """
    max_characters = _max_characters(text, max_tokens, count_tokens)
    headings = list(_headings(text)) if markdown else []
    heading_starts = [start for start, _ in headings]
    pieces: list[Piece] = []
    for number, (page_start, page_end) in enumerate(_pages(len(text), page_starts), start=1):
        slices = list(_slices(text, page_start, page_end, max_characters=max_characters, markdown=markdown))
        for start, end in _fitting(text, slices, count_tokens) if count_tokens else slices:
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


def _slices(text: str, start: int, end: int, *, max_characters: int, markdown: bool) -> Iterator[tuple[int, int]]:
    page = text[start:end]
    if not page.strip():
        return
    for offset, piece in _splitter(max_characters, markdown).chunk_indices(page):
        lead = len(piece) - len(piece.lstrip())
        body = piece.strip()
        if body:
            yield start + offset + lead, start + offset + lead + len(body)


def _fitting(text: str, slices: list[tuple[int, int]], count_tokens: CountTokens) -> Iterator[tuple[int, int]]:
    """The slices, in order; those with too many tokens are cut again into parts of about the same length."""
    counts = count_tokens([text[start:end] for start, end in slices])
    for (start, end), count in zip(slices, counts, strict=True):
        length = end - start
        if count <= MOST_TOKENS or length <= SMALLEST_CHARACTERS:
            yield start, end
            continue
        wanted = ceil(1.1 * length / ceil(count / MOST_TOKENS))
        parts = list(_slices(text, start, end, max_characters=min(wanted, length - 1), markdown=False))
        yield from _fitting(text, parts, count_tokens)


def _max_characters(text: str, max_tokens: int, count_tokens: CountTokens | None) -> int:
    """Characters that `max_tokens` take in this text, by samples of it."""
    step = max(SAMPLE_CHARACTERS, len(text) // SAMPLES)
    samples = [text[start : start + SAMPLE_CHARACTERS] for start in range(0, len(text), step)]
    characters = sum(map(len, samples))
    if count_tokens is not None:
        per_token = characters / max(1, sum(count_tokens(samples)))
    else:
        unspaced = sum(len(run) for sample in samples for run in UNSPACED.findall(sample)) / max(1, characters)
        per_token = unspaced * CHARACTERS_PER_TOKEN_UNSPACED + (1 - unspaced) * CHARACTERS_PER_TOKEN
    return max(SMALLEST_CHARACTERS, int(max_tokens * min(per_token, MAX_CHARACTERS_A_TOKEN)))


@lru_cache(maxsize=512)
def _splitter(max_characters: int, markdown: bool) -> TextSplitter | MarkdownSplitter:
    return MarkdownSplitter(max_characters) if markdown else TextSplitter(max_characters)


def _headings(text: str) -> Iterator[tuple[int, str]]:
    """Where each heading begins, and the path it ends; what stands in a fenced block of code is no heading."""
    path: list[tuple[int, str]] = []
    fence = ""
    for match in HEADING_OR_FENCE.finditer(text):
        if match["fence"] is not None:
            closes = fence and match["fence"].startswith(fence)
            fence = "" if closes else fence or match["fence"]
        elif not fence:
            level = len(match["marks"])
            path = [(above, title) for above, title in path if above < level] + [(level, match["title"])]
            yield match.start(), " > ".join(title for _, title in path)[:MAX_HEADING_CHARACTERS]
