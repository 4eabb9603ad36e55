"""Sentences keep every word and know where it stood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.chat.sentences import split_sentences

PIECES = [
    "Dr. ",
    "z. B. ",
    "3.5 ",
    "am 3. Oktober ",
    "Ende. ",
    "了。",
    "什么？",
    "\n",
    "\n\n",
    "# Title\n",
    "- item\n",
    "\t",
    "x",
]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


@given(TEXTS)
def test_what_stands_between_sentences_is_white_space_only(text: str) -> None:
    spans = split_sentences(text)
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    for end, start in zip(ends, starts, strict=True):
        assert end <= start
        assert not text[end:start].strip()


@given(TEXTS, st.integers(min_value=1, max_value=40))
def test_no_sentence_is_empty_or_longer_than_the_cap(text: str, cap: int) -> None:
    for start, end in split_sentences(text, max_chars=cap):
        assert 0 < end - start <= cap
        assert text[start:end] == text[start:end].strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("See Fig. 3, e.g. the table. It holds.", ["See Fig. 3, e.g. the table.", "It holds."]),
        ("Dr. No paid 3.5 %. He left!", ["Dr. No paid 3.5 %.", "He left!"]),
        ("J. K. Rowling wrote. We read.", ["J. K. Rowling wrote.", "We read."]),
        ("Am 3. Oktober war es so. Dann nicht.", ["Am 3. Oktober war es so.", "Dann nicht."]),
        ("Er ist z. B. in Köln. Sie ging.", ["Er ist z. B. in Köln.", "Sie ging."]),
        ("It scored 24. The team won.", ["It scored 24.", "The team won."]),
        ("他说：“你好！”价格是3.5元。真的？", ["他说：“你好！”", "价格是3.5元。", "真的？"]),
        ("It turns.[12] It shines.", ["It turns.[12]", "It shines."]),
        ("And how!... No.", ["And how!...", "No."]),
    ],
)
def test_a_full_stop_ends_a_sentence_only_where_a_reader_would_say_so(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_headings_and_list_items_stand_alone_and_wrapped_lines_do_not() -> None:
    text = "# Leave\n\nEmployees of the company get twenty-five\ndays a year.\n- first\n- second\n1. Stop\n2. Start"
    assert sentences(text) == [
        "# Leave",
        "Employees of the company get twenty-five\ndays a year.",
        "- first",
        "- second",
        "1. Stop",
        "2. Start",
    ]


def test_a_long_run_is_cut_at_its_softest_place() -> None:
    assert sentences("word " * 400)[0].endswith("word")
    assert [len(sentence) for sentence in sentences("x" * 1500)] == [600, 600, 300]
