"""Passages are exact slices, lose nothing, stay on their page and fit into the model."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pharos.library.split import MOST_TOKENS, SMALLEST_CHARACTERS, Piece, split_text, token_counter

WORDS = [
    "light",
    "Türmer",
    "灯塔守望者",
    "x" * 400,
    "1,234.5",
    "\n\n",
    "\n",
    "\r\n",
    "end.",
    "# Head\n",
    "```\n",
    "e\u0301",
    "👩‍👩‍👧",
]
TEXTS = st.one_of(
    st.text(max_size=800),
    st.lists(st.sampled_from(WORDS), max_size=400).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=200).map("".join),
)


def count(texts: list[str]) -> list[int]:
    """Every three letters a token, every other sign one."""
    return [len(re.findall(r"[^\W\u3000-\u9fff]{1,3}|[^\w\s]|[\u3000-\u9fff]", text)) for text in texts]


def bare(text: str) -> str:
    return "".join(text.split())


@st.composite
def texts_with_pages(draw: st.DrawFn) -> tuple[str, list[int]]:
    text = draw(TEXTS)
    starts = draw(st.lists(st.integers(0, len(text)), max_size=5))
    return text, sorted([0, *starts]) if starts else []


@given(texts_with_pages(), st.integers(5, 250), st.booleans(), st.booleans())
def test_nothing_is_lost_or_moved(
    source: tuple[str, list[int]], max_tokens: int, markdown: bool, counted: bool
) -> None:
    text, page_starts = source
    counter = count if counted else None
    pieces = split_text(text, page_starts=page_starts, max_tokens=max_tokens, markdown=markdown, count_tokens=counter)
    assert all(piece.text == text[piece.start : piece.end] and bare(piece.text) for piece in pieces)
    assert all(before.end <= after.start for before, after in pairwise(pieces))
    assert "".join(bare(piece.text) for piece in pieces) == bare(text)
    if counted:
        assert all(count([piece.text])[0] <= MOST_TOKENS or len(piece.text) <= SMALLEST_CHARACTERS for piece in pieces)


@given(texts_with_pages())
def test_a_passage_lies_on_one_page_and_names_it(source: tuple[str, list[int]]) -> None:
    text, page_starts = source
    for piece in split_text(text, page_starts=page_starts, max_tokens=20):
        if not page_starts:
            assert piece.page is None
            continue
        assert piece.page is not None
        end = page_starts[piece.page] if piece.page < len(page_starts) else len(text)
        assert page_starts[piece.page - 1] <= piece.start < piece.end <= end


def test_passages_are_about_as_long_as_wished_in_every_script() -> None:
    for sentence in (
        "The keeper lights the lamp at dusk. ",
        "Der Türmer zündet die Lampe an. ",
        "守望者在黄昏点亮灯。",
    ):
        pieces = split_text(sentence * 300, max_tokens=200, count_tokens=count)
        lengths = count([piece.text for piece in pieces[:-1]])
        assert 140 <= min(lengths) <= max(lengths) <= 230


def test_the_headings_above_a_passage_are_its_path() -> None:
    text = (
        "# Harbour\n\nIntro.\n\n## Lamp\n\nOil.\n\n```sh\n# not a heading\n```\n\nWick.\n\n### Glass\n\nClear.\n\n"
        "## Keeper ##\n\nAwake.\n\n# Island\n\nRocks.\n"
    )
    found = {piece.text.rsplit("\n", 1)[-1]: piece.heading for piece in split_text(text, max_tokens=5, markdown=True)}
    assert found["Intro."] == "Harbour"
    assert found["Wick."] == "Harbour > Lamp"
    assert found["Clear."] == "Harbour > Lamp > Glass"
    assert found["Awake."] == "Harbour > Keeper"
    assert found["Rocks."] == "Island"


def test_layout_and_endless_words_do_not_make_endless_passages() -> None:
    for text in ("a" + " " * 50_000 + "b " * 10 + ".  \t" * 5_000, "A" * 50_000):
        pieces = split_text(text, count_tokens=lambda texts: [len(text.split()) for text in texts])
        assert max(len(piece.text) for piece in pieces) <= 2_400


def test_an_empty_text_has_no_passages() -> None:
    assert split_text("", page_starts=[0]) == split_text(" \n\t", page_starts=[0, 1]) == []
    assert split_text("x") == [Piece(start=0, end=1, page=None, heading="", text="x")]


def test_without_the_local_model_tokens_are_estimated(tmp_path: Path) -> None:
    assert token_counter(tmp_path) is None
