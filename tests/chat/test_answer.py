"""One turn, end to end on the database: cited answers, honest refusals, models that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select
from tests.conftest import RunJobs, open_client
from tests.fakes import with_model
from tests.make import MadeTenant, make_document, make_person, make_project

from pharos.chat.answer import NOT_FOUND, Answer, answer_question, gather_answer
from pharos.chat.history import list_messages, list_sources
from pharos.chat.models import Message
from pharos.infra.errors import Invalid, NotFound, PharosError, Unavailable
from pharos.infra.ids import ConversationId, DocumentId, ProjectId
from pharos.library.documents import get_text
from pharos.providers.contract import ChatModel, ChatRequest
from pharos.runtime import Runtime

NOTE = b"The lighthouse was built on the island of Pharos. Its fire was seen from far. Goats live there now."
QUESTION = "On which island was the lighthouse built?"


class Model:
    """Says its pieces; where a piece is an error, it fails there."""

    name = "test-model"

    def __init__(self, *pieces: str | PharosError) -> None:
        self.pieces = pieces
        self.asked: list[ChatRequest] = []

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.asked.append(request)
        for piece in self.pieces:
            if isinstance(piece, PharosError):
                raise piece
            yield piece

    async def list_models(self) -> list[str]:
        return [self.name]

    async def close(self) -> None:
        """Nothing is open."""


async def library(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> ProjectId:
    project = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project, content=NOTE)
    await run_jobs(runtime)
    return project


async def ask(
    runtime: Runtime, tenant: MadeTenant, project: ProjectId, question: str = QUESTION, model: ChatModel | None = None
) -> Answer:
    world = with_model(runtime, model)
    return await gather_answer(answer_question(world, tenant.admin, project_id=project, question=question))


@pytest.mark.contract("RT-01")
async def test_an_answer_quotes_its_source_to_the_character(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    answer = await ask(runtime, tenant, project)
    assert (answer.mode, answer.grounded) == ("extractive", True)
    assert "island of Pharos" in answer.answer
    async with runtime.db.transaction(tenant.id) as session:
        for source in answer.sources:
            body = await get_text(session, tenant.admin, document_id=DocumentId(source.document_id))  # type: ignore[arg-type]
            assert body.body[source.start : source.end] == source.text


@pytest.mark.contract("RT-01")
async def test_what_is_not_in_the_documents_is_said_to_be_missing_and_no_model_is_asked(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    model = Model("Surely yes.")
    answer = await ask(runtime, tenant, project, "Who won the chess tournament in Reykjavik?", model)
    assert (answer.answer, answer.grounded, answer.sources) == (NOT_FOUND, False, [])
    assert model.asked == []


async def test_an_empty_project_gives_an_honest_answer(runtime: Runtime, tenant: MadeTenant) -> None:
    project = await make_project(runtime.db, tenant.admin)
    assert (await ask(runtime, tenant, project)).answer == NOT_FOUND


async def test_a_models_answer_is_streamed_with_only_true_citations(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    answer = await ask(runtime, tenant, project, model=Model("On Pharos [", "1]", ", some say [7]."))
    assert (answer.mode, answer.answer) == ("model", "On Pharos [1], some say.")
    assert [source.index for source in answer.sources] == [1]
    assert answer.grounded


async def test_a_sentence_that_its_cited_passage_does_not_say_is_named(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    true, false = "The lighthouse was built on the island of Pharos [1].", "It cost 800 talents of silver [1]."
    answer = await ask(runtime, tenant, project, model=Model(f"{true} {false}"))
    assert (answer.grounded, answer.unsupported) == (True, [len(f"{true} {false}")])
    async with runtime.db.transaction(tenant.id) as session:
        stored = (await session.execute(select(Message).where(Message.role == "assistant"))).scalar_one()
    assert stored.unsupported == answer.unsupported
    assert answer.confidence == pytest.approx(answer.sources[0].score / 2)


async def test_an_answer_that_its_passages_do_not_support_at_all_is_not_grounded_though_it_cites_them(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    answer = await ask(runtime, tenant, project, model=Model("It cost 800 talents of silver [1]."))
    assert (answer.grounded, answer.confidence, len(answer.sources)) == (False, 0.0, 1)
    async with open_client(runtime, tenant.admin) as client:
        page = (await client.get(f"/projects/{project}?conversation={answer.conversation_id}")).text
    assert "Sentences with a ? are not supported" in page
    assert "turn--unfounded" not in page


async def test_a_model_that_cites_nothing_is_not_grounded(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    assert not (await ask(runtime, tenant, project, model=Model("On Pharos."))).grounded


async def test_a_model_that_fails_before_its_first_word_is_replaced_by_quotations(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    answer = await ask(runtime, tenant, project, model=Model(Unavailable("It is away.")))
    assert (answer.mode, answer.degraded, answer.grounded) == ("extractive", True, True)


@pytest.mark.parametrize(
    "pieces", [("\n", Unavailable("Cut.")), (" ", "[", Unavailable("Cut.")), ("\n", " ")], ids=repr
)
async def test_a_model_that_fails_before_anything_was_shown_is_replaced_by_quotations(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs, pieces: tuple[str | PharosError, ...]
) -> None:
    project = await library(runtime, tenant, run_jobs)
    answer = await ask(runtime, tenant, project, model=Model(*pieces))
    assert (answer.mode, answer.degraded, answer.grounded) == ("extractive", True, True)


@pytest.mark.contract("CH-03", part="the stream's error event")
async def test_a_model_that_fails_later_ends_the_turn_with_an_error(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    world = with_model(runtime, Model("On Pha", Unavailable("It went away.")))
    events = [e async for e in answer_question(world, tenant.admin, project_id=project, question=QUESTION)]
    assert [event.name for event in events] == ["meta", "text", "error"]
    assert events[-1].data["error"] == "unavailable"
    assert str(events[-1].data["message"]).startswith("Failed to generate response.")


@pytest.mark.contract("CH-08", part="conversations and messages persist")
@pytest.mark.contract("PD-05")
async def test_a_conversation_belongs_to_its_person_and_its_project(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await library(runtime, tenant, run_jobs)
    answer = await ask(runtime, tenant, project)
    conversation = ConversationId(answer.conversation_id)  # type: ignore[arg-type]
    async with runtime.db.transaction(tenant.id) as session:
        messages = await list_messages(session, conversation_id=conversation)
        sources = await list_sources(session, conversation_id=conversation)
    assert [(message.role, message.body) for message in messages] == [("user", QUESTION), ("assistant", answer.answer)]
    assert list(sources.values()) == [answer.sources]
    stranger = await make_person(runtime.db, tenant.id)
    elsewhere = await make_project(runtime.db, tenant.admin)
    for principal, place in ((stranger, project), (tenant.admin, elsewhere)):
        turn = answer_question(runtime, principal, project_id=place, question="And now?", conversation_id=conversation)
        with pytest.raises(NotFound):
            await gather_answer(turn)


@pytest.mark.parametrize("question", ["", " ", "x", "y" * 2001])
async def test_a_question_of_the_wrong_length_is_refused(runtime: Runtime, tenant: MadeTenant, question: str) -> None:
    project = await make_project(runtime.db, tenant.admin)
    with pytest.raises(Invalid, match="2 to 2000"):
        await ask(runtime, tenant, project, question)
