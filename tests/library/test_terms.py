"""Words of a passage and of a question meet, in many languages."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.library.models import TERM_SPACE
from pharos.library.passages import K1, bm25_weight, sparse_literal
from pharos.library.terms import detect_language, query_terms, term_id, terms_of

PASSAGES_AND_QUESTIONS = [
    ("The committees approved new policies for travelling employees.", "Who approves a policy?"),
    (
        "Die Universitäten haben ihre Prüfungen im Frühjahr verschoben.",
        "Wann wurde die Prüfung der Universität verschoben?",
    ),
    ("Les étudiants ont présenté leurs travaux à la conférence.", "Quel étudiant a présenté un travail ?"),
    ("Los científicos descubrieron nuevas especies en el océano.", "¿Qué especie descubrió el científico?"),
    ("De onderzoekers hebben de resultaten van het experiment gepubliceerd.", "Welk resultaat heeft de onderzoeker?"),
    ("Учёные опубликовали результаты исследований.", "Какой результат исследования?"),
    ("विश्वविद्यालय में परीक्षा स्थगित कर दी गई।", "परीक्षा"),
    ("这个城市的图书馆每天上午九点开放。", "图书馆几点开放？"),
    ("東京の図書館は九時に開きます。", "図書館は何時に開きますか"),
    ("도서관은 아홉 시에 엽니다.", "도서관 시간"),
    ("ห้องสมุดเปิดเวลาเก้าโมง", "ห้องสมุดเปิดกี่โมง"),
    ("Part XJ-4711 fits the Model 3 pump.", "xj-4711"),
    ("The café serves naïve guests.", "cafe"),
    ("ＦＵＬＬ width ﬁle names", "full file"),
    ("set plan_cache_mode to force_custom_plan", "plan cache"),
]


@pytest.mark.parametrize(("passage", "question"), PASSAGES_AND_QUESTIONS)
def test_a_question_meets_its_passage(passage: str, question: str) -> None:
    assert query_terms(question) & terms_of(passage).keys()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of the country?", "english"),
        ("Was ist die Hauptstadt des Landes?", "german"),
        ("Quelle est la capitale du pays ?", "french"),
        ("¿Cuál es la capital del país?", "spanish"),
        ("Какой город является столицей?", "russian"),
        ("ALDH1 expression", None),
        ("这个城市的图书馆", None),
        ("", None),
    ],
)
def test_function_words_tell_the_language(text: str, language: str | None) -> None:
    assert detect_language(text) == language


def test_a_question_without_function_words_finds_stems_of_every_language() -> None:
    question = query_terms("Universitäten Prüfungen")
    assert question >= terms_of("Universität Prüfung", "german").keys()


def test_a_word_of_another_script_is_stemmed_by_its_script() -> None:
    assert terms_of("результатами", "english") == terms_of("результаты", "german")


def test_the_id_of_a_stem_is_stable() -> None:
    # Stored vectors hold these numbers: another hash would part every passage from every question.
    assert term_id("pharos") == 802_918_565


@given(st.text(max_size=300))
def test_any_text_has_terms_pgvector_accepts(text: str) -> None:
    terms = terms_of(text)
    assert all(1 <= term <= TERM_SPACE for term in terms)
    literal = sparse_literal(terms)
    entries = [int(entry.split(":")[0]) for entry in literal[1 : literal.index("}")].split(",") if entry]
    assert entries == sorted(terms)


@given(count=st.integers(1, 500), length=st.integers(1, 5000))
def test_weights_grow_with_count_and_shrink_with_length(count: int, length: int) -> None:
    weight = bm25_weight(count, length)
    assert 0 < weight < K1 + 1
    assert bm25_weight(count + 1, length) > weight > bm25_weight(count, length + 1)


def test_threads_stem_alike() -> None:
    words = " ".join(f"{stem}{ending}" for stem in ("walk", "talk", "nation") for ending in ("s", "ing", "ed", "al"))
    expected = terms_of(words, "english")
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(terms_of(words, "english"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8
