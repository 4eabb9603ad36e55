"""A turn belongs to the server: who leaves misses nothing, and what dies is told to be dead."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event as events
from sqlalchemy import text
from tests.conftest import RunJobs, open_client
from tests.fakes import with_model
from tests.make import MadeTenant, make_document, make_person, make_project, make_tenant

from pharos.chat.answer import Event, begin_turn
from pharos.chat.history import Turn, list_messages, open_turn
from pharos.chat.turn_rows import (
    CHANNEL,
    EVENTS_KEPT_SECONDS,
    TURNS_A_NOTICE,
    announce,
    ask_to_stop,
    forget_events,
    interrupt_lost_turns,
    list_open_turns,
)
from pharos.chat.turns import Turns
from pharos.infra.errors import NotFound, Unavailable
from pharos.infra.ids import MessageId, ProjectId, new_id
from pharos.infra.metrics import STREAMS_ACTIVE
from pharos.infra.notices import Notices
from pharos.infra.sse import Told
from pharos.providers.contract import ChatRequest
from pharos.runtime import Runtime

SHOWN_ANSWERS = "select body from messages where role = 'assistant' and not is_replaced"
QUESTION = "Where was the lighthouse of Alexandria built?"


class Speaker:
    """Says its words, waiting `pause` seconds before each, and after `holds_at` of them until it may go on."""

    name = "speaker"

    def __init__(self, words: list[str], *, pause: float = 0.0, holds_at: int | None = None) -> None:
        self.words, self.pause, self.holds_at = words, pause, holds_at
        self.go_on, self.holds = asyncio.Event(), asyncio.Event()

    async def stream(self, _request: ChatRequest) -> AsyncIterator[str]:
        for number, word in enumerate(self.words):
            if number == self.holds_at:
                self.holds.set()
                await self.go_on.wait()
            await asyncio.sleep(self.pause)
            yield word

    async def list_models(self) -> list[str]:
        return [self.name]

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def web() -> AsyncIterator[Callable[[], Turns]]:
    """Makes what a web process keeps of turns: two of them are two processes."""
    made: list[Turns] = []

    def make() -> Turns:
        made.append(Turns())
        return made[-1]

    yield make
    for turns in made:
        await turns.close()


async def ask(world: Runtime, turns: Turns, tenant: MadeTenant, project_id: ProjectId) -> Turn:
    turn = await begin_turn(world, tenant.admin, project_id=project_id, question=QUESTION, owner=turns.owner)
    turns.start(world, tenant.admin, turn)
    return turn


@asynccontextmanager
async def following(turns: Turns, world: Runtime, turn: Turn, tenant: MadeTenant, *, after: int = 0):  # type: ignore[no-untyped-def]
    async with aclosing(turns.follow(world, tenant.id, turn.message_id, after=after)) as told:  # type: ignore[type-var]
        yield told


async def hear(
    turns: Turns, world: Runtime, turn: Turn, tenant: MadeTenant, *, after: int = 0, at_most: int = 10_000
) -> list[Told]:
    """What is told until its end or until so many events were heard; then the line is dropped."""
    heard: list[Told] = []
    async with following(turns, world, turn, tenant, after=after) as told:
        async for event in told:
            if event is not None:
                heard.append(event)
            if len(heard) >= at_most:
                break
    return heard


def as_sent(event: Told) -> tuple[int, str, str]:
    """An event as it goes over the line: a tuple here is a list from the database, and both are sent alike."""
    return event.seq, event.name, json.dumps(event.data, sort_keys=True)


def said(events: list[Told]) -> str:
    return "".join(event.data["delta"] for event in events if event.name == "text")


async def state_of(runtime: Runtime, tenant: MadeTenant, turn_id: MessageId) -> str:
    async with runtime.db.transaction(tenant.id) as session:
        found = await session.execute(text("select state from turns where id = :id"), {"id": turn_id})
        return str(found.scalar_one())


@pytest.mark.contract("CH-01", part="a streamed answer survives its line")
async def test_a_line_dropped_at_a_hundred_random_points_loses_and_repeats_no_token(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    words = [f"w{number} " for number in range(400)]
    world = with_model(runtime, Speaker(words, pause=0.003))
    here, elsewhere = web(), web()
    turn = await ask(world, here, tenant, project_id)
    heard: list[Told] = []
    drops = 0
    while not heard or heard[-1].name != "done":
        process = elsewhere if chance.random() < 0.15 else here
        heard += await hear(process, world, turn, tenant, after=len(heard), at_most=chance.randint(1, 6))
        drops += 1
    assert drops >= 100, f"seed {seed}"
    assert [event.seq for event in heard] == list(range(1, len(heard) + 1)), f"seed {seed}"
    assert said(heard).split() == "".join(words).split(), f"seed {seed}"
    stored = await hear(elsewhere, world, turn, tenant)
    assert [as_sent(one) for one in stored] == [as_sent(one) for one in heard]
    for after in chance.sample(range(len(heard)), 20):
        assert said(await hear(elsewhere, world, turn, tenant, after=after)) == said(heard[after:]), f"seed {seed}"


async def test_a_turn_goes_on_when_everybody_has_left(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    speaker = Speaker(["It ", "was ", "built ", "on ", "Pharos ", "[1]."], holds_at=2)
    world, turns = with_model(runtime, speaker), web()
    turn = await ask(world, turns, tenant, project_id)
    first = await hear(turns, world, turn, tenant, at_most=2)
    assert await state_of(runtime, tenant, turn.message_id) == "running"
    speaker.go_on.set()
    rest = await hear(turns, world, turn, tenant, after=first[-1].seq)
    assert rest[-1].name == "done"
    assert rest[-1].data["text"] == "It was built on Pharos [1]."
    assert rest[-1].data["stopped"] is False
    async with runtime.db.transaction(tenant.id) as session:
        messages = await list_messages(session, conversation_id=turn.conversation_id)
        assert await list_open_turns(session, conversation_id=turn.conversation_id) == []
    assert [(message.id, message.body) for message in messages if message.role == "assistant"] == [
        (turn.message_id, "It was built on Pharos [1].")
    ]


@pytest.mark.contract("RE-03")
@pytest.mark.contract("ME-09")
async def test_a_stop_from_any_process_keeps_what_was_said_and_reads_the_model_no_further(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    speaker = Speaker(["On ", "Pharos ", "[1] ", "never ", "said"], holds_at=3)
    world = with_model(runtime, speaker)
    async with open_client(world, tenant.admin) as here, open_client(world, tenant.admin) as elsewhere:
        asked = asyncio.create_task(here.post(f"/chat/projects/{project_id}", json={"question": QUESTION}))
        await speaker.holds.wait()
        listening = STREAMS_ACTIVE.labels("/chat/projects/{project_id}")
        assert listening._value.get() == 1
        async with runtime.db.transaction(tenant.id) as session:
            turn_id = (await session.execute(text("select id from turns where state = 'running'"))).scalar_one()
        assert (await elsewhere.post(f"/chat/turns/{turn_id}/stop")).status_code == 204
        body = (await asked).text
        assert listening._value.get() == 0
        assert '"text": "On Pharos [1]' in body
        assert '"stopped": true' in body
        assert "never" not in body
        assert await state_of(runtime, tenant, turn_id) == "stopped"
        again = await elsewhere.post(f"/chat/turns/{turn_id}/stop")
        assert again.status_code == 204


async def test_a_turn_whose_owner_died_is_interrupted_and_can_be_made_anew(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    dead, alive = web(), web()
    turn = await begin_turn(runtime, tenant.admin, project_id=project_id, question=QUESTION, owner=dead.owner)
    async with runtime.db.transaction(tenant.id) as session:
        assert await interrupt_lost_turns(session) == 0
        await session.execute(text("update turns set heartbeat_at = now() - interval '11 seconds'"))
    # The client had heard 7 events of which the dead process stored none.
    (last,) = await hear(alive, runtime, turn, tenant, after=7)
    assert (last.seq, last.name, last.data["error"]) == (8, "error", "interrupted")
    async with runtime.db.transaction(tenant.id) as session:
        (open_turn,) = await list_open_turns(session, conversation_id=turn.conversation_id)
    assert (open_turn.state, open_turn.question) == ("interrupted", QUESTION)
    async with open_client(runtime, tenant.admin) as client:
        answer = await client.post(f"/chat/turns/{turn.message_id}/regenerate")
        assert "event: done" in answer.text
    async with runtime.db.transaction(tenant.id) as session:
        messages = await list_messages(session, conversation_id=turn.conversation_id)
        assert await list_open_turns(session, conversation_id=turn.conversation_id) == []
    assert [message.role for message in messages] == ["user", "assistant"]


async def test_an_owner_that_was_thought_dead_adds_no_answer(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    speaker = Speaker(["On ", "Pharos [1]."], holds_at=1)
    world, turns = with_model(runtime, speaker), web()
    turn = await ask(world, turns, tenant, project_id)
    await hear(turns, world, turn, tenant, at_most=2)
    async with runtime.db.transaction(tenant.id) as session:
        await interrupt_lost_turns(session, lease_seconds=-1)
    speaker.go_on.set()
    heard = await hear(turns, world, turn, tenant)
    assert heard[-1].data["error"] == "interrupted"
    async with runtime.db.transaction(tenant.id) as session:
        messages = await list_messages(session, conversation_id=turn.conversation_id)
    assert [message.role for message in messages] == ["user"]


async def test_a_process_that_ends_lets_its_turns_end_and_marks_the_others(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    turns = web()
    quick = await ask(with_model(runtime, Speaker(["On [1]."], pause=0.05)), turns, tenant, project_id)
    held = await ask(with_model(runtime, Speaker(["On ", "Pharos"], holds_at=1)), turns, tenant, project_id)
    turns.ends_at = asyncio.get_running_loop().time() + 1.0
    await turns.close()
    assert await state_of(runtime, tenant, quick.message_id) == "done"
    assert await state_of(runtime, tenant, held.message_id) == "interrupted"


async def test_an_answer_made_anew_replaces_the_old_one_only_when_it_is_there(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    async with open_client(runtime, tenant.admin) as client:
        first = (await client.post("/chat", json={"question": QUESTION, "projectId": str(project_id)})).json()
    conversation = {"question": "And where?", "conversation_id": first["conversationId"]}
    async with runtime.db.transaction(tenant.id) as session:
        old_id = (await session.execute(text("select id from turns"))).scalar_one()

    async def anew(*words: str) -> str:
        speaker = Speaker(list(words)) if words else Broken()
        async with open_client(with_model(runtime, speaker), tenant.admin) as client:
            return (await client.post(f"/chat/turns/{old_id}/regenerate")).text

    async def answers() -> list[str]:
        async with runtime.db.transaction(tenant.id) as session:
            found = await session.execute(
                text("select body from messages where role = 'assistant' and not is_replaced")
            )
            return [str(body) for body in found.scalars()]

    assert "event: error" in await anew()
    assert await answers() == [first["answer"]]
    assert '"text": "On Pharos [1]."' in await anew("On ", "Pharos [1].")
    assert await answers() == ["On Pharos [1]."]
    async with open_client(runtime, tenant.admin) as client:
        gone = await client.post(f"/chat/turns/{old_id}/regenerate")
        assert (gone.status_code, gone.json()["error"]) == (404, "no_such_turn")
        async with runtime.db.transaction(tenant.id) as session:
            now_id = (await session.execute(text("select id from turns where state = 'done'"))).scalar_one()
        await client.post(f"/chat/projects/{project_id}", json=conversation)
        late = await client.post(f"/chat/turns/{now_id}/regenerate")
        assert (late.status_code, late.json()["error"]) == (409, "not_the_last")


class Broken(Speaker):
    def __init__(self) -> None:
        super().__init__(["On ", "Pharos"])

    async def stream(self, _request: ChatRequest) -> AsyncIterator[str]:
        yield "On "
        raise Unavailable("It went away.", code="provider_failed")


async def test_nobody_follows_stops_or_repeats_the_turn_of_somebody_else(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    turns = web()
    turn = await ask(runtime, turns, tenant, project_id)
    await hear(turns, runtime, turn, tenant)
    async with open_client(runtime, await make_person(runtime.db, tenant.id)) as other:
        path = f"/chat/turns/{turn.message_id}"
        answers = [await other.get(f"{path}/events"), await other.post(f"{path}/stop")]
        answers.append(await other.post(f"{path}/regenerate"))
    assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(404, "no_such_turn")}


async def test_an_old_answer_is_told_from_its_message(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    turns = web()
    turn = await ask(runtime, turns, tenant, project_id)
    fresh = await hear(turns, runtime, turn, tenant)
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(
            text("update turns set ended_at = now() - make_interval(secs => :seconds)"),
            {"seconds": EVENTS_KEPT_SECONDS + 1},
        )
        await forget_events(session)
        assert (await session.execute(text("select count(*) from turn_events"))).scalar_one() == 0
    async with open_client(runtime, tenant.admin) as client:
        answer = await client.get(f"/chat/turns/{turn.message_id}/events", headers={"Last-Event-ID": "3"})
    assert "event: done" in answer.text
    late = await hear(turns, runtime, turn, tenant)
    assert [event.name for event in late] == ["meta", "sources", "done"]
    assert late[-1].data == fresh[-1].data


async def test_characters_no_database_takes_are_replaced_where_a_model_says_them(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    speaker = Speaker(["On ", "\x00", "\ud83d", "\ude00 Pharos [1]."])
    world, turns = with_model(runtime, speaker), web()
    heard = await hear(turns, world, await ask(world, turns, tenant, project_id), tenant)
    assert heard[-1].name == "done"
    assert heard[-1].data["text"] == "On \ufffd\ufffd\ufffd Pharos [1]."


async def test_what_the_database_refuses_of_one_tenant_keeps_no_other_from_being_stored(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, run_jobs: RunJobs, web: Callable[[], Turns]
) -> None:
    other = await make_tenant(runtime.db)
    others_project = await make_project(runtime.db, other.admin)
    await make_document(runtime, other.admin, others_project)
    await run_jobs(runtime)
    refused, speaker = Speaker(["On "], holds_at=0), Speaker(["On ", "Pharos [1]."], holds_at=1)
    here, elsewhere = web(), web()
    turn = await ask(with_model(runtime, refused), here, tenant, project_id)
    await refused.holds.wait()
    for delta in ("\x00", "\ud83d"):
        here._running[turn.message_id].tell(Event("text", {"delta": delta}))
    world = with_model(runtime, speaker)
    others = await ask(world, here, other, others_project)
    async with asyncio.timeout(5):
        assert [event.name for event in await hear(elsewhere, world, others, other, at_most=2)] == ["meta", "text"]
        speaker.go_on.set()
        assert (await hear(elsewhere, world, others, other))[-1].name == "done"


async def test_of_two_who_want_the_same_question_answered_anew_one_gets_through(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    speaker = Speaker(["On ", "Pharos [1]."], holds_at=0)
    async with open_client(runtime, tenant.admin) as client:
        await client.post("/chat", json={"question": QUESTION, "projectId": str(project_id)})
    async with runtime.db.transaction(tenant.id) as session:
        turn_id = (await session.execute(text("select id from turns"))).scalar_one()
    world = with_model(runtime, speaker)
    async with open_client(world, tenant.admin) as here, open_client(world, tenant.admin) as elsewhere:
        both = [asyncio.create_task(each.post(f"/chat/turns/{turn_id}/regenerate")) for each in (here, elsewhere)]
        done, still = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        (refused,), (waiting,) = done, still
        assert (refused.result().status_code, refused.result().json()["error"]) == (409, "still_running")
        speaker.go_on.set()
        assert "event: done" in (await waiting).text
    async with runtime.db.transaction(tenant.id) as session:
        answers = await session.execute(
            text("select count(*) from messages where role = 'assistant' and not is_replaced")
        )
        assert answers.scalar_one() == 1


async def test_a_stop_from_another_process_is_heard_before_the_next_heartbeat(
    *,
    runtime: Runtime,
    tenant: MadeTenant,
    project_id: ProjectId,
    web: Callable[[], Turns],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pharos.chat.turns.HEARTBEAT_SECONDS", 1000)
    speaker = Speaker(["On ", "Pharos"], holds_at=1)
    world, turns, notices, listens = with_model(runtime, speaker), web(), Notices(), asyncio.Event()
    notices.on(CHANNEL, turns.hear, opened=listens.set)
    line = asyncio.create_task(notices.listen(str(runtime.settings.database_url)))
    async with asyncio.timeout(10):
        await listens.wait()
        turn = await ask(world, turns, tenant, project_id)
        await speaker.holds.wait()
        async with runtime.db.transaction(tenant.id) as session:
            await ask_to_stop(session, turn.message_id)
        heard = await hear(turns, world, turn, tenant)
    assert (heard[-1].name, heard[-1].data["stopped"], heard[-1].data["text"]) == ("done", True, "On ")
    line.cancel()
    await asyncio.wait([line])


async def test_one_notice_tells_other_processes_of_all_turns_of_a_batch(
    *,
    runtime: Runtime,
    tenant: MadeTenant,
    project_id: ProjectId,
    web: Callable[[], Turns],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pharos.chat.turn_news.POLL_SECONDS", 1000)
    speaker = Speaker(["It ", "stood ", "on ", "Pharos ", "[1]."], pause=0.15, holds_at=1)
    world = with_model(runtime, speaker)
    here, elsewhere, notices, listens = web(), web(), Notices(), asyncio.Event()
    payloads: list[str] = []
    notices.on(CHANNEL, payloads.append, opened=listens.set)
    notices.on(CHANNEL, elsewhere.hear)
    line = asyncio.create_task(notices.listen(str(runtime.settings.database_url)))
    async with asyncio.timeout(10):
        await listens.wait()
        asked = [await ask(world, here, tenant, project_id) for _ in range(2)]
        for turn in asked:
            await hear(elsewhere, world, turn, tenant, at_most=2)
        speaker.go_on.set()  # from here on both say their words at the same moments
        heard = await asyncio.gather(*(hear(elsewhere, world, turn, tenant) for turn in asked))
    assert [said(events) for events in heard] == ["It stood on Pharos [1]."] * 2
    assert {len(payload.split()) for payload in payloads} == {1, 2}
    async with runtime.db.transaction(tenant.id) as session:
        await announce(session, {new_id() for _ in range(2 * TURNS_A_NOTICE + 1)})
    line.cancel()
    await asyncio.wait([line])


async def test_a_turn_stopped_before_its_first_word_tells_the_same_as_long_as_it_is_asked(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, web: Callable[[], Turns]
) -> None:
    speaker = Speaker(["Never"], holds_at=0)
    world, turns = with_model(runtime, speaker), web()
    turn = await ask(world, turns, tenant, project_id)
    await speaker.holds.wait()
    turns.stop(turn.message_id)
    (last,) = [event for event in await hear(turns, world, turn, tenant) if event.name == "done"]
    async with runtime.db.transaction(tenant.id) as session:
        await session.execute(text("delete from turn_events"))
    assert (await hear(web(), world, turn, tenant))[-1].data == last.data


async def test_a_stopped_answer_is_said_to_be_stopped_and_its_half_sentence_is_not_judged(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    speaker = Speaker(["It was built on Pharos [1]. ", "The keeper's ", "wife"], holds_at=2)
    async with open_client(with_model(runtime, speaker), tenant.admin) as client:
        asked = asyncio.create_task(client.post(f"/chat/projects/{project_id}", json={"question": QUESTION}))
        await speaker.holds.wait()
        async with runtime.db.transaction(tenant.id) as session:
            turn = (await session.execute(text("select * from turns where state = 'running'"))).one()
        await client.post(f"/chat/turns/{turn.id}/stop")
        told = (await asked).text
        page = (await client.get(f"/projects/{project_id}?conversation={turn.conversation_id}")).text
    assert '"cut": "stopped"' in told
    assert '"unsupported": []' in told
    assert "Stopped. This is what was written until then." in page


@pytest.mark.parametrize("said", [0, 1])
async def test_an_answer_takes_no_longer_than_its_time_and_what_was_said_until_then_is_it(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    monkeypatch.setattr("pharos.chat.answer.LONGEST_SECONDS", 1.0)
    speaker = Speaker(["On Pharos [1] ", "for ever"], holds_at=said)
    async with asyncio.timeout(20), open_client(with_model(runtime, speaker), tenant.admin) as client:
        answer = (await client.post("/chat", json={"question": QUESTION, "projectId": str(project_id)})).json()
    assert speaker.holds.is_set()
    if said:
        assert answer["answer"].strip() == "On Pharos [1]"
        assert answer["madeBy"]["cut"] == "time"
    else:
        assert (answer["mode"], answer["degraded"]) == ("extractive", True)


async def test_a_project_that_goes_while_a_question_is_asked_there_is_no_such_project(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)

    def delete(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "project.xmin" in statement:
            connection.exec_driver_sql("delete from projects where id = %s", (project_id,))

    async with runtime.db.transaction(tenant.id) as session:
        connection = (await session.connection()).sync_connection
        events.listen(connection, "before_cursor_execute", delete)
        with pytest.raises(NotFound) as refused:
            await open_turn(session, tenant.admin, project_id=project_id, question=QUESTION, conversation_id=None)
    assert refused.value.code == "no_such_project"
