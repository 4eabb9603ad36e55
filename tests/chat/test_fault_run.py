"""A provider fails in every way while people ask: what they read, what the metrics and the log say, what is paid."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select, text
from structlog.testing import capture_logs
from structlog.typing import EventDict
from tests.conftest import open_client
from tests.make import MadeTenant
from tests.ops.test_metrics import asking_from
from tests.provider_server import Provider, provider_server
from tests.providers.worlds import make_provider, patient

from pharos.identity.current import COOKIE
from pharos.identity.sign_in import open_session
from pharos.infra.ids import ProjectId
from pharos.providers.calls import Models
from pharos.providers.contract import Candidate
from pharos.providers.models import LlmCall
from pharos.providers.openai import OpenAIChat
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


async def calls_of(world: Runtime, tenant: MadeTenant) -> list[LlmCall]:
    async with world.db.transaction(tenant.id) as session:
        return list((await session.execute(select(LlmCall).order_by(LlmCall.id))).scalars())


def causes(logs: list[EventDict]) -> list[str]:
    return [line["code"] for line in logs if line["event"].startswith("[LLM] API error: ")]


ONCE_AROUND = {("closed", "open"): 1, ("open", "half_open"): 1, ("half_open", "closed"): 1}


@pytest.mark.contract("LP-16", part="as people and dashboards see it")
@pytest.mark.contract("CH-03", part="the short sentence to the asker and on the page, the cause to the log")
async def test_an_outage_is_answered_around_told_in_short_and_paid_once(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
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
            assert causes(logs) == ["provider_answer_bad"]
            cookie = (await open_session(world, tenant.admin)).session_token
            opened = f"/projects/{project_id}?conversation={cut['conversation_id']}"
            page = await client.get(opened, headers={"Cookie": f"{COOKIE}={cookie}"})
            assert '<p class="notice notice--warning">Failed to generate response.</p>' in page.text
            assert "cannot be used" not in page.text, "the cause is for the log"

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
        assert (await breaker(world, name))[1] == ONCE_AROUND
        answered = [call.provider for call in await calls_of(world, tenant) if call.status == "ok"]
        assert sorted(answered) == sorted([candidate.provider] * 4 + ["spare"]), "each answer is paid once"
        await world.models.close()


@pytest.mark.contract("LP-16", part="a provider that is silent")
async def test_a_provider_that_is_silent_is_waited_for_five_times_and_then_left_alone(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    def impatient(candidate: Candidate) -> OpenAIChat:
        options = {"base_url": candidate.base_url, "key": candidate.key, "allows_private": True}
        return OpenAIChat(name=candidate.model, silence_seconds=0.3, **options)  # type: ignore[arg-type]

    world = patient(runtime)
    world = replace(world, models=Models(world.settings, world.db, world.vault, open_model=impatient))
    with provider_server(Provider(always="slow")) as provider:
        await make_provider(world, tenant.id, provider.openai_url, is_default=True)
        (candidate,) = await world.models.resolve(tenant.id)
        async with open_client(world, tenant.admin) as client:
            asker = Asker(client, project_id)
            with capture_logs() as logs:
                for number in range(1, 7):
                    around = await asker.ask()
                    assert (around["last"], around["mode"], around["degraded"]) == ("done", "extractive", True)
                    if number in {4, 5}:
                        assert (await breaker(world, candidate.label))[0] == (number == 5)
            assert (causes(logs), len(provider.asked)) == (["provider_timed_out"] * 5, 5), "nobody waits a sixth time"
            provider.always = None
            provider.release.set()
            await set_older(world, candidate.label)
            for state in (2, 2, 0):
                assert (await asker.ask())["made_by"]["provider"] == candidate.provider
                assert (await breaker(world, candidate.label))[0] == state
        await world.models.close()
    assert (await breaker(world, candidate.label))[1] == ONCE_AROUND
    calls = [(call.status, (call.cost_micro or 0) > 0) for call in await calls_of(world, tenant)]
    assert calls == [("provider_timed_out", False)] * 5 + [("ok", True)] * 3


@pytest.mark.contract("LP-22", part="a storm of refusals, as people see it")
async def test_a_storm_of_429_is_answered_around_costs_nothing_and_is_no_outage(
    runtime: Runtime, tenant: MadeTenant, project_id: ProjectId
) -> None:
    world = patient(runtime)
    with provider_server(Provider(always="rate_limited", retry_after_seconds=120)) as provider:
        await make_provider(world, tenant.id, provider.openai_url, is_default=True)
        (candidate,) = await world.models.resolve(tenant.id)
        async with open_client(world, tenant.admin) as client:
            asker = Asker(client, project_id)
            with capture_logs() as logs:
                storm = [await asker.ask(), *await asyncio.gather(*(asker.ask() for _ in range(7)))]
            assert {(told["last"], told["mode"], told["degraded"]) for told in storm} == {("done", "extractive", True)}
            assert (causes(logs), len(provider.asked)) == (["provider_rate_limited"], 1), "it is left alone by all"
            assert await breaker(world, candidate.label) == (0, {})
            provider.always = None
            over = text("update provider_states set paused_until = now() where label = :name returning key")
            assert await world.db.fetch(over, {"name": candidate.label}) is not None
            assert (await asker.ask())["mode"] == "model"
        await world.models.close()
    assert [call.status for call in await calls_of(world, tenant)] == ["provider_rate_limited", "ok"]


@pytest.mark.contract("LP-16", part="vectors of the wrong dimension")
async def test_vectors_of_the_wrong_dimension_are_an_outage_like_any_other(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    world, wanted = patient(runtime), {"input": ["one lamp", "two lamps"], "dimensions": 8}
    with provider_server(Provider(always="shorter")) as provider:
        await make_provider(world, tenant.id, provider.openai_url, name="lamps", models=["text-embedding-3-small"])
        (candidate,) = await world.models.resolve(tenant.id, "lamps")
        async with open_client(world, tenant.admin) as client:

            async def ask() -> tuple[int, str, float]:
                reply = await client.post("/v1/embeddings", json={"model": "lamps/text-embedding-3-small", **wanted})
                state = (await breaker(world, candidate.label))[0]
                return reply.status_code, reply.json().get("error", {}).get("code", ""), state

            with capture_logs() as logs:
                assert await ask() == (503, "provider_answer_bad", 0)
                assert await ask() == (503, "breaker_open", 1)
            assert causes(logs) == ["provider_answer_bad"] * 5
            provider.always = "wrong_dimension"
            assert await ask() == (503, "breaker_open", 1)
            assert len(provider.asked) == 5
            await set_older(world, candidate.label)
            provider.always = None
            assert [await ask() for _ in range(3)] == [(200, "", 2), (200, "", 2), (200, "", 0)]
        await world.models.close()
    assert (await breaker(world, candidate.label))[1] == ONCE_AROUND
    statuses = [call.status for call in await calls_of(world, tenant)]
    assert statuses == ["provider_answer_bad"] * 5 + ["ok"] * 3, "each is paid once"
