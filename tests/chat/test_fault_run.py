"""A provider fails in every way while people ask: what they read, what the metrics and the log say, what is paid."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select, text
from structlog.testing import capture_logs
from tests.conftest import RunJobs, open_client
from tests.make import MadeTenant, make_document, make_project
from tests.ops.test_metrics import asking_from
from tests.provider_server import provider_server
from tests.providers.worlds import make_provider, patient

from pharos.infra.ids import ProjectId
from pharos.providers.models import LlmCall
from pharos.runtime import Runtime

AGED = text(
    "update provider_states set opened_at = opened_at - interval '31 seconds' where label = :name returning key"
)


class Asker:
    """Asks one new question after the other, as the page does."""

    def __init__(self, client: httpx.AsyncClient, project_id: ProjectId) -> None:
        self.client, self.project_id, self.number = client, project_id, 0

    async def ask(self) -> dict[str, Any]:
        """Mode, first made_by, and the last event of a turn."""
        self.number += 1
        question = f"Where was the lighthouse of Alexandria built? ({self.number})"
        reply = await self.client.post(f"/chat/projects/{self.project_id}", json={"question": question})
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = {}
        for block in reply.text.strip().split("\n\n"):
            lines = block.split("\n")
            told |= {"last": lines[0].removeprefix("event: ")} | json.loads(lines[1].removeprefix("data: "))
        return told


async def breaker(world: Runtime, name: str) -> tuple[float, dict[tuple[str, str], float]]:
    """State and transitions as `/metrics` tells them."""
    async with asking_from(world, "127.0.0.1") as here:
        families = list(text_string_to_metric_families((await here.get("/metrics")).text))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("name") == name]
    state = [sample.value for sample in samples if sample.name == "rag_circuit_breaker_state"]
    changed = {
        (sample.labels["from_state"], sample.labels["to_state"]): sample.value
        for sample in samples
        if sample.name == "rag_circuit_breaker_transitions_total" and sample.value
    }
    return (state[0] if state else 0.0), changed


async def set_older(world: Runtime, name: str) -> None:
    assert await world.db.fetch(AGED, {"name": name}) is not None


@pytest.mark.contract("LP-16", part="as people and dashboards see it")
@pytest.mark.contract("CH-03", part="the short sentence to the asker, the cause to the log")
async def test_an_outage_is_answered_around_told_in_short_and_paid_once(
    runtime: Runtime, tenant: MadeTenant, run_jobs: RunJobs
) -> None:
    project_id = await make_project(runtime.db, tenant.admin)
    await make_document(runtime, tenant.admin, project_id)
    await run_jobs(runtime)
    world = patient(runtime)
    with provider_server() as provider, provider_server() as spare:
        await make_provider(world, tenant.id, provider.openai_url, is_default=True)
        (candidate,) = await world.models.resolve(tenant.id)
        name = candidate.label
        async with open_client(world, tenant.admin) as client:
            asker = Asker(client, project_id)
            assert (await asker.ask())["mode"] == "model"

            provider.faults.append("cut")
            with capture_logs() as logs:
                cut = await asker.ask()
            assert (cut["last"], cut["error"]) == ("error", "provider_answer_bad")
            assert cut["message"].startswith("Failed to generate response.")
            causes = [line["code"] for line in logs if line["event"].startswith("[LLM] API error: ")]
            assert causes == ["provider_answer_bad"]

            provider.faults.append("rate_limited")
            stormed = await asker.ask()
            assert (stormed["last"], stormed["mode"]) == ("done", "model"), "waited for"
            assert (await breaker(world, name))[0] == 0, "a limit is no outage"
            await world.db.fetch(text("update provider_states set paused_until = null returning key"), {})

            provider.always = "failed"
            for state in (0, 1):
                around = await asker.ask()
                assert (around["last"], around["mode"], around["degraded"]) == ("done", "extractive", True)
                assert (await breaker(world, name))[0] == state

            await make_provider(world, tenant.id, spare.openai_url, name="spare")
            elsewhere = await asker.ask()
            assert (elsewhere["last"], elsewhere["mode"]) == ("done", "model")
            assert elsewhere["made_by"]["provider"] == "spare"
            assert elsewhere["made_by"]["failed_over_from"] == [candidate.provider]

            provider.always = None
            await set_older(world, name)
            for state in (2, 2, 0):
                assert (await asker.ask())["made_by"]["provider"] == candidate.provider
                assert (await breaker(world, name))[0] == state
        assert (await breaker(world, name))[1] == {
            ("closed", "open"): 1,
            ("open", "half_open"): 1,
            ("half_open", "closed"): 1,
        }
        async with world.db.transaction(tenant.id) as session:
            calls = list((await session.execute(select(LlmCall))).scalars())
        answered = [call.provider for call in calls if call.status == "ok"]
        assert sorted(answered) == sorted([candidate.provider] * 5 + ["spare"]), "each answer is paid once"
        await world.models.close()
