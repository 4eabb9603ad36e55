"""`/ws` on a running server: who may open it, what each hears, and that nobody who was away misses anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.live_server import live_server
from tests.make import MadeTenant, make_document, make_person, make_project, make_token
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from pharos.access.news import Reading, forget_news, read_news
from pharos.chat.history import open_turn
from pharos.chat.turn_rows import end_turn
from pharos.identity.current import COOKIE
from pharos.identity.principal import Principal
from pharos.identity.recognise import find_by_session_token
from pharos.identity.sign_in import open_session, sign_out
from pharos.identity.tokens import csrf_token
from pharos.infra.ids import ProjectId
from pharos.runtime import Runtime

WITHIN_SECONDS = 5.0


@pytest.fixture
async def served(runtime: Runtime) -> AsyncIterator[str]:
    """The address of `/ws` on a server of its own runtime: what the test writes comes from another process."""
    async with live_server(runtime.settings) as url:
        yield f"ws{url.removeprefix('http')}/ws"


@asynccontextmanager
async def socket_of(runtime: Runtime, url: str, person: Principal, **query: int) -> AsyncIterator[ClientConnection]:
    protocols = [Subprotocol("pharos"), Subprotocol(f"bearer.{await make_token(runtime, person)}")]
    address = url + "".join(f"?{name}={value}" for name, value in query.items())
    async with connect(address, subprotocols=protocols) as socket:
        yield socket


async def hear(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(WITHIN_SECONDS):
        heard: dict[str, Any] = json.loads(await socket.recv())
    return heard


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(WITHIN_SECONDS):
        await socket.wait_closed()
    return socket.close_code


async def change(runtime: Runtime, tenant_id: UUID, document_id: UUID, status: str) -> None:
    async with runtime.db.transaction(tenant_id) as session:  # type: ignore[arg-type]
        await session.execute(
            text("update documents set status = :status where id = :id"), {"status": status, "id": document_id}
        )


@pytest.mark.contract("RE-01", part="a client can open it")
async def test_whoever_is_signed_in_hears_at_once_what_becomes_of_a_document(
    runtime: Runtime, tenant: MadeTenant, served: str
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    document_id = (await make_document(runtime, tenant.admin, project_id)).id
    async with socket_of(runtime, served, tenant.admin) as socket:
        assert socket.subprotocol == "pharos"
        hello = await hear(socket)
        await change(runtime, tenant.id, document_id, "failed")
        event = await hear(socket)
    assert (hello["name"], event["seq"]) == ("hello", hello["seq"] + 1)
    assert (event["name"], event["project_id"]) == ("document.changed", str(project_id))
    assert event["data"] == {"document_id": str(document_id), "status": "failed"}


@pytest.mark.contract("RE-06")
async def test_a_client_that_was_away_catches_up_by_number_and_misses_nothing(
    runtime: Runtime, tenant: MadeTenant, served: str
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    document_id = (await make_document(runtime, tenant.admin, project_id)).id
    async with socket_of(runtime, served, tenant.admin) as socket:
        at = (await hear(socket))["seq"]

    async def flip(status: str) -> None:
        await change(runtime, tenant.id, document_id, status)

    await asyncio.gather(*(flip(status) for status in ["failed", "pending"] * 10))
    async with socket_of(runtime, served, tenant.admin, after=at) as socket:
        assert (await hear(socket))["seq"] == at
        heard = [(await hear(socket))["seq"] for _ in range(20)]
    assert heard == list(range(at + 1, at + 21))


async def test_numbers_become_visible_in_their_order_whoever_commits_first(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    one, two = [(await make_document(runtime, tenant.admin, project_id, content=each)).id for each in (b"one", b"two")]
    async with runtime.db.transaction(tenant.id) as slow:
        before = (await read_news(slow, tenant.admin, after=None)).at
        await slow.execute(text("update documents set status = 'failed' where id = :id"), {"id": one})
        await change(runtime, tenant.id, two, "failed")
        assert (await read_news(slow, tenant.admin, after=before)).at == before + 1
    async with runtime.db.transaction(tenant.id) as session:
        news = (await read_news(session, tenant.admin, after=before)).news
    assert [(each.seq, each.data["document_id"]) for each in news] == [(before + 1, str(two)), (before + 2, str(one))]


async def test_without_the_line_to_the_database_news_still_comes(
    runtime: Runtime, tenant: MadeTenant, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.access.socket_routes.LOOK_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr("pharos.access.news.Bells.hear", lambda self, payload: None)
    project_id = await make_project(runtime.db, tenant.admin)
    document_id = (await make_document(runtime, tenant.admin, project_id)).id
    async with socket_of(runtime, served, tenant.admin) as socket:
        await hear(socket)
        async with runtime.db.transaction(tenant.id) as session:
            await session.execute(
                text(
                    "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen%' "
                    "and datname = current_database()"
                )
            )
        await change(runtime, tenant.id, document_id, "failed")
        assert (await hear(socket))["data"]["status"] == "failed"


async def test_only_who_sees_a_project_hears_of_it_and_only_the_asker_of_an_answer(
    runtime: Runtime, tenant: MadeTenant, member: Principal, stranger: Principal, served: str
) -> None:
    hidden = await make_project(runtime.db, tenant.admin, is_private=True)
    asker = await make_person(runtime.db, tenant.id)
    document_id = (await make_document(runtime, tenant.admin, hidden)).id
    async with (
        socket_of(runtime, served, member) as mine,
        socket_of(runtime, served, stranger) as strangers,
        socket_of(runtime, served, tenant.admin) as admins,
    ):
        for socket in (mine, strangers, admins):
            await hear(socket)
        await change(runtime, tenant.id, document_id, "failed")
        assert (await hear(admins))["name"] == "document.changed"
        turn_id = await answered(runtime, member, await make_project(runtime.db, member, is_private=True))
        heard = await hear(mine)
        assert (heard["name"], heard["data"]["turn_id"]) == ("turn.ended", str(turn_id))
        await answered(runtime, asker, await make_project(runtime.db, asker, is_private=True))
        for socket in (mine, strangers, admins):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.3)


@pytest.mark.contract("RE-06", part="who may hear nothing of it asks the database no more often than others")
async def test_what_others_alone_may_know_costs_one_look_a_pause(
    runtime: Runtime, tenant: MadeTenant, member: Principal, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: asyncio.Queue[int | None] = asyncio.Queue()

    async def look(session: AsyncSession, principal: Principal, *, after: int | None) -> Reading:
        looked.put_nowait(after)
        return await read_news(session, principal, after=after)

    monkeypatch.setattr("pharos.access.socket_routes.read_news", look)
    monkeypatch.setattr("pharos.access.socket_routes.PAUSE_SECONDS", 60)
    hidden = await make_project(runtime.db, tenant.admin, is_private=True)
    document_id = (await make_document(runtime, tenant.admin, hidden)).id
    async with socket_of(runtime, served, member) as socket:
        at = (await hear(socket))["seq"]
        assert await looked.get() is None
        await change(runtime, tenant.id, document_id, "failed")
        async with asyncio.timeout(WITHIN_SECONDS):
            assert await looked.get() == at
        await change(runtime, tenant.id, document_id, "pending")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(looked.get(), 0.3)


async def test_whatever_a_client_says_means_nothing_and_harms_nothing(
    runtime: Runtime, tenant: MadeTenant, served: str
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    document_id = (await make_document(runtime, tenant.admin, project_id)).id
    async with socket_of(runtime, served, tenant.admin) as socket:
        await hear(socket)
        for said in (b"\x00\xff", "hello"):
            await socket.send(said)
        await change(runtime, tenant.id, document_id, "failed")
        assert (await hear(socket))["name"] == "document.changed"


async def answered(runtime: Runtime, person: Principal, project_id: ProjectId) -> UUID:
    async with runtime.db.transaction(person.tenant_id) as session:
        turn = await open_turn(
            session, person, project_id=project_id, question="Where is it?", conversation_id=None, owner="me"
        )
    async with runtime.db.transaction(person.tenant_id) as session:
        await end_turn(session, turn.message_id, state="stopped")
    return turn.message_id


async def test_nobody_and_a_bad_token_are_closed_with_1008(runtime: Runtime, served: str) -> None:
    async with connect(served) as socket:
        assert await close_code(socket) == 1008
    async with connect(served, subprotocols=[Subprotocol("pharos"), Subprotocol("bearer.nonsense")]) as socket:
        assert await close_code(socket) == 1008


async def test_a_cookie_opens_it_from_our_own_pages_alone_and_with_their_token(
    runtime: Runtime, member: Principal, served: str
) -> None:
    cookie = (await open_session(runtime, member)).session_token
    token = csrf_token(runtime.settings, (await find_by_session_token(runtime, cookie)).session_id)
    ours = "http" + served.removeprefix("ws").removesuffix("/ws")

    async def outcome(origin: str | None, offered: str | None) -> str | int | None:
        protocols = [Subprotocol("pharos")] + ([Subprotocol(f"csrf.{offered}")] if offered else [])
        async with connect(
            served,
            subprotocols=protocols,
            origin=Origin(origin) if origin else None,
            additional_headers={"Cookie": f"{COOKIE}={cookie}"},
        ) as socket:
            try:
                return str((await hear(socket))["name"])
            except ConnectionClosed:
                return socket.close_code

    assert await outcome(ours, token) == "hello"
    assert await outcome(ours, None) == 1008
    assert await outcome(ours, "x" * 43) == 1008
    assert await outcome("https://evil.example", token) == 1008
    assert await outcome(None, token) == 1008


async def test_a_socket_whose_session_ends_hears_no_more(
    runtime: Runtime, member: Principal, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.access.socket_routes.LOOK_AGAIN_SECONDS", 0.2)
    session = await open_session(runtime, member)
    offered = [Subprotocol("pharos"), Subprotocol(f"bearer.{session.access_token}")]
    async with connect(served, subprotocols=offered) as socket:
        await hear(socket)
        await sign_out(runtime, await find_by_session_token(runtime, session.session_token))
        assert await close_code(socket) == 1008


async def test_a_grant_that_is_taken_away_counts_for_what_was_not_heard_yet(
    runtime: Runtime, tenant: MadeTenant, member: Principal
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    document_id = (await make_document(runtime, tenant.admin, project_id)).id
    await change(runtime, tenant.id, document_id, "failed")
    async with runtime.db.transaction(tenant.id) as session:
        assert (await read_news(session, member, after=0)).news
        await session.execute(text("update projects set is_private = true where id = :id"), {"id": project_id})
        assert not (await read_news(session, member, after=0)).news


async def test_old_rows_go_the_newest_number_stays_and_who_is_too_late_is_told(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    document_id = (await make_document(runtime, tenant.admin, project_id)).id
    for status in ("failed", "pending", "failed"):
        await change(runtime, tenant.id, document_id, status)
    async with runtime.db.transaction(tenant.id) as session:
        newest = (await read_news(session, tenant.admin, after=None)).at
        await forget_news(session, kept_seconds=-1)
        assert (await read_news(session, tenant.admin, after=newest)).is_torn is False
        assert (await read_news(session, tenant.admin, after=0)).is_torn
        assert (await read_news(session, tenant.admin, after=newest + 5)).is_torn
    await change(runtime, tenant.id, document_id, "pending")
    async with runtime.db.transaction(tenant.id) as session:
        assert (await read_news(session, tenant.admin, after=newest)).at == newest + 1
