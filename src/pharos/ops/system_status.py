"""`GET /api/system/status`: every service with its state, its words and how long it took to answer; real probes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
from fastapi import APIRouter, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.current import CurrentPerson, CurrentRuntime
from pharos.infra.database_roles import connection_urls
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import NotAllowed, PharosError, Unavailable
from pharos.infra.ids import TenantId
from pharos.ops import health
from pharos.ops.listen import local_url
from pharos.ops.socket_probe import probe_socket
from pharos.providers.breaker import list_standings
from pharos.runtime import Runtime

router = APIRouter(tags=["health"])

PROBE_SECONDS = 5.0
Probe = Callable[[Runtime], Awaitable[str]]
REQUIRED = ("database", "schema", "vectors")


class Degraded(Exception):
    """It works in part; the message says what does not."""


@router.get("/api/system/status")
async def system_status(person: CurrentPerson, runtime: CurrentRuntime, response: Response) -> dict[str, Any]:
    """For administrators and engineers. 503 when something is down that nothing works without."""
    if person.platform_role == "none":
        raise NotAllowed("This is for administrators and engineers. Ask one of yours.", code="not_an_admin")
    probes = PROBES | {"providers": partial(providers, tenant_id=person.tenant_id)}
    found = dict(zip(probes, await asyncio.gather(*(_ask(runtime, probe) for probe in probes.values())), strict=True))
    states = {service["status"] for service in found.values()}
    is_down = any(found[name]["status"] == "down" for name in REQUIRED)
    response.status_code = 503 if is_down else 200
    return {
        "status": "down" if is_down else "degraded" if states - {"up", "off"} else "up",
        "timestamp": datetime.now(UTC).isoformat(),
        "uptime": round(time.monotonic() - health.STARTED, 3),
        "services": found,
    }


async def _ask(runtime: Runtime, probe: Probe) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            status, message = "up", await probe(runtime)
    except Degraded as error:
        status, message = "degraded", str(error)
    except TimeoutError:
        status, message = "down", f"no answer within {PROBE_SECONDS:.0f} seconds"
    except PharosError as error:
        status, message = "down", error.message
    except (SQLAlchemyError, psycopg.Error, OSError) as error:
        status, message = "down", type(error).__name__  # its words may hold the address with the password
    if not message:
        status, message = "off", "not configured"
    return {"status": status, "message": message, "latencyMs": round((time.perf_counter() - started) * 1000, 1)}


def _holds(probe: health.Probe, words: str, otherwise: str) -> Probe:
    async def ask(runtime: Runtime) -> str:
        if not await probe(runtime):
            raise Unavailable(otherwise)
        return words

    return ask


async def email(runtime: Runtime) -> str:
    """The server's greeting, or "" without one."""
    return "" if runtime.settings.smtp_url is None else await runtime.mail.probe()


async def storage(runtime: Runtime) -> str:
    """Write some bytes beside the uploads and read them back."""
    sample = secrets.token_bytes(64)

    def write_and_read() -> bool:
        root = runtime.blobs.root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = root / f".probe-{secrets.token_hex(4)}"
        try:
            probe.write_bytes(sample)
            return probe.read_bytes() == sample
        finally:
            probe.unlink(missing_ok=True)

    if not await asyncio.to_thread(write_and_read):
        raise Unavailable("What was written reads back differently. Check the disk.")
    return "written and read back"


async def pubsub(runtime: Runtime) -> str:
    """Say something to ourselves through the database."""
    channel, word = "pharos_echo", secrets.token_hex(8)
    url = connection_urls(runtime.settings).direct
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as line:
        await line.execute(f"listen {channel}")
        async with system_transaction(runtime.db) as session:
            await session.execute(text("select pg_notify(:channel, :word)"), {"channel": channel, "word": word})
        async for notice in line.notifies(timeout=PROBE_SECONDS):
            if notice.payload == word:
                break
        else:
            raise Unavailable("A notice did not come back. Does PHAROS_DATABASE_DIRECT_URL lead past the pooler?")
    if not runtime.notices.is_open:
        raise Degraded("This process hears no notices at the moment: news comes a little later.")
    return "a notice came back"


async def websocket(runtime: Runtime) -> str:
    """Open our own `/ws` as nobody."""
    await probe_socket(local_url(runtime.settings))
    return "opens, and asks who comes"


async def rate_limiting(runtime: Runtime) -> str:
    """A count that nobody is limited by."""
    await runtime.limits.probe()
    return f"counted in {'Redis' if runtime.settings.redis_url else 'the database'}"


async def cache(runtime: Runtime) -> str:
    """Redis, where one is configured."""
    if runtime.settings.redis_url is None:
        return ""
    await runtime.cache.get("probe")
    if runtime.cache.is_fallen_back:
        raise Degraded("Redis does not answer: this process keeps for itself until it is back.")
    return "Redis answers"


async def embedder(runtime: Runtime) -> str:
    """One vector."""
    if await runtime.embedding.state() == "loading":
        raise Degraded("It loads its models; search goes by words until then.")
    await runtime.embedding.embed(["status"])
    return "a vector was made"


async def providers(runtime: Runtime, *, tenant_id: TenantId) -> str:
    """The breakers of what the tenant may use: a call that costs money is nothing for a probe."""
    try:
        usable = {known.state_key for known in await runtime.models.known(tenant_id)}
    except Unavailable:  # the tenant wants no models
        return ""
    standings = [one for one in await list_standings(runtime.db) if one.key in usable]
    if resting := sum(one.state != "closed" for one in standings):
        raise Degraded(f"{resting} of {len(standings)} providers rest after failures. `pharos breaker` names them.")
    return f"{len(standings)} called so far, none rests" if standings else ""


async def backups(runtime: Runtime) -> str:
    """No backup, copy or drill that is due is missing or failed."""
    if not await health.backups_work(runtime):
        raise Degraded("Something must be done about backups: `pharos doctor backup` says what.")
    return "none is missing or failed"


PROBES: dict[str, Probe] = {
    "database": _holds(health.database_answers, "answers", "It does not answer."),
    "schema": _holds(health.schema_is_valid, "as this code expects", "Migrations are missing: pharos migrate --apply"),
    "email": email,
    "storage": storage,
    "pubsub": pubsub,
    "websocket": websocket,
    "rateLimiting": rate_limiting,
    "queue": _holds(health.queue_answers, "a worker reports", "No worker has reported. `pharos status`"),
    "cache": cache,
    "vectors": _holds(health.vectors_answer, "one space is live", "No vector space is live."),
    "embedder": embedder,
    "backups": backups,
}
