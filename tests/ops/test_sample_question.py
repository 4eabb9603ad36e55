"""After a restore a question is asked whose answer must cite the document it is about, and nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import uvicorn
from sqlalchemy import func, select
from tests.conftest import RunJobs, make_runtime
from tests.make import make_document, make_person, make_project
from tests.ops.installation import make_installation
from tests.postgres import Server

from pharos.app import create_app
from pharos.chat.models import Conversation
from pharos.identity.sessions import count_open_sessions
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.database_roles import connection_urls
from pharos.infra.db import create_database
from pharos.infra.embedded_postgres import free_port
from pharos.infra.ids import TenantId
from pharos.ops.backup.sample_question import ask_sample
from pharos.runtime import Runtime

TEXT = b"The lighthouse of Alexandria was built on the island of Pharos by Sostratus of Cnidus."


@pytest.fixture
async def served(database_server: Server, tmp_path: Path) -> AsyncIterator[Runtime]:
    """An installation that is served where its settings say."""
    settings = (await asyncio.to_thread(make_installation, database_server, tmp_path)).model_copy(
        update={"port": free_port()}
    )
    runtime = make_runtime(settings, create_database(connection_urls(settings).app, pool_size=5))
    config = uvicorn.Config(create_app(settings, runtime=runtime), port=settings.port, log_config=None, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    yield runtime
    server.should_exit = True
    await serving
    await runtime.db.dispose()


async def left(runtime: Runtime, tenant_id: TenantId) -> tuple[int, int]:
    """How many conversations and open sessions there are."""
    async with runtime.db.transaction(tenant_id) as session:
        conversations = (await session.execute(select(func.count()).select_from(Conversation))).scalar_one()
        return conversations, await count_open_sessions(session)


@pytest.mark.contract("RS-09", part="a sample question is answered with its known citation")
async def test_a_question_about_a_document_is_answered_with_it_and_leaves_nothing(
    served: Runtime, run_jobs: RunJobs
) -> None:
    admin = await make_person(served.db, await ensure_default_tenant(served), platform_role="superadmin")
    assert (await ask_sample(served.settings)).result == "SKIP"
    project_id = await make_project(served.db, admin)
    await make_document(served, admin, project_id, name="lighthouse.txt", content=TEXT)
    await run_jobs(served)
    check = await ask_sample(served.settings)
    assert (check.result, check.said) == ("PASS", "default: cites its document")
    assert await left(served, admin.tenant_id) == (0, 0)
    with psycopg.connect(connection_urls(served.settings).app) as connection:
        connection.execute("select set_config('pharos.tenant_id', %s, true)", [str(admin.tenant_id)])
        connection.execute("delete from passage_vectors_minilm_l6_v2")  # what a question is compared with
    check = await ask_sample(served.settings)
    assert check.result == "FAIL"
    assert "pharos doctor data" in check.next_step
    closed = str(served.settings.database_url).replace(":of-the-test@", ":another@")
    gone = served.settings.model_copy(update={"database_url": closed})
    assert (await ask_sample(gone)).result == "FAIL", "an error of a library would swap nothing back"
    model = served.settings.model_copy(update={"llm_model": "any", "llm_url": "http://127.0.0.1:9"})
    assert (await ask_sample(model)).result == "SKIP"
