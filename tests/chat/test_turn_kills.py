"""A web process that is killed in the middle of an answer: the next one says so, and makes it anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from tests.conftest import RunJobs, open_client
from tests.make import MadeTenant, make_document, make_project, make_token
from tests.provider_server import provider_server
from tests.test_serve import start_web, wait_for

from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.runtime import Runtime

QUESTION = "Where was the lighthouse of Alexandria built?"


async def first_words(url: str, token: str, project_id: object) -> tuple[str, list[str]]:
    """The turn's id and the lines that came until its first word."""
    lines: list[str] = []
    async with (
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client,
        client.stream("POST", f"/chat/projects/{project_id}", json={"question": QUESTION}) as reply,
    ):
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            lines.append(line)
            if line.startswith("id: 2"):
                break
        return reply.headers["x-turn-id"], lines


@pytest.mark.contract("CH-03", part="an answer whose process was killed is interrupted, and made anew")
async def test_a_killed_process_leaves_an_interrupted_answer_that_is_made_anew(
    runtime: Runtime,
    tenant: MadeTenant,
    run_jobs: RunJobs,
    *,
    database_urls: DatabaseUrls,
    programs: Path,
    tmp_path: Path,
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    token, port = await make_token(runtime, tenant.admin), free_port()
    secret, python = runtime.settings.secret_key, str(programs / "python")
    assert secret is not None
    with provider_server() as provider:
        provider.always = "stalled"
        operator = {"PHAROS_LLM_URL": provider.openai_url, "PHAROS_LLM_MODEL": "lamp-large"}
        with start_web(
            database_urls.app, tmp_path, port, python=python, PHAROS_SECRET_KEY=secret.get_secret_value(), **operator
        ) as web:
            await asyncio.to_thread(wait_for, web, port)
            turn_id, lines = await first_words(f"http://127.0.0.1:{port}", token, project_id)
            assert any("The keeper" in line for line in lines)
            web.kill()
            await asyncio.to_thread(web.communicate)
    async with open_client(runtime, tenant.admin) as client:
        path = f"/chat/turns/{turn_id}"
        still = await client.post(f"{path}/regenerate")
        assert (still.status_code, still.json()["error"]) == (409, "still_running"), "within its lease it may live"
        async with runtime.db.transaction(tenant.id) as session:
            await session.execute(text("update turns set heartbeat_at = heartbeat_at - interval '11 seconds'"))
        followed = await client.get(f"{path}/events", headers={"Last-Event-ID": "2"})
        assert '"error": "interrupted"' in followed.text
        anew = await client.post(f"{path}/regenerate")
        assert "event: done" in anew.text
        assert "island of Pharos" in anew.text
