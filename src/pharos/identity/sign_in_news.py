"""What a web process does beside its requests: hear of changes to sign-ins, and write down what was used when."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.recognise import forget_person
from pharos.infra.database_roles import connection_urls
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.runtime import Runtime

log = get_logger(__name__)

WRITE_EVERY_SECONDS = 60.0

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
    hear_of_sign_ins(runtime)
    url = connection_urls(runtime.settings).direct
    tasks = [asyncio.create_task(runtime.notices.keep_listening(url)), asyncio.create_task(_keep_writing(runtime))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(SQLAlchemyError, OSError):  # they say when something was used last: a loss is bearable
            await write_uses(runtime)


def hear_of_sign_ins(runtime: Runtime) -> None:
    """Forget every sign-in that changes, as the database announces it, and keep none while it cannot be heard."""
    runtime.notices.on(
        "pharos_sign_ins",
        lambda payload: hear(runtime, payload),
        opened=runtime.sign_ins.listen,
        lost=lambda: runtime.sign_ins.forget_all(deaf=True),
    )


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


async def _keep_writing(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(WRITE_EVERY_SECONDS)
        try:
            await write_uses(runtime)
        except (SQLAlchemyError, OSError) as error:
            log.warning("uses.not_written", error=type(error).__name__)
