"""`pharos chat`: questions from a terminal or a pipe, answers as they come, each resting on its sources."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ENCRYPTION_KEY, RunJobs
from tests.make import MadeTenant, make_document, make_project
from tests.provider_server import provider_server

from pharos.infra.database_roles import DatabaseUrls
from pharos.runtime import Runtime

FIRST, SECOND = "Where was the lighthouse of Alexandria built?", "On which island was that lighthouse built?"


@pytest.fixture
async def project(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> str:
    await make_document(runtime, tenant.admin, await make_project(runtime.db, tenant.admin, name="Light"))
    await run_jobs(runtime)
    return "Light"


def start_chat(urls: DatabaseUrls, place: Path, tenant: MadeTenant, **settings: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PHAROS_DATABASE_URL": urls.app,
        "PHAROS_DATA_DIR": str(place),
        "PHAROS_ENCRYPTION_KEY": ENCRYPTION_KEY,
        **settings,
    }
    command = [sys.executable, "-m", "pharos", "chat", "--project", "Light", "--tenant", tenant.slug]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=place, stdin=pipe, stdout=pipe, text=True)


async def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_with_its_history(
    tenant: MadeTenant, project: str, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    with provider_server() as provider:
        provider.words = ["It was built on", " the island of", " Pharos [1]."]
        provider.faults.append("stalled")
        operator = {"PHAROS_LLM_URL": provider.openai_url, "PHAROS_LLM_MODEL": "lamp-large"}
        with start_chat(database_urls, tmp_path, tenant, **operator) as chat:
            assert chat.stdin is not None
            assert chat.stdout is not None
            chat.stdin.write(f"{FIRST}\n")
            chat.stdin.flush()
            repeated = chat.stdout.readline()
            begun = chat.stdout.read(len("It was built"))
            chat.send_signal(signal.SIGINT)
            rest, _ = chat.communicate(f"{SECOND}\n/help\n/quit\nnot asked\n", timeout=30)
            provider.release.set()
    assert repeated == f"> {FIRST}\n"
    assert begun == "It was built"
    assert "There is no such command here: /quit ends" in rest
    assert len(provider.asked) == 3, "a question, a second one rewritten and asked, and no command"
    assert "(stopped)" in rest
    assert "It was built on the island of Pharos [1]." in rest
    assert "[1] note.txt, characters 0-" in rest
    assert chat.returncode == 0
    asked = [str(each.body) for each in provider.asked]
    assert FIRST in asked[-1], "what was said before goes to the model"
    assert not any("not asked" in each for each in asked)


async def test_a_failed_answer_is_one_named_line_and_the_exit_code_says_so(
    tenant: MadeTenant, project: str, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    with provider_server() as provider:
        provider.faults.append("cut")
        operator = {"PHAROS_LLM_URL": provider.openai_url, "PHAROS_LLM_MODEL": "lamp-large"}
        with start_chat(database_urls, tmp_path, tenant, **operator) as chat:
            said, _ = chat.communicate(f"{FIRST}\n", timeout=30)
    assert "): Failed to generate response." in said
    assert chat.returncode == 7
