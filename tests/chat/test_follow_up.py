"""A question that goes on from earlier ones is searched for with what it leans on, by a model or by rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.conftest import RunJobs, open_client
from tests.fakes import FakeChat, with_model
from tests.make import MadeTenant, make_document, make_project

from pharos.chat.answer import answer_question, gather_answer
from pharos.chat.extractive import extract_answer
from pharos.chat.follow_up import leans_on_history, standalone
from pharos.infra.errors import Unavailable
from pharos.infra.ids import ConversationId
from pharos.providers.contract import ChatRequest
from pharos.retrieval.search import search
from pharos.runtime import Runtime

DOCUMENTS = {
    "pumps": b"The pumps of building C are serviced twice a year, in April and in October, by the firm Vogel.",
    "roof": b"The roof of the depot was renewed in 2019 by the firm Hansen and is under warranty until 2029.",
    "badge": b"Visitors get a badge at the gate, which opens the ground floor only and is given back in the evening.",
    "kitchen": b"The kitchen on the third floor is cleaned on Fridays; whoever uses it last switches the oven off.",
    "parking": b"Parking spaces are given out by the reception, for a month each, and cost forty euros in winter.",
    "leave": b"Leave is asked for two weeks ahead; the head of the department decides within three working days.",
    "heating": b"The heating of the depot runs from October to April and is regulated by the caretaker alone.",
    "archive": b"The archive keeps invoices for ten years in the cellar; the key is with the bookkeeper.",
}
TALKS = [
    ("pumps", "How often are the pumps of building C serviced?", "And by whom?"),
    ("pumps", "Who services the pumps?", "When is it done?"),
    ("roof", "When was the roof of the depot renewed?", "Is it under warranty?"),
    ("roof", "Who renewed the roof?", "How long does the warranty last?"),
    ("badge", "Where do visitors get a badge?", "What does it open?"),
    ("badge", "Do visitors get a badge?", "And what floor?"),
    ("kitchen", "When is the kitchen cleaned?", "Who switches it off?"),
    ("parking", "Who gives out parking spaces?", "What do they cost?"),
    ("parking", "What do parking spaces cost?", "For how long?"),
    ("leave", "When must leave be asked for?", "Who decides on that?"),
    ("heating", "When does the heating run?", "Who regulates it?"),
    ("archive", "How long does the archive keep invoices?", "Where is the key?"),
]


@pytest.mark.parametrize(
    ("question", "leans"),
    [
        ("And in winter?", True),
        ("Who regulates it?", True),
        ("Und im Winter?", True),
        ("多久？", True),
        ("When was the roof of the depot renewed by Hansen?", False),
        ("Wann wurde das Dach der alten Halle von Hansen erneuert?", False),
    ],
)
def test_a_short_question_or_one_with_pronouns_leans_on_what_was_said(question: str, *, leans: bool) -> None:
    assert leans_on_history(question) is leans


def test_the_words_of_the_last_question_are_added_and_none_twice() -> None:
    history = [("user", "Old topic"), ("user", "When does the heating of the depot run?"), ("assistant", "Oct.")]
    assert standalone("Who regulates the heating?", history) == "Who regulates the heating? depot run"
    assert standalone("And why?", []) == "And why?"


async def test_the_rule_finds_what_the_question_alone_does_not(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    for name, content in DOCUMENTS.items():
        await make_document(runtime, tenant.admin, project_id, name=f"{name}.txt", content=content)
    await run_jobs(runtime)

    async def is_answered(asked: str, document: str) -> bool:
        found = await search(runtime, tenant.admin, text=asked, project_id=project_id)
        quoted = extract_answer(asked, found).quotations
        return bool(quoted) and quoted[0].passage.document_name == f"{document}.txt"

    alone = [await is_answered(question, document) for document, _, question in TALKS]
    by_rule = [await is_answered(standalone(question, [("user", before)]), name) for name, before, question in TALKS]
    assert sum(by_rule) >= 11, f"by rule {sum(by_rule)}, alone {sum(alone)} of {len(TALKS)}"
    assert sum(alone) <= sum(by_rule) - 3, f"by rule {sum(by_rule)}, alone {sum(alone)} of {len(TALKS)}"


class Rewriter(FakeChat):
    """Rewrites, if it can, and answers everything else."""

    def __init__(self, rewritten: str | None) -> None:
        super().__init__("They are serviced by Vogel [1].")
        self.rewritten = rewritten

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        if "Rewrite the last question" not in request.messages[0].content:
            async for piece in super().stream(request):
                yield piece
            return
        self.requests.append(request)
        if self.rewritten is None:
            raise Unavailable("It is away.", code="provider_answer_bad")
        yield self.rewritten


@pytest.mark.parametrize("rewritten", ["Who services the pumps of building C?", None, "x" * 500])
async def test_a_model_rewrites_the_question_and_where_it_cannot_the_rule_does(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs, rewritten: str | None
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id, content=DOCUMENTS["pumps"])
    await run_jobs(runtime)
    first = await gather_answer(
        answer_question(runtime, tenant.admin, project_id=project_id, question="How often are the pumps serviced?")
    )
    model = Rewriter(rewritten)
    conversation_id = ConversationId(UUID(first.conversation_id))
    turn = answer_question(
        with_model(runtime, model),
        tenant.admin,
        project_id=project_id,
        question="And by whom?",
        conversation_id=conversation_id,
    )
    answer = await gather_answer(turn)
    assert answer.answer == "They are serviced by Vogel [1]."
    assert "How often are the pumps serviced?" in model.requests[0].messages[1].content
    assert model.requests[-1].messages[-1].content.endswith("Question: And by whom?")


class Hung(FakeChat):
    """Answers, but never comes to the end of rewriting."""

    def __init__(self) -> None:
        super().__init__("They are serviced by Vogel [1].")
        self.hangs = asyncio.Event()

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        if "Rewrite the last question" in request.messages[0].content:
            self.hangs.set()
            await asyncio.Event().wait()
        async for piece in super().stream(request):
            yield piece


@pytest.fixture
async def talk(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> dict[str, str]:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id, content=DOCUMENTS["pumps"])
    await run_jobs(runtime)
    async with open_client(runtime, tenant.admin) as client:
        asked = {"question": "How often are the pumps serviced?", "projectId": str(project_id)}
        first = (await client.post("/chat", json=asked)).json()
    return {"question": "And by whom?", "projectId": str(project_id), "conversationId": first["conversationId"]}


async def test_a_model_that_is_silent_over_a_question_is_not_waited_for(
    runtime: Runtime, tenant: MadeTenant, talk: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.chat.follow_up.REWRITE_SECONDS", 0.05)
    async with asyncio.timeout(10), open_client(with_model(runtime, Hung()), tenant.admin) as client:
        answer = (await client.post("/chat", json=talk)).json()
    assert answer["answer"] == "They are serviced by Vogel [1]."


async def test_a_stop_is_heard_while_the_question_is_rewritten(
    runtime: Runtime, tenant: MadeTenant, talk: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.chat.follow_up.REWRITE_SECONDS", 1000)
    model = Hung()
    async with asyncio.timeout(10), open_client(with_model(runtime, model), tenant.admin) as client:
        asked = asyncio.create_task(client.post("/chat/stream", json=talk))
        await model.hangs.wait()
        async with runtime.db.transaction(tenant.id) as session:
            turn_id = (await session.execute(text("select id from turns where state = 'running'"))).scalar_one()
        await client.post(f"/chat/turns/{turn_id}/stop")
        assert '"stopped": true' in (await asked).text
    assert model.requests == []
