"""Two legs become one ranking, by score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.retrieval.fuse import fuse_scores

cosines = st.none() | st.floats(-1, 1)
weights = st.none() | st.floats(0, 50)
pairs = st.lists(st.tuples(cosines, weights), min_size=1, max_size=30)
shares = st.floats(0, 1)


@given(pairs, shares)
def test_scores_lie_between_0_and_1(found: list[tuple[float | None, float | None]], share: float) -> None:
    dense, lexical = zip(*found, strict=True)
    assert all(0 <= score <= 1 + 1e-9 for score in fuse_scores(dense, lexical, dense_share=share))


@given(pairs, shares)
def test_the_order_of_candidates_does_not_matter(found: list[tuple[float | None, float | None]], share: float) -> None:
    dense, lexical = zip(*found, strict=True)
    forward = fuse_scores(dense, lexical, dense_share=share)
    backward = fuse_scores(dense[::-1], lexical[::-1], dense_share=share)
    assert backward[::-1] == forward


@given(pairs, shares)
def test_who_is_better_in_both_legs_is_not_ranked_below(
    found: list[tuple[float | None, float | None]], share: float
) -> None:
    dense, lexical = zip(*found, strict=True)
    scores = fuse_scores(dense, lexical, dense_share=share)
    for score, near, match in zip(scores, dense, lexical, strict=True):
        for other, other_near, other_match in zip(scores, dense, lexical, strict=True):
            if (near or 0) >= (other_near or 0) and (match or 0) >= (other_match or 0):
                assert score >= other - 1e-9


@pytest.mark.contract("RT-01", part="a leg that is missing is left out")
@given(st.lists(weights, min_size=1, max_size=30), shares)
def test_a_leg_that_found_nothing_does_not_halve_the_other(found: list[float | None], share: float) -> None:
    nothing: list[float | None] = [None] * len(found)
    alone = fuse_scores(nothing, found, dense_share=share)
    if any(found):
        assert max(alone) == pytest.approx(1)
    assert fuse_scores(found, nothing, dense_share=share) == alone
