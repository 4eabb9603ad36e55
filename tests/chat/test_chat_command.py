"""`pharos chat`: questions from a terminal or a pipe, answers as they come, each resting on its sources."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import ENCRYPTION_KEY, RunJobs
from tests.make import MadeTenant, make_document, make_project
from tests.provider_server import Provider, provider_server

from pharos.infra.database_roles import DatabaseUrls
from pharos.runtime import Runtime

StartChat = Callable[[Provider], subprocess.Popen[str]]

FIRST, SECOND = "Where was the lighthouse of Alexandria built?", "On which island was that lighthouse built?"


@pytest.fixture
async def project(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> str:
    await make_document(runtime, tenant.admin, await make_project(runtime.db, tenant.admin, name="Light"))
    await run_jobs(runtime)
    return "Light"


@pytest.fixture
def start_chat(database_urls: DatabaseUrls, tmp_path: Path, tenant: MadeTenant, programs: Path) -> StartChat:
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PHAROS_DATABASE_URL": database_urls.app,
        "PHAROS_DATA_DIR": str(tmp_path),
        "PHAROS_ENCRYPTION_KEY": ENCRYPTION_KEY,
        "PHAROS_LLM_MODEL": "lamp-large",
    }
    command = ["pharos", "chat", "--project", "Light", "--tenant", tenant.slug]
    pipe = subprocess.PIPE

    def start(provider: Provider) -> subprocess.Popen[str]:
        surroundings = environment | {"PHAROS_LLM_URL": provider.openai_url}
        return subprocess.Popen(command, env=surroundings, cwd=tmp_path, stdin=pipe, stdout=pipe, text=True)

    return start


async def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_with_its_history(
    project: str, start_chat: StartChat
) -> None:
    with provider_server() as provider:
        provider.words = ["It was built on", " the island of", " Pharos [1]."]
        provider.faults.append("stalled")
        with start_chat(provider) as chat:
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


async def test_a_failed_answer_is_one_named_line_and_the_exit_code_says_so(project: str, start_chat: StartChat) -> None:
    with provider_server() as provider:
        provider.faults.append("cut")
        with start_chat(provider) as chat:
            said, _ = chat.communicate(f"{FIRST}\n", timeout=30)
    assert "): Failed to generate response." in said
    assert chat.returncode == 7
