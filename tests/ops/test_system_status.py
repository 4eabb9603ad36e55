"""The status of every service is what a probe found at this moment, and `doctor ws` opens a real socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from tests.conftest import open_client
from tests.live_server import live_server
from tests.make import MadeTenant, make_token
from tests.providers.worlds import make_provider
from tests.smtp_server import Post, smtp_server

from pharos.identity.principal import Principal
from pharos.infra.cache import Cache
from pharos.infra.db_system import system_transaction
from pharos.infra.embedded_postgres import free_port
from pharos.infra.errors import Unavailable
from pharos.infra.ids import new_id
from pharos.infra.smtp import MailTransport
from pharos.ops.socket_probe import probe_socket
from pharos.providers.breaker import list_standings
from pharos.runtime import Runtime

SERVICES = {"database", "schema", "email", "storage", "pubsub", "websocket", "rateLimiting", "queue", "cache"}


@pytest.mark.contract("HE-07", part="probes of database, schema, storage, pubsub, websocket, limits, vectors")
@pytest.mark.contract("RE-04")
async def test_each_service_has_its_own_state_and_latency(runtime: Runtime, tenant: MadeTenant) -> None:
    headers = {"Authorization": f"Bearer {await make_token(runtime, tenant.admin)}"}
    async with live_server(runtime.settings) as url, httpx.AsyncClient(headers=headers) as client:
        reply = await client.get(f"{url}/api/system/status", timeout=20)
    services = reply.json()["services"]
    assert reply.status_code == 200
    assert set(services) >= SERVICES | {"embedder", "providers", "backups"}
    for name in ("database", "schema", "storage", "pubsub", "websocket", "rateLimiting", "vectors"):
        assert services[name]["status"] == "up", services[name]
        assert services[name]["latencyMs"] > 0
    assert services["email"] == services["email"] | {"status": "off", "message": "not configured"}
    assert {"status", "timestamp", "uptime"} <= set(reply.json())


async def test_what_is_gone_is_down_alone(runtime: Runtime, tenant: MadeTenant) -> None:
    """Here nothing listens on the port, nothing hears notices, and the uploads' folder is a file."""
    runtime.blobs.root.parent.mkdir(parents=True, exist_ok=True)
    runtime.blobs.root.write_text("not a folder")
    async with open_client(runtime, tenant.admin) as admin:
        reply = await admin.get("/api/system/status")
    states = {name: service["status"] for name, service in reply.json()["services"].items()}
    assert reply.status_code == 200
    assert {name: states[name] for name in ("database", "pubsub", "websocket", "storage")} == {
        "database": "up",
        "pubsub": "degraded",
        "websocket": "down",
        "storage": "down",
    }
    assert "password" not in reply.text


@pytest.mark.contract("HE-07", part="the mail server's handshake")
async def test_mail_is_up_while_its_server_greets_us_and_takes_our_sender(runtime: Runtime, tenant: MadeTenant) -> None:
    post, port = Post(), free_port()
    changes = {"smtp_url": SecretStr(f"smtp://127.0.0.1:{port}"), "mail_from": "pharos@example.com"}
    settings = runtime.settings.model_copy(update=changes)
    world = replace(runtime, settings=settings, mail=MailTransport(settings))
    async with open_client(world, tenant.admin) as admin:
        with smtp_server(post, port=port):
            assert await states_of(admin, "email") == [("up", f"127.0.0.1:{port} takes mail of pharos@example.com.")]
            assert (post.greetings, post.received) == (1, [])
            post.to_sender = ["550 5.7.1 not from here"]
            ((status, message),) = await states_of(admin, "email")
            assert (status, "refused the sender pharos@example.com (550)" in message) == ("down", True), message
        ((status, message),) = await states_of(admin, "email")
    assert status == "down", message


async def states_of(admin: httpx.AsyncClient, *names: str) -> list[tuple[str, str]]:
    services = (await admin.get("/api/system/status")).json()["services"]
    return [(services[name]["status"], services[name]["message"]) for name in names]


@pytest.mark.contract("HE-07", part="probes of queue and providers")
async def test_the_queue_is_up_while_a_worker_reports_and_providers_while_none_of_ones_own_rests(
    runtime: Runtime, tenant: MadeTenant, stranger: Principal
) -> None:
    mine = await make_provider(runtime, tenant.id, "https://lamp.example/v1")
    other = await make_provider(runtime, stranger.tenant_id, "https://lamp.example/v1")
    async with system_transaction(runtime.db) as session:
        await session.execute(text("update procrastinate_workers set last_heartbeat = now() - interval '1 minute'"))
        fares = text("insert into provider_states (key, label, state, opened_at) values (:key, :key, :state, now())")
        await session.execute(fares, {"key": str(mine), "state": "closed"})
        await session.execute(fares, {"key": str(other), "state": "open"})
    async with open_client(runtime, tenant.admin) as admin:
        queue, providers = await states_of(admin, "queue", "providers")
        assert queue == ("down", "No worker has reported. `pharos status`")
        assert providers == ("up", "1 called so far, none rests")
        async with system_transaction(runtime.db) as session:
            await session.execute(text("insert into procrastinate_workers (last_heartbeat) values (now())"))
            await session.execute(
                text("update provider_states set state = 'open' where key = :key"), {"key": str(mine)}
            )
        queue, providers = await states_of(admin, "queue", "providers")
        assert queue == ("up", "a worker reports")
        assert providers == ("degraded", "1 of 1 providers rest after failures. `pharos breaker` names them.")
    async with system_transaction(runtime.db) as session:
        await session.execute(text("update procrastinate_workers set last_heartbeat = now() - interval '1 minute'"))


@pytest.mark.contract("HE-07", part="a probe of the cache")
async def test_the_cache_is_what_answers_are_kept_in(runtime: Runtime, tenant: MadeTenant) -> None:
    """Here the limits still count in the database, and no Redis listens."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    settings = runtime.settings.model_copy(update={"redis_url": url})
    world = replace(runtime, settings=settings, cache=Cache(url))
    async with open_client(world, tenant.admin) as admin:
        ((status, message),) = await states_of(admin, "cache")
    await world.cache.close()
    assert (status, message.split(":")[0]) == ("degraded", "Redis does not answer")


async def test_it_is_for_administrators_and_engineers(as_member: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    assert (await as_member.get("/api/system/status")).status_code == 403
    assert (await client.get("/api/system/status")).status_code == 401


@pytest.mark.contract("RE-01", part="a plain check from the server itself")
async def test_the_check_says_what_a_proxy_did_with_the_upgrade(runtime: Runtime) -> None:
    async with live_server(runtime.settings) as url:
        await probe_socket(url)

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(Unavailable, match="426 Upgrade Required"):
            await probe_socket(f"http://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="Is the web process up"):
        await probe_socket(f"http://127.0.0.1:{port}")


@pytest.mark.contract("LP-21", part="a start of the web process resets it")
async def test_a_start_of_the_web_process_gives_every_provider_another_chance(runtime: Runtime) -> None:
    key = new_id().hex
    async with system_transaction(runtime.db) as session:
        opened = "insert into provider_states (key, label, state, opened_at) values (:key, :key, 'open', now())"
        await session.execute(text(opened), {"key": key})
    async with live_server(runtime.settings):
        assert {one.state for one in await list_standings(runtime.db) if one.key == key} == {"closed"}
