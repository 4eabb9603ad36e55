"""The reading page shows the document's very characters, and marks exactly the passage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pharos.web.reader import PART_CHARS, View, document_view


def shown(view: View) -> str:
    return "".join(piece.text for page in view.pages for piece in page.pieces)


def marked(view: View) -> str:
    return "".join(piece.text for page in view.pages for piece in page.pieces if piece.marked)


@given(st.data())
def test_the_mark_is_the_passage_and_nothing_is_lost(data: st.DataObject) -> None:
    text = data.draw(st.text("aß灯\n ", min_size=1, max_size=100))
    starts = sorted({0, *data.draw(st.lists(st.integers(0, len(text) - 1), max_size=5))})
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    view = document_view(text, data.draw(st.sampled_from([starts, []])), start=start, end=end)
    assert shown(view) == text
    assert marked(view) == text[start:end]
    assert sum(piece.first for page in view.pages for piece in page.pieces) == 1


def test_every_part_of_a_long_document_is_shown_once() -> None:
    text = "".join(chr(65 + i % 26) for i in range(3 * PART_CHARS + 7))
    starts = list(range(0, len(text), 4_321))
    for page_starts in (starts, []):
        first = document_view(text, page_starts, start=None, end=None)
        views = [document_view(text, page_starts, start=None, end=None, part=n) for n in range(1, first.parts + 1)]
        assert "".join(map(shown, views)) == text
        assert all(len(shown(view)) <= PART_CHARS for view in views)


def test_a_passage_deep_inside_opens_its_part() -> None:
    text = "x" * (2 * PART_CHARS) + "needle" + "x" * PART_CHARS
    start = 2 * PART_CHARS
    view = document_view(text, [], start=start, end=start + 6)
    assert marked(view) == "needle"
    assert view.part == 3


def test_a_passage_across_two_parts_is_marked_whole() -> None:
    text = "x" * (2 * PART_CHARS)
    view = document_view(text, [], start=PART_CHARS - 3, end=PART_CHARS + 3)
    assert len(marked(view)) == 6


def test_a_span_outside_the_text_is_said_to_be_missing() -> None:
    view = document_view("short", [], start=3, end=90)
    assert view.passage_missing
    assert not view.has_passage
    assert shown(view) == "short"


def test_pages_are_numbered_from_one() -> None:
    view = document_view("onetwo", [0, 3], start=None, end=None)
    assert [(page.number, page.pieces[0].text) for page in view.pages] == [(1, "one"), (2, "two")]


def test_a_document_without_text_has_no_pages() -> None:
    assert document_view("", [], start=None, end=None).pages == []
