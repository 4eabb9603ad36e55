"""The end of a stream and the stored message are the same safe HTML, and their numbers open the right characters."""

from __future__ import annotations

import pytest

from pharos.chat.answer_html import answer_html, passage_path
from pharos.chat.history import Source
from pharos.infra.ids import ProjectId, new_id

PROJECT = ProjectId(new_id())
SOURCE = Source(index=1, document_id="d", document='a "b".pdf', page=3, start=7, end=19, text="2*3*4 is 24.", score=0.5)
TEXT = "2*3*4 is 24. [1] <script>alert(1)</script> [2]"


@pytest.mark.parametrize(("mode", "shown"), [("extractive", "2*3*4 is 24."), ("model", "2<em>3</em>4 is 24.")])
def test_quotations_keep_their_stars_and_a_models_words_are_markdown(mode: str, shown: str) -> None:
    html = answer_html(TEXT, mode=mode, project_id=PROJECT, sources=[SOURCE])
    assert shown in html
    assert "<script" not in html
    assert html.count("<a ") == 1


def test_a_mark_of_doubt_stands_behind_the_sentence_and_cannot_be_written_by_a_model() -> None:
    html = answer_html(
        "So [1].\ue000 No [1].", mode="model", project_id=PROJECT, sources=[SOURCE], unsupported=[len("So [1].")]
    )
    assert html.count('<sup class="doubt">?</sup>') == 1
    assert "No" in html.split("</sup>")[1]


def test_a_number_opens_the_characters_it_stands_for() -> None:
    path = passage_path(PROJECT, SOURCE)
    assert path == f"/projects/{PROJECT}/documents/d?start=7&end=19&page=3#passage"
    html = answer_html("So. [1]", mode="extractive", project_id=PROJECT, sources=[SOURCE])
    assert path.replace("&", "&amp;") in html
    assert 'title="a &quot;b&quot;.pdf, p. 3"' in html
