"""A model's citation counts only when its passage was given."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.chat.answer import Reply, _stream
from pharos.chat.citations import check_citations, safe_prefix

PIECES = ["It turns", " [1]", "[2]", " [9]", "[1, 2]", "[2,77]", "[", "]", " ", ". ", "[x]", "[0]"]
ANSWERS = st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.mark.contract("RT-01", part="a model's answer cites only passages it was given")
@given(ANSWERS, st.integers(min_value=0, max_value=9))
def test_every_mark_left_points_to_a_passage_that_was_given(answer: str, given: int) -> None:
    checked = check_citations(answer, given=given)
    assert all(1 <= number <= given for number in checked.cited)
    assert len(set(checked.cited)) == len(checked.cited)
    for mark in re.findall(r"\[(\d+)\]", checked.text):
        # "[" + "[1]" + "]" in an answer can leave a bracket beside a mark, never a number beyond the sources
        assert 1 <= int(mark) <= len(checked.cited)


def test_marks_are_numbered_as_they_appear_and_invented_ones_are_counted() -> None:
    checked = check_citations("A [4]. B [2][4]. C [7, 2].", given=5)
    assert checked.text == "A [1]. B [2][1]. C [2]."
    assert checked.cited == (4, 2)
    assert checked.dropped == 1


@given(ANSWERS, st.integers(min_value=1, max_value=5))
def test_what_was_shown_of_a_growing_answer_is_never_taken_back(answer: str, given: int) -> None:
    shown = ""
    for length in range(len(answer) + 1):
        now = check_citations(answer[: safe_prefix(answer[:length])], given=given).text
        assert now.startswith(shown) or shown.startswith(now)
        shown = max(shown, now, key=len)
    assert check_citations(answer, given=given).text.startswith(shown)


async def test_what_is_shown_word_by_word_is_what_the_whole_text_becomes() -> None:
    chance = random.Random(3)
    parts = [" ", "[1]", "[2", "]", "[9]", " [3]", "a", "b. ", "[1, 9]", "[", "\n"]
    for _ in range(500):
        said = chance.choices(parts, k=chance.randrange(1, 25))

        async def words(said: list[str] = said) -> AsyncIterator[str]:
            for word in said:
                yield word

        shown = "".join([piece async for piece in _stream(words(), Reply(), given=4)])
        assert shown == check_citations("".join(said), given=4).text, said
