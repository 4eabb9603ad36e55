"""Without a model: quoted sentences that are really there, or an honest refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pharos.chat.extractive import ANSWERED, extract_answer
from pharos.infra.ids import DocumentId, PassageId, new_id
from pharos.library.terms import query_terms
from pharos.retrieval.search import FoundPassage, SearchOutcome

TEXT = (
    "# Pumps\n\nThe pumps of building C are serviced twice a year. The work is ordered by the facility manager. "
    "Painting the roof is another matter."
)


def passage(text: str = TEXT, *, start: int = 100, dense: float | None = 0.6, score: float = 1.0) -> FoundPassage:
    return FoundPassage(
        passage_id=PassageId(new_id()),
        document_id=DocumentId(new_id()),
        document_name="plan.md",
        page=None,
        start_char=start,
        end_char=start + len(text),
        heading="",
        text=text,
        score=score,
        dense=dense,
        lexical=1.0,
    )


def found(question: str, *passages: FoundPassage, known: str | None = None) -> SearchOutcome:
    idf = dict.fromkeys(query_terms(known if known is not None else question), 2.0)
    return SearchOutcome(passages=passages, degraded=False, idf=idf, query_vector=None)


QUESTION = "Who orders the service of the pumps in building C?"


def test_a_quotation_is_exactly_the_characters_it_points_to() -> None:
    extract = extract_answer(QUESTION, found(QUESTION, passage(start=100)))
    assert extract.is_answered
    for quoted in extract.quotations:
        assert TEXT[quoted.start - 100 : quoted.end - 100] == quoted.text


def test_a_heading_is_never_quoted_and_what_is_beside_the_point_is_left_out() -> None:
    said = [quoted.text for quoted in extract_answer(QUESTION, found(QUESTION, passage())).quotations]
    assert "The pumps of building C are serviced twice a year." in said
    assert not any(text.startswith("#") or "roof" in text for text in said)


def test_a_question_about_something_else_is_refused() -> None:
    question = "Which composer wrote the opera about the flying sailor?"
    assert not extract_answer(question, found(question, passage(dense=0.1), known="")).is_answered


def test_nothing_found_is_refused() -> None:
    assert not extract_answer(QUESTION, found(QUESTION)).is_answered


def test_a_question_without_a_word_is_refused() -> None:
    assert not extract_answer("???", found("???", passage())).is_answered


def test_without_the_dense_leg_the_words_decide() -> None:
    assert extract_answer(QUESTION, found(QUESTION, passage(dense=None))).is_answered
    other = "Where do penguins and walruses sleep in winter?"
    assert not extract_answer(other, found(other, passage(dense=None))).is_answered


def test_words_nobody_wrote_count_against_an_answer() -> None:
    asked = "Are the pumps of the submarine zeppelin quarantined by archbishops?"
    common = extract_answer(asked, found(asked, passage(dense=0.2), known="pumps"))
    assert not common.is_answered


def test_chinese_questions_are_answered_by_their_bigrams() -> None:
    text = "灯塔建于公元前三世纪，位于亚历山大港的法罗斯岛上。它的高度超过一百米。"
    question = "灯塔位于哪个岛上？"
    extract = extract_answer(question, found(question, passage(text, start=0, dense=0.2)))
    assert extract.is_answered
    assert "法罗斯岛" in extract.quotations[0].text


@pytest.mark.parametrize("dense", [0.0, 0.3, 0.9])
def test_confidence_lies_between_0_and_1_and_tells_answers_from_refusals(dense: float) -> None:
    extract = extract_answer(QUESTION, found(QUESTION, passage(dense=dense)))
    assert 0 <= extract.confidence <= 1
    assert extract.is_answered == (extract.confidence >= ANSWERED)


def test_quotations_of_one_passage_are_read_in_its_order() -> None:
    both = [passage(start=0), replace(passage(start=0), score=0.2)]
    quotations = extract_answer(QUESTION, found(QUESTION, *both)).quotations
    first = [quoted.start for quoted in quotations if quoted.passage.passage_id == both[0].passage_id]
    assert first == sorted(first)
