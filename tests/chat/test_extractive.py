"""Without a model an answer is quoted word for word, or it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chat.passages import found, passage

from pharos.chat.extractive import ANSWERED, MAX_SENTENCES, extract_answer

VAULT = "The vault of the bank opens at noon. It has a steel door. The guard is called Ada."
CATS = "Cats sleep for sixteen hours. Dogs bark at the moon. Birds fly south."
WORDS = ["vault", "opens", "noon", "guard", "Ada", "cats", "unheard", "金库", "什么", "Tür", "?", "the"]


def test_the_sentence_that_answers_is_quoted() -> None:
    extract = extract_answer("When does the vault open?", found("When does the vault open?", passage(VAULT)))
    assert extract.is_answered
    assert "The vault of the bank opens at noon." in [quotation.text for quotation in extract.quotations]


@pytest.mark.contract("RT-01", part="a quotation is exactly what its document says")
@given(st.lists(st.sampled_from(WORDS)).map(" ".join), st.integers(min_value=0, max_value=500))
def test_a_quotation_is_the_text_its_span_names(question: str, start: int) -> None:
    passages = [passage(VAULT, start=start), passage(CATS, start=start, score=0.5), passage("金库中午开门。很安全。")]
    extract = extract_answer(question, found(question, *passages))
    assert len(extract.quotations) <= MAX_SENTENCES
    assert extract.is_answered == (extract.confidence >= ANSWERED) == bool(extract.quotations)
    assert 0 <= extract.confidence <= 1
    for quotation in extract.quotations:
        source = quotation.passage
        assert source.text[quotation.start - source.start_char : quotation.end - source.start_char] == quotation.text
        assert source.start_char <= quotation.start < quotation.end <= source.end_char


@pytest.mark.contract("RT-01", part="nothing found is said, never invented")
@pytest.mark.parametrize(
    "question", ["Who discovered penicillin in London?", "谁发现了青霉素？", "Wer entdeckte Penicillin?"]
)
def test_a_question_about_something_else_is_refused(question: str) -> None:
    extract = extract_answer(question, found(question, passage(VAULT, dense=0.05), passage(CATS, dense=0.1)))
    assert not extract.is_answered
    assert extract.quotations == ()


def test_without_passages_or_words_there_is_no_answer() -> None:
    assert not extract_answer("When does the vault open?", found("vault")).is_answered
    assert not extract_answer("???", found("???", passage(VAULT))).is_answered


def test_a_chinese_question_is_answered_by_its_words_alone() -> None:
    question = "金库什么时候开门？"
    extract = extract_answer(question, found(question, passage("金库中午开门。警卫叫艾达。", dense=0.0)))
    assert extract.is_answered
    assert extract.quotations[0].text == "金库中午开门。"


def test_without_the_dense_leg_the_words_decide() -> None:
    question = "When does the vault of the bank open?"
    blind = found(question, replace(passage(VAULT), dense=None))
    assert extract_answer(question, blind).is_answered


def test_quotations_of_one_passage_are_read_in_its_order() -> None:
    question = "Who is the guard of the vault of the bank?"
    spans = [quotation.start for quotation in extract_answer(question, found(question, passage(VAULT))).quotations]
    assert spans == sorted(spans)
    assert len(spans) > 1


@pytest.mark.parametrize("question", ["年假有多少天？", "年假多少天", "年假是几天？", "公司的年假有多久？"])
def test_the_words_that_ask_are_not_looked_for_in_a_chinese_answer(question: str) -> None:
    leave = passage("公司的年假为十五天。病假需要医生证明。", dense=0.0)
    extract = extract_answer(question, found(question, leave, passage("办公室在二楼。", dense=0.0, score=0.3)))
    assert extract.is_answered
    assert extract.quotations[0].text == "公司的年假为十五天。"
    assert not extract_answer("火箭的燃料是什么？", found("火箭的燃料是什么？", leave)).is_answered


@pytest.mark.parametrize("question", ["What is AutoGen?", "what's the AutoGen", "Was ist AutoGen?"])
def test_what_something_is_is_said_first_even_by_a_lesser_passage(question: str) -> None:
    uses = passage("We will use AutoGen to tune. AutoGen helps with models. AutoGen saves cost.", dense=0.7)
    framework = "AutoGen (by its friends) is an open-source framework. It is free."
    if question.startswith("Was"):
        framework = "AutoGen ist ein offenes Gerüst. Es ist frei."
    definition = passage(framework, score=0.85, dense=0.7)
    extract = extract_answer(question, found(question, uses, definition))
    assert extract.quotations[0].text == framework.split(". ")[0] + "."


COMMAND = 'Ask it:\n\n```\npharos ask "How do I stop it without losing work?"\n```\n\nThe answer is quoted.'
STOP = "How do I stop it without losing work?"


def test_a_line_that_mentions_the_question_is_no_answer() -> None:
    alone = extract_answer(STOP, found(STOP, passage(COMMAND)))
    assert not alone.is_answered
    told = passage("Press Ctrl-C once. It stops and no work is lost.", score=0.6)
    both = extract_answer(STOP, found(STOP, passage(COMMAND), told))
    assert {quotation.text for quotation in both.quotations} == {"It stops and no work is lost."}


def test_what_stands_below_the_question_answers_it_in_whatever_words() -> None:
    listed = passage(f"## 3. {STOP}\n\nPress Ctrl-C once.\n\n## Why?\n\nNobody knows.")
    extract = extract_answer(STOP, found(STOP, listed))
    assert [quotation.text for quotation in extract.quotations] == ["Press Ctrl-C once."]
