"""A model's marks count only where they point to what it was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pharos.chat.citations import check_citations, safe_prefix


def test_marks_are_renumbered_in_the_order_they_appear() -> None:
    checked = check_citations("It turns [3]. It shines [1, 3].", given=3)
    assert checked.text == "It turns [1]. It shines [2][1]."
    assert checked.cited == (3, 1)
    assert checked.dropped == 0


def test_a_mark_of_a_passage_that_was_not_given_is_taken_out_and_counted() -> None:
    checked = check_citations("It sings [9]. It hums [0][2].", given=2)
    assert (checked.text, checked.cited, checked.dropped) == ("It sings. It hums [1].", (2,), 2)


def test_other_brackets_are_left_alone() -> None:
    assert check_citations("See [the plan] and x[i].", given=2).text == "See [the plan] and x[i]."


@given(st.text(alphabet="ab [],123.\n", max_size=60), st.integers(0, 4))
def test_every_citation_points_at_a_passage_that_was_given(text: str, given_: int) -> None:
    assert all(1 <= number <= given_ for number in check_citations(text, given=given_).cited)


@given(st.lists(st.sampled_from(["A ", "fact", " [1", "]", "[2]", ". ", "[", " x", "\n"]), max_size=12))
def test_what_was_shown_of_a_growing_answer_is_never_taken_back(pieces: list[str]) -> None:
    whole, shown = "", ""
    for piece in pieces:
        whole += piece
        visible = check_citations(whole[: safe_prefix(whole)], given=2).text
        if len(visible) > len(shown):
            assert visible.startswith(shown)
            shown = visible
    assert check_citations(whole, given=2).text.startswith(shown)
