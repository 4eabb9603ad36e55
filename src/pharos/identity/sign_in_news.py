"""What a web process does beside its requests: hear of changes to sign-ins, and write down what was used when."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.recognise import forget_person
from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import PharosError
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.runtime import Runtime

log = get_logger(__name__)

LISTEN_AGAIN_SECONDS = 1.0
WRITE_EVERY_SECONDS = 60.0
# A line that died without a word is noticed within 20 seconds, well before what it kept remembered is old.
KEEPALIVE: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}

WRITE_USES = {
    "sessions": text(
        """
        update sessions s set last_seen_at = u.at
        from unnest(cast(:ids as uuid[]), cast(:times as timestamptz[])) as u(id, at)
        where s.id = u.id and s.last_seen_at < u.at
        """
    ),
    "api_keys": text(
        """
        update api_keys k set last_used_at = u.at
        from unnest(cast(:ids as uuid[]), cast(:times as timestamptz[])) as u(id, at)
        where k.id = u.id and (k.last_used_at is null or k.last_used_at < u.at)
        """
    ),
}


@contextlib.asynccontextmanager
async def sign_in_upkeep(runtime: Runtime) -> AsyncIterator[None]:
    """Hear and write while the block runs; at its end what is not written yet is written."""
    tasks = [asyncio.create_task(_keep_listening(runtime)), asyncio.create_task(_keep_writing(runtime))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(SQLAlchemyError, OSError):  # they say when something was used last: a loss is bearable
            await write_uses(runtime)


async def listen(runtime: Runtime) -> None:
    """Forget every sign-in that changes, as the database announces it; ends with the connection."""
    url = connection_urls(runtime.settings).direct
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10, **KEEPALIVE) as line:
        await line.execute("listen pharos_sign_ins")
        runtime.sign_ins.listen()
        async for notice in line.notifies():
            hear(runtime, notice.payload)


def hear(runtime: Runtime, payload: str) -> None:
    """Forget the sessions of whom `user:ID` names; anything else is taken to mean everything."""
    try:
        user_id = UUID(payload.removeprefix("user:"))
    except ValueError:
        runtime.sign_ins.forget_all()
        return
    forget_person(runtime, user_id)


async def write_uses(runtime: Runtime) -> None:
    """Write when sessions and keys were used last; one statement a tenant and table."""
    uses = dict(runtime.uses)
    runtime.uses.clear()
    batches: dict[tuple[TenantId, str], dict[UUID, datetime]] = defaultdict(dict)
    for (tenant_id, table, row_id), at in uses.items():
        batches[tenant_id, table][row_id] = at
    for (tenant_id, table), times in batches.items():
        async with runtime.db.transaction(tenant_id) as session:
            await session.execute(WRITE_USES[table], {"ids": list(times), "times": list(times.values())})


async def _keep_listening(runtime: Runtime) -> None:
    while True:
        try:
            await listen(runtime)
        except (psycopg.Error, OSError, PharosError) as error:
            log.warning("sign_ins.not_heard", error=type(error).__name__)
        finally:
            runtime.sign_ins.forget_all(deaf=True)
        await asyncio.sleep(LISTEN_AGAIN_SECONDS)


async def _keep_writing(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(WRITE_EVERY_SECONDS)
        try:
            await write_uses(runtime)
        except (SQLAlchemyError, OSError) as error:
            log.warning("uses.not_written", error=type(error).__name__)
