"""Health: the statuses and bodies the runbooks promise, with the database there and gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text
from tests.conftest import open_client
from tests.fakes import FakeEmbedding

from pharos.infra.db import create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Unavailable
from pharos.ops import health
from pharos.providers.contract import ModelState
from pharos.runtime import Runtime


@pytest.fixture
async def without_database(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    nowhere = create_database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=2)
    async with open_client(replace(runtime, db=nowhere)) as client:
        yield client
    await nowhere.dispose()


@pytest.mark.contract("HE-01")
async def test_health_follows_the_database(client: httpx.AsyncClient, without_database: httpx.AsyncClient) -> None:
    up, down = await client.get("/health"), await without_database.get("/health")
    assert (up.status_code, up.json()["status"], up.json()["database"]) == (200, "healthy", "connected")
    assert (down.status_code, down.json()["status"], down.json()["database"]) == (503, "down", "disconnected")


@pytest.mark.contract("HE-02")
async def test_every_component_is_told_and_nothing_more(
    client: httpx.AsyncClient, without_database: httpx.AsyncClient, runtime: Runtime
) -> None:
    async with system_transaction(runtime.db) as session:
        await session.execute(text("update procrastinate_workers set last_heartbeat = now() - interval '1 minute'"))
    answer = await client.get("/health/detailed")
    body = answer.json()
    assert body["components"].keys() == set(health.PROBES)
    assert {"sessions", "vectors", "postgres"} <= body["components"].keys()
    assert body["components"]["queue"] == {"status": "down"}  # no worker has reported lately
    assert (answer.status_code, body["status"]) == (200, "degraded")
    down = await without_database.get("/health/detailed")
    assert (down.status_code, down.json()["status"]) == (503, "down")
    assert "127.0.0.1" not in down.text


class LoadingEmbedding(FakeEmbedding):
    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise Unavailable("The model is still loading. Try again in some seconds.", code="embedder_loading")

    async def state(self) -> ModelState:
        return "loading"


@pytest.mark.contract("HE-02", part="loading is not down")
async def test_models_that_are_loading_are_not_called_down(runtime: Runtime) -> None:
    async with open_client(replace(runtime, embedding=LoadingEmbedding())) as client:
        answer = await client.get("/health/detailed")
    assert answer.json()["components"]["embedder"] == {"status": "loading"}
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


@pytest.mark.contract("HE-03")
async def test_ready_needs_the_schema_of_this_code(fresh_runtime: Runtime, without_database: httpx.AsyncClient) -> None:
    async with open_client(fresh_runtime) as client:
        assert (await client.get("/health/ready")).json()["status"] == "ready"
        async with system_transaction(fresh_runtime.db) as session:
            await session.execute(text("update alembic_version set version_num = '0000'"))
        answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["schema"], answer.json()["database"]) == (503, "invalid", "connected")
    assert (await without_database.get("/health/ready")).status_code == 503


@pytest.mark.contract("HE-04")
async def test_live_touches_nothing(without_database: httpx.AsyncClient) -> None:
    answer = await without_database.get("/health/live")
    assert answer.status_code == 200
    assert answer.json()["uptime"] >= 0


@pytest.mark.contract("HE-05", "HE-06")
@pytest.mark.parametrize("path", ["/api/health", "/api/v1/health"])
async def test_the_check_after_a_deploy(
    client: httpx.AsyncClient, without_database: httpx.AsyncClient, path: str
) -> None:
    up, down = await client.get(path), await without_database.get(path)
    assert (up.status_code, up.text) == (200, '{"ok":true,"database":"connected"}')
    assert (down.status_code, down.json()["database"]) == (503, "disconnected")
