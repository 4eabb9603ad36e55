"""Opinions of answers: one's last word counts, and none is lost while the database is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs
from tests.conftest import RunJobs, open_client
from tests.make import MadeTenant, make_document, make_person, make_project, make_token

from pharos.app import create_app
from pharos.chat.feedback import list_rated_down, replay_feedback
from pharos.chat.history import list_messages
from pharos.identity.current import COOKIE
from pharos.identity.sign_in import open_session
from pharos.infra.db import create_database
from pharos.infra.embedded_postgres import free_port
from pharos.infra.ids import ConversationId
from pharos.infra.limits import Limits
from pharos.runtime import Runtime

QUESTION = "Where was the lighthouse of Alexandria built?"


@pytest.fixture
async def answer_id(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> str:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    async with open_client(runtime, tenant.admin) as client:
        await client.post("/chat", json={"question": QUESTION, "projectId": str(project_id)})
    async with runtime.db.transaction(tenant.id) as session:
        found = await session.execute(text("select id from messages where role = 'assistant'"))
        return str(found.scalar_one())


@pytest.fixture
async def outage(runtime: Runtime) -> AsyncIterator[Runtime]:
    """The same installation while its database refuses every connection."""
    gone = create_database(f"postgresql://nobody@127.0.0.1:{free_port()}/none", pool_size=1)
    yield replace(runtime, db=gone, limits=Limits(runtime.settings, gone))
    await gone.dispose()


async def ratings(runtime: Runtime, tenant: MadeTenant) -> list[tuple[str, str]]:
    async with runtime.db.transaction(tenant.id) as session:
        return [tuple(row) for row in await session.execute(text("select rating, comment from feedback"))]


@pytest.mark.contract("CH-07", part="stored, 201")
async def test_ones_last_word_on_an_answer_counts(runtime: Runtime, tenant: MadeTenant, answer_id: str) -> None:
    async with open_client(runtime, tenant.admin) as client:
        for rating, comment in (("up", ""), ("down", "It is older.")):
            said = {"messageId": answer_id, "rating": rating, "comment": comment}
            assert (await client.post("/feedback", json=said)).status_code == 201
        assert (await client.post("/feedback", json={"messageId": answer_id, "rating": "5"})).status_code == 422
    assert await ratings(runtime, tenant) == [("down", "It is older.")]


async def test_nobody_rates_an_answer_to_somebody_else(runtime: Runtime, tenant: MadeTenant, answer_id: str) -> None:
    async with open_client(runtime, await make_person(runtime.db, tenant.id)) as other:
        refused = await other.post("/feedback", json={"messageId": answer_id, "rating": "up"})
    assert (refused.status_code, refused.json()["error"]) == (404, "no_such_message")
    async with open_client(runtime) as nobody:
        assert (await nobody.post("/feedback", json={"messageId": answer_id, "rating": "up"})).status_code == 401


@pytest.mark.contract("CH-07")
async def test_feedback_during_an_outage_is_kept_and_stored_afterwards(
    runtime: Runtime, outage: Runtime, tenant: MadeTenant, answer_id: str
) -> None:
    token = await make_token(runtime, tenant.admin)
    cookie = (await open_session(runtime, tenant.admin)).session_token
    transport = httpx.ASGITransport(create_app(outage.settings, runtime=outage))
    said = {"messageId": answer_id, "rating": "up", "comment": "Good."}
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        taken = await client.post("/feedback", json=said, headers={"Authorization": f"Bearer {token}"})
        assert (taken.status_code, taken.json()) == (202, {"stored": False})
        assert (await client.get("/health/detailed")).json()["components"]["postgres"]["status"] == "down"
        forged = await client.post("/feedback", json=said, headers={"Authorization": "Bearer x.y.z"})
        assert forged.status_code == 401
        by_cookie = {"Cookie": f"{COOKIE}={cookie}", "X-CSRF-Token": "x"}
        later = await client.post("/feedback", json=said | {"comment": "Very good."}, headers=by_cookie)
        assert later.status_code == 202
        invented = {"Cookie": f"{COOKIE}=phs_{tenant.id.hex}_invented", "X-CSRF-Token": "x"}
        assert (await client.post("/feedback", json=said, headers=invented)).status_code == 202
        foreign = by_cookie | {"Sec-Fetch-Site": "cross-site"}
        assert (await client.post("/feedback", json=said, headers=foreign)).status_code == 403
    kept = list((runtime.settings.data_dir / "spool" / "feedback").iterdir())
    assert len(kept) == 3
    assert not any(cookie in file.read_text() or token in file.read_text() for file in kept)
    assert {file.stat().st_mode & 0o777 for file in kept} == {0o600}
    assert await replay_feedback(runtime) == 2
    assert await ratings(runtime, tenant) == [("up", "Very good.")]
    assert not list((runtime.settings.data_dir / "spool" / "feedback").iterdir())
    assert await replay_feedback(runtime) == 0


@pytest.mark.contract("CH-07", part="what can never be stored does not stand in the way of the rest")
async def test_an_opinion_that_cannot_be_stored_is_dropped_and_those_behind_it_are_stored(
    runtime: Runtime, outage: Runtime, tenant: MadeTenant, answer_id: str
) -> None:
    token = await make_token(runtime, tenant.admin)
    transport = httpx.ASGITransport(create_app(outage.settings, runtime=outage))
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
        for comment in ("\0", "Good."):
            said = {"messageId": answer_id, "rating": "up", "comment": comment}
            assert (await client.post("/feedback", json=said)).status_code == 202
    folder = runtime.settings.data_dir / "spool" / "feedback"
    (folder / "0-half.json").write_text('{"by": {"session')
    (folder / "1-other.json").write_text('{"by": []}')
    (folder / "2-older.json").write_text('{"from": 1}')
    with capture_logs() as logs:
        assert await replay_feedback(runtime) == 1
    dropped = [line["code"] for line in logs if line["event"] == "feedback.dropped"]
    assert sorted(dropped) == ["bad_value", "unreadable", "unreadable", "unreadable"]
    assert await ratings(runtime, tenant) == [("up", "Good.")]
    assert not list(folder.iterdir())


async def test_an_answer_that_was_rated_and_made_anew_stays_for_who_reads_the_ratings(
    runtime: Runtime, tenant: MadeTenant, answer_id: str
) -> None:
    async with open_client(runtime, tenant.admin) as client:
        await client.post("/feedback", json={"messageId": answer_id, "rating": "down", "comment": "It is older."})
        assert "event: done" in (await client.post(f"/chat/turns/{answer_id}/regenerate")).text
    async with runtime.db.transaction(tenant.id) as session:
        (rated,) = await list_rated_down(session, tenant.admin, limit=10)
        conversation = (await session.execute(text("select id from conversations"))).scalar_one()
        shown = await list_messages(session, conversation_id=ConversationId(conversation))
        replaced = text("select body from messages where id = :id and is_replaced")
        assert rated.answer == (await session.execute(replaced, {"id": answer_id})).scalar_one()
    assert (rated.question, rated.comment) == (QUESTION, "It is older.")
    assert [message.role for message in shown] == ["user", "assistant"]
    assert answer_id not in {str(message.id) for message in shown}
