"""The end of a stream and the stored message are the same safe HTML, and their numbers open the right characters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict

import pytest

from pharos.chat.answer import Event
from pharos.chat.answer_html import answer_html, passage_path, with_html
from pharos.chat.history import Source
from pharos.infra.ids import ProjectId, new_id

PROJECT = ProjectId(new_id())
SOURCE = Source(index=1, document_id="d", document='a "b".pdf', page=3, start=7, end=19, text="2*3*4 is 24.", score=0.5)
TEXT = "2*3*4 is 24. [1] <script>alert(1)</script> [2]"


async def turn(mode: str) -> AsyncIterator[Event]:
    yield Event("meta", {"mode": mode})
    yield Event("sources", {"sources": [asdict(SOURCE)]})
    yield Event("text", {"delta": TEXT})
    yield Event("done", {"grounded": True, "text": TEXT})


@pytest.mark.parametrize(("mode", "shown"), [("extractive", "2*3*4 is 24."), ("model", "2<em>3</em>4 is 24.")])
async def test_the_last_event_carries_the_answer_as_it_will_be_stored(mode: str, shown: str) -> None:
    events = [event async for event in with_html(turn(mode), project_id=PROJECT)]
    html = str(events[-1].data["html"])
    assert html == answer_html(TEXT, mode=mode, project_id=PROJECT, sources=[SOURCE])
    assert shown in html
    assert "<script" not in html
    assert html.count("<a ") == 1
    assert [event.name for event in events] == ["meta", "sources", "text", "done"]


def test_a_number_opens_the_characters_it_stands_for() -> None:
    path = passage_path(PROJECT, SOURCE)
    assert path == f"/projects/{PROJECT}/documents/d?start=7&end=19&page=3#passage"
    html = answer_html("So. [1]", mode="extractive", project_id=PROJECT, sources=[SOURCE])
    assert path.replace("&", "&amp;") in html
    assert 'title="a &quot;b&quot;.pdf, p. 3"' in html
