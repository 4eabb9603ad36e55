"""One question to an installation that was restored just now, whose answer must cite the document it is about (RS-09).

Asked as the drill asks its canaries, through the web, and removed again: whoever it was asked as finds no conversation
that they never had.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import httpx
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from pharos.infra.database_roles import connection_urls
from pharos.infra.errors import LimitReached, PharosError, Unavailable
from pharos.infra.ids import TenantId
from pharos.infra.settings import Settings
from pharos.ops.backup.drill_pharos import TenantToAsk, ask_canary, tenants_to_ask
from pharos.ops.listen import local_url
from pharos.ops.smoke import Check, Result
from pharos.runtime import open_runtime

NAME = "sample question"
TENANTS_ASKED = 3
"""One may have no documents. The drill asks every tenant; after a restore people wait."""


async def ask_sample(settings: Settings) -> Check:
    """Ask until a tenant has a passage to ask about. Skipped where a model would write the answer, since what is in
    people's documents is not sent to it unasked, and where nobody has a passage."""
    ended = partial(_check, time.monotonic())
    kept_in: list[str] = []
    asked: Sequence[TenantToAsk] = ()
    try:
        asked = await tenants_to_ask(settings, connection_urls(settings).backup, limit=TENANTS_ASKED)
        for tenant in asked:
            if await _has_model(settings, tenant):
                continue
            try:
                said = await ask_canary(local_url(settings), connection_urls(settings).backup, tenant, kept_in=kept_in)
            except LookupError:
                continue
            return ended("PASS", said)
        return ended("SKIP", "models write the answers, or nobody has a passage: ask with `pharos smoke --email`")
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.FORBIDDEN:
            return ended("SKIP", "the only account has not chosen a password of its own yet")
        return ended("FAIL", f"{error.request.url.path} answers {error.response.status_code}")
    except (PharosError, httpx.HTTPError, psycopg.Error, SQLAlchemyError) as error:
        return ended("FAIL", str(error) or type(error).__name__)
    finally:
        await _tidy(settings, asked, kept_in)


async def _has_model(settings: Settings, tenant: TenantToAsk) -> bool:
    async with open_runtime(settings) as runtime:
        try:
            await runtime.models.resolve(TenantId(tenant.tenant_id))
        except Unavailable:
            return False
        except LimitReached:
            pass  # it has one, whose money is spent
    return True


def _check(started: float, result: Result, said: str) -> Check:
    next_step = "`pharos doctor data` and `pharos logs web` say why" if result == "FAIL" else ""
    return Check(NAME, result, said, next_step, round(time.monotonic() - started, 3))


async def _tidy(settings: Settings, asked: Sequence[TenantToAsk], kept_in: list[str]) -> None:
    """End the sessions and remove the conversations. Where the web process is gone, a session ends by itself soon; a
    database that is gone too has failed the check already."""
    async with httpx.AsyncClient(base_url=local_url(settings), timeout=10.0, trust_env=False) as client:
        for tenant in asked:
            try:
                await client.post("/auth/logout", headers={"Authorization": f"Bearer {tenant.token}"})
            except httpx.HTTPError:
                break
    with suppress(psycopg.OperationalError):
        async with await psycopg.AsyncConnection.connect(connection_urls(settings).app) as connection:
            for tenant in asked:
                await connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(tenant.tenant_id)])
                await connection.execute(
                    "delete from conversations where tenant_id = %s and id = any(%s::uuid[])",
                    [tenant.tenant_id, kept_in],
                )
