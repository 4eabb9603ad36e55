"""What a provider's outage is to whoever asks: a reason for who named the model, quotations for everybody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from tests.conftest import RunJobs, open_client
from tests.fakes import FakeChat
from tests.make import MadeTenant, make_document, make_person, make_project
from tests.providers.worlds import Waits, make_provider

from pharos.infra.errors import Invalid, LimitReached, NotAllowed, PharosError, Unavailable
from pharos.providers.breaker import FAILURES_TO_OPEN
from pharos.providers.calls import Models
from pharos.providers.contract import ChatRequest
from pharos.runtime import Runtime

STATUS_PAGE = "https://status.lamp.example"
NOTE = b"The lighthouse was built on the island of Pharos. Its fire was seen from far."


class Failing(FakeChat):
    """Fails as it is told to."""

    error: PharosError | None = Unavailable("It did not answer in time.", code="provider_timed_out")

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        if self.error:
            raise self.error
        yield self.reply


@pytest.fixture
def model() -> Failing:
    return Failing()


@pytest.fixture
async def world(runtime: Runtime, tenant: MadeTenant, model: Failing) -> AsyncIterator[Runtime]:
    """A world with one provider, `lamp`, which is the default."""
    models = Models(runtime.settings, runtime.db, runtime.vault, open_model=lambda _: model, sleep=Waits())
    await make_provider(
        runtime, tenant.id, "https://lamp.invalid/v1", name="lamp", is_default=True, status_page=STATUS_PAGE
    )
    yield replace(runtime, models=models)
    await models.close()


@pytest.fixture
async def asked(runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs) -> dict[str, str]:
    project = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project, content=NOTE)
    await run_jobs(runtime)
    return {"question": "On which island was the lighthouse built?", "projectId": str(project)}


@pytest.mark.contract("LP-19", part="the status page comes with the 503, for engineers")
@pytest.mark.contract("LP-20")
@pytest.mark.contract("C-31", part="a model asked for by name fails with the cause, else quotations")
async def test_with_an_open_breaker_a_named_model_is_503_at_once_and_any_other_question_is_answered_with_quotations(
    world: Runtime, tenant: MadeTenant, model: Failing, asked: dict[str, str]
) -> None:
    named = {**asked, "model": "lamp/gpt-4o-mini"}
    async with open_client(world, tenant.admin) as client:
        for _ in range(FAILURES_TO_OPEN):
            failed = await client.post("/chat", json=named)
            assert (failed.status_code, failed.json()["error"]) == (503, "provider_timed_out")
        refused = await client.post("/chat", json=named)
        assert (refused.status_code, refused.json()["error"]) == (503, "breaker_open")
        assert 20 < int(refused.headers["Retry-After"]) <= 30
        assert refused.json()["statusPage"] == STATUS_PAGE
        quoted = await client.post("/chat", json=asked)
        assert (quoted.status_code, quoted.json()["mode"], quoted.json()["degraded"]) == (200, "extractive", True)
        unknown = await client.post("/chat", json={**asked, "model": "lamp/nothing"})
        assert (unknown.status_code, unknown.json()["error"]) == (404, "no_provider")
    async with open_client(world, await make_person(world.db, tenant.id, platform_role="admin")) as client:
        refused = await client.post("/chat", json=named)
        assert refused.json()["error"] == "breaker_open"
        assert STATUS_PAGE not in refused.text
    assert len(model.requests) == FAILURES_TO_OPEN


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LimitReached("Wait.", code="provider_rate_limited", retry_after_seconds=40), 429),
        (NotAllowed("A wrong key.", code="provider_key_refused"), 403),
        (Invalid("Too long.", code="provider_refused"), 422),
    ],
)
@pytest.mark.contract("LP-22", part="a used-up limit is 429 with the provider's own Retry-After")
async def test_what_ails_a_named_model_keeps_its_kind_over_http(
    *, world: Runtime, tenant: MadeTenant, model: Failing, asked: dict[str, str], error: PharosError, status: int
) -> None:
    model.error = error
    async with open_client(world, tenant.admin) as client:
        refused = await client.post("/chat", json={**asked, "model": "lamp/gpt-4o-mini"})
    assert (refused.status_code, refused.json()["error"]) == (status, error.code)
    if status == 429:
        assert 30 < int(refused.headers["Retry-After"]) <= 40


async def test_an_answer_made_anew_is_of_the_model_that_the_question_named_which_is_looked_for_once(
    world: Runtime, tenant: MadeTenant, model: Failing, asked: dict[str, str]
) -> None:
    model.error = None
    await make_provider(world, tenant.id, "https://torch.invalid/v1", name="torch")
    with capture_logs() as logs:
        async with open_client(world, tenant.admin) as client:
            first = await client.post("/chat/stream", json={**asked, "model": "torch/gpt-4o-mini"})
            anew = await client.post(f"/chat/turns/{first.headers['X-Turn-Id']}/regenerate")
    assert ['"provider": "torch"' in told.text for told in (first, anew)] == [True, True]
    assert sum(line["event"].startswith("[LLM] resolveProvider") for line in logs) == 2
