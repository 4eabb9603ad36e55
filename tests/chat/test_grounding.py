"""A sentence is supported by the passage it cites, not by having cited something."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.fakes import FakeEmbedding

from pharos.chat.grounding import SUPPORTED, claims_of, find_unsupported, judged_claims, support
from pharos.chat.sentences import split_sentences
from pharos.infra.errors import Unavailable

LAMP = "The lamp of the lighthouse was lit in 1904. It burns 120 litres of oil a night and is seen for 30 miles."
KEEPER = "The keeper Ada Larsen lives in the tower. Her boat, the Petrel, lies in the northern harbour."
PASSAGES = {1: LAMP, 2: KEEPER}
IN_DOUBT = "Oil of the lamp costs money every night [1]."
"""Half of its words stand in the passage."""


async def unsupported(body: str) -> list[str]:
    return [claim.text for claim in await find_unsupported(FakeEmbedding(), judged_claims(body), PASSAGES)]


async def test_what_the_cited_passage_says_is_supported_in_its_words_and_in_others() -> None:
    body = (
        "The lamp was lit in 1904 [1]. The lighthouse's lamp burns 120 litres of oil each night [1].\n\n"
        "Ada Larsen, the keeper, lives in the tower and her boat lies in the northern harbour [2]."
    )
    assert await unsupported(body) == []


async def test_a_sentence_that_cites_the_wrong_passage_is_not_supported() -> None:
    assert await unsupported("The lamp was lit in 1904 [2].") == ["The lamp was lit in 1904."]


@pytest.mark.parametrize("changed", ["The lamp was lit in 1940 [1].", "It burns 12 litres of oil a night [1]."])
async def test_one_changed_figure_is_enough(changed: str) -> None:
    assert len(await unsupported(changed)) == 1


async def test_figures_are_the_same_however_their_digits_are_grouped() -> None:
    assert support("It cost 1.200 crowns.", ["It cost 1,200 crowns."]) >= SUPPORTED
    assert support("It cost 1.300 crowns.", ["It cost 1,200 crowns."]) == 0


async def test_a_sentence_may_join_what_two_passages_say_when_it_cites_both() -> None:
    joined = "The lamp was lit in 1904 and its keeper Ada Larsen lives in the tower"
    assert await unsupported(f"{joined} [1][2].") == []
    assert len(await unsupported(f"{joined} [2].")) == 1


async def test_a_claim_without_a_mark_rests_on_the_next_one_of_its_paragraph_or_on_nothing() -> None:
    assert await unsupported("The lamp was lit in 1904. It burns 120 litres of oil a night [1].") == []
    assert await unsupported("The lamp was lit in 1904.") == ["The lamp was lit in 1904."]
    assert await unsupported("The lamp was lit in 1904.\n\nAda Larsen lives in the tower [2].") == [
        "The lamp was lit in 1904."
    ]


async def test_a_sentence_of_another_passage_is_judged_though_what_it_cites_was_not_embedded() -> None:
    passages = {1: f"{LAMP} The keeper lives in the tower.", 2: "Bananas go by rail."}
    claims = judged_claims(f"{IN_DOUBT} The keeper lives in the tower [2].")
    found = await find_unsupported(FakeEmbedding(), claims, passages)
    assert "The keeper lives in the tower." in [claim.text for claim in found]


async def test_headings_and_sentences_that_only_lead_on_claim_nothing() -> None:
    assert await unsupported("## The lamp\n\nThe documents say:\n\n- The lamp was lit in 1904 [1].") == []


async def test_spans_are_those_of_the_answers_own_text() -> None:
    body = "## Lamp\n\nIt was lit in 1904 [1]. It is green [1].\n"
    claims = list(claims_of(body))
    assert [body[claim.start : claim.end] for claim in claims] == ["It was lit in 1904 [1].", "It is green [1]."]
    assert [claim.cited for claim in claims] == [(1,), (1,)]


class NoEmbedder(FakeEmbedding):
    """The embedder while it is down."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise Unavailable("The embedder does not answer.", code="embedder_down")


async def test_without_the_embedder_words_decide() -> None:
    body = "The lamp was lit in 1904 [1]. Bananas are exported by rail [1]."
    found = await find_unsupported(NoEmbedder(), judged_claims(body), PASSAGES)
    assert [claim.text for claim in found] == ["Bananas are exported by rail."]


class Slow(FakeEmbedding):
    """The embedder while many answers end at once: this one's turn does not come."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return await asyncio.Future[NDArray[np.float32]]()


async def test_a_check_waits_no_longer_than_it_may_for_a_busy_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pharos.chat.grounding.LONGEST_SECONDS", 0.01)
    async with asyncio.timeout(5):
        found = await find_unsupported(Slow(), judged_claims(f"{IN_DOUBT} Bananas go by rail [1]."), PASSAGES)
    assert [claim.text for claim in found] == ["Bananas go by rail."]


class Asked(FakeEmbedding):
    """Notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        return await super().embed(texts)


async def test_the_embedder_is_asked_only_of_what_words_leave_open_and_the_verdict_is_the_same() -> None:
    body = f"The lamp was lit in 1904 [1]. Bananas go by rail [2]. It cites nothing. {IN_DOUBT}"
    claims, embedding = judged_claims(body), Asked()
    found = await find_unsupported(embedding, claims, PASSAGES)
    assert {claim.text for claim in claims} & set(embedding.texts) == {IN_DOUBT.replace(" [1]", "")}
    sentences = {text[start:end] for text in PASSAGES.values() for start, end in split_sentences(text)}
    texts = sorted({claim.text for claim in claims} | sentences)
    vectors = dict(zip(texts, await FakeEmbedding().embed(texts), strict=True))
    whole = [claim for claim in claims if support(claim.text, [PASSAGES[n] for n in claim.cited], vectors) < SUPPORTED]
    assert found == whole
