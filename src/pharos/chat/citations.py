"""Check what a model cites: only numbers of passages it was given count, the others are taken out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MARKS = re.compile(r"(\s?)((?:\[\d{1,3}(?:\s*,\s*\d{1,3})*\])+)")
LONGEST_MARK_CHARACTERS = 24


@dataclass(frozen=True)
class CitedText:
    """`text` with its marks renumbered 1, 2, … in the order they appear; `cited` are the given numbers behind them;
    `dropped` counts marks of passages that were never given."""

    text: str
    cited: tuple[int, ...]
    dropped: int


def check_citations(text: str, *, given: int, before: Sequence[int] = ()) -> CitedText:
    """Keep the marks that point to one of the passages 1 to `given`; `before` is what the text before this one cites.

    >>> check_citations("It turns [3]. It shines [9].", given=4)
    CitedText(text='It turns [1]. It shines.', cited=(3,), dropped=1)
    """
    order = list(before)
    dropped = 0

    def renumber(marks: re.Match[str]) -> str:
        nonlocal dropped
        kept = []
        for number in map(int, re.findall(r"\d+", marks.group(2))):
            if not 1 <= number <= given:
                dropped += 1
                continue
            if number not in order:
                order.append(number)
            kept.append(f"[{order.index(number) + 1}]")
        return (marks.group(1) if kept else "") + "".join(kept)

    checked = MARKS.sub(renumber, text)
    return CitedText(text=checked, cited=tuple(order), dropped=dropped)


def safe_prefix(text: str) -> int:
    """How many characters of a growing text can be shown already: a mark that may still grow is held back."""
    tail = text[-LONGEST_MARK_CHARACTERS:]
    opened = tail.rfind("[")
    if opened >= 0 and "]" not in tail[opened:]:
        start = len(text) - len(tail) + opened
        return start - 1 if start > 0 and text[start - 1].isspace() else start
    return len(text.rstrip()) if text[-1:].isspace() else len(text)
