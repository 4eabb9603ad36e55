"""What a provider's outage is to whoever asks: a reason for who named the model, quotations for everybody else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.conftest import RunJobs, open_client
from tests.fakes import FakeChat, with_model
from tests.make import MadeTenant, make_document, make_project

from pharos.infra.errors import Unavailable
from pharos.providers.breaker import FAILURES_TO_OPEN
from pharos.providers.contract import ChatRequest
from pharos.runtime import Runtime

NOTE = b"The lighthouse was built on the island of Pharos. Its fire was seen from far."


class Silent(FakeChat):
    """Never answers in time."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        if self.requests:
            raise Unavailable("It did not answer in time.", code="provider_timed_out")
        yield ""


@pytest.mark.contract("LP-20")
@pytest.mark.contract("C-31", part="a model asked for by name fails with the cause, else quotations")
async def test_with_an_open_breaker_a_named_model_is_503_at_once_and_any_other_question_is_answered_with_quotations(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project, content=NOTE)
    await run_jobs(runtime)
    model = Silent()
    question = {"question": "On which island was the lighthouse built?", "projectId": str(project)}
    async with open_client(with_model(runtime, model), tenant.admin) as client:
        for _ in range(FAILURES_TO_OPEN):
            failed = await client.post("/chat", json={**question, "model": "environment/fake-chat"})
            assert (failed.status_code, failed.json()["error"]) == (503, "provider_timed_out")
        refused = await client.post("/chat", json={**question, "model": "environment/fake-chat"})
        assert (refused.status_code, refused.json()["error"]) == (503, "breaker_open")
        assert int(refused.headers["Retry-After"]) > 0
        quoted = await client.post("/chat", json=question)
        assert (quoted.status_code, quoted.json()["mode"], quoted.json()["degraded"]) == (200, "extractive", True)
        unknown = await client.post("/chat", json={**question, "model": "environment/nothing"})
        assert (unknown.status_code, unknown.json()["error"]) == (503, "no_provider")
    assert len(model.requests) == FAILURES_TO_OPEN
