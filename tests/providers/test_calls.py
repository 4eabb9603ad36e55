"""Faults of a provider that is really asked: breaker, budget, second tries, failover, and what is paid for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import select, text
from structlog.testing import capture_logs
from tests.make import MadeTenant
from tests.provider_server import Fault, Provider, provider_server
from tests.providers.worlds import KEY, Waits, make_provider, patient

from pharos.infra.db_system import system_transaction
from pharos.infra.errors import Invalid, LimitReached, NotAllowed, PharosError, Unavailable
from pharos.infra.metrics import REGISTRY
from pharos.providers.breaker import (
    RESET,
    Outcome,
    list_standings,
    note_standings,
    pass_breaker,
    report,
    reset_breakers,
)
from pharos.providers.calls import Models
from pharos.providers.contract import Call, Candidate, ChatMessage, ChatRequest, VectorRequest
from pharos.providers.models import LlmCall
from pharos.providers.openai import OpenAIChat
from pharos.runtime import Runtime

REQUEST = ChatRequest((ChatMessage("user", "Who keeps the light?"),))
ANSWER = "The keeper trims the lamp [1]."


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with provider_server() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider) -> Iterator[Provider]:
    running.__dict__.update(Provider(port=running.port, release=running.release).__dict__)
    yield running
    running.release.set()
    running.release = type(running.release)()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def world(runtime: Runtime, waits: Waits) -> AsyncIterator[Runtime]:
    world = patient(runtime, waits)
    yield world
    await world.models.close()


async def ask(world: Runtime, tenant: MadeTenant, call: Call | None = None, wish: str | None = None) -> str:
    candidates = await world.models.resolve(tenant.id, wish)
    pieces = [piece async for piece in world.models.stream(tenant.id, candidates, REQUEST, call or Call())]
    return "".join(pieces)


async def fail(world: Runtime, tenant: MadeTenant, *, times: int = 1) -> str:
    code = ""
    for _ in range(times):
        with pytest.raises(PharosError) as caught:
            await ask(world, tenant)
        code = caught.value.code
    return code


async def calls_of(world: Runtime, tenant: MadeTenant) -> list[LlmCall]:
    async with world.db.transaction(tenant.id) as session:
        return list((await session.execute(select(LlmCall).order_by(LlmCall.id))).scalars())


def series(family: str, /, **labels: str) -> float:
    return REGISTRY.get_sample_value(family, labels) or 0.0


async def grow_older(world: Runtime, candidate: Candidate, seconds: float) -> None:
    older = text(
        "update provider_states set opened_at = opened_at - make_interval(secs => :s), "
        "paused_until = paused_until - make_interval(secs => :s), "
        "window_began_at = window_began_at - make_interval(secs => :s) where key = :key returning key"
    )
    await world.db.fetch(older, {"s": seconds, "key": candidate.state_key})


@pytest.mark.contract("LP-24", part="tokens and cost of each call, kept once")
@pytest.mark.contract("ME-03")
@pytest.mark.contract("ME-04")
@pytest.mark.contract("ME-13")
async def test_an_answer_is_counted_and_paid_once_by_what_the_provider_says(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    call = Call(purpose="answer")
    assert await ask(world, tenant, call) == ANSWER
    (row,) = await calls_of(world, tenant)
    assert (row.provider, row.model, row.status, row.purpose) == (candidate.provider, "gpt-4o-mini", "ok", "answer")
    assert (row.prompt_tokens, row.completion_tokens, row.is_estimate) == (4, 3, False)
    assert row.cost_micro == call.cost_micro == 3  # 4 at 0.15 and 3 at 0.6 micro-dollars, rounded up
    labels = {"provider": candidate.label, "model": "gpt-4o-mini"}
    assert series("pharos_llm_calls_total", **labels, status="ok") == 1
    assert series("pharos_llm_tokens_total", **labels, type="prompt") == 4
    assert series("pharos_llm_tokens_total", **labels, type="completion") == 3
    assert series("pharos_llm_cost_usd_total", **labels) == pytest.approx(3e-6)
    assert series("pharos_llm_call_duration_seconds_count", **labels, method="answer") == 1
    assert series("rag_llm_latency_seconds_count", status="ok", model="gpt-4o-mini") >= 1


async def test_a_wish_that_nobody_listed_is_counted_as_other(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True, models=[])
    candidates = await world.models.resolve(tenant.id, "a-name-of-my-own")
    call = Call()
    assert [piece async for piece in world.models.stream(tenant.id, candidates, REQUEST, call)]
    (label,) = {candidate.label for candidate in candidates}
    assert series("pharos_llm_calls_total", provider=label, model="other", status="ok") == 1
    assert series("pharos_llm_calls_total", provider=label, model="a-name-of-my-own", status="ok") == 0
    assert [row.model for row in await calls_of(world, tenant)] == ["a-name-of-my-own"]


@pytest.mark.contract("LP-15")
@pytest.mark.contract("LP-16")
@pytest.mark.contract("LP-17")
@pytest.mark.contract("LP-18")
@pytest.mark.contract("ME-15")
@pytest.mark.contract("ME-16")
async def test_the_breaker_opens_after_five_failures_tries_after_thirty_seconds_and_closes_after_three_successes(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(
        world, tenant.id, provider.openai_url, is_default=True, status_page="https://status.lamp.example"
    )
    (candidate,) = await world.models.resolve(tenant.id)
    name = candidate.label

    def state() -> float:
        return series("rag_circuit_breaker_state", name=name)

    assert await ask(world, tenant) == ANSWER
    assert state() == 0
    provider.always = "failed"
    assert await fail(world, tenant) == "provider_failed"  # three tries
    asked = len(provider.asked)
    with pytest.raises(Unavailable) as refused:
        await ask(world, tenant)  # the fifth failure opens it before the third try
    assert (refused.value.code, len(provider.asked) - asked, state()) == ("breaker_open", 2, 1)
    assert 0 < (refused.value.retry_after_seconds or 0) <= 30
    assert refused.value.details["status_page"] == "https://status.lamp.example"
    assert await fail(world, tenant) == "breaker_open"
    assert len(provider.asked) - asked == 2  # nobody was called

    await grow_older(world, candidate, 29)
    assert await fail(world, tenant) == "breaker_open"
    await grow_older(world, candidate, 2)
    provider.faults.append("failed")
    provider.always = None
    assert await fail(world, tenant) == "breaker_open"  # one trial, it fails, and the breaker is open again
    assert state() == 1

    await grow_older(world, candidate, 31)
    for expected in (2, 2, 0):
        assert await ask(world, tenant) == ANSWER
        assert state() == expected
    changed = {
        (was, now): series("rag_circuit_breaker_transitions_total", name=name, from_state=was, to_state=now)
        for was in ("closed", "open", "half_open")
        for now in ("closed", "open", "half_open")
    }
    assert {pair: count for pair, count in changed.items() if count} == {
        ("closed", "open"): 1,
        ("open", "half_open"): 2,
        ("half_open", "open"): 1,
        ("half_open", "closed"): 1,
    }


@pytest.mark.contract("LP-18", part="the number of trials at a time is bounded")
async def test_a_breaker_that_is_half_open_lets_three_try_at_a_time(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    provider.always = "failed"
    await fail(world, tenant, times=2)
    await grow_older(world, candidate, 31)
    provider.always = "slow"
    provider.asked.clear()
    tries = [asyncio.create_task(ask(world, tenant)) for _ in range(8)]
    refused: set[asyncio.Task[str]] = set()
    while len(refused) < 5:
        done, _ = await asyncio.wait(set(tries) - refused, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert done
        refused |= done
    assert {task.exception().code for task in refused} == {"breaker_open"}  # type: ignore[union-attr]
    provider.release.set()
    assert [await task for task in tries if task not in refused] == [ANSWER] * 3
    assert len(provider.asked) == 3
    assert series("rag_circuit_breaker_state", name=candidate.label) == 0


async def test_a_time_out_from_before_the_outage_does_not_open_a_breaker_that_is_closing(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    before = await pass_breaker(world.db, candidate)
    provider.always = "failed"
    await fail(world, tenant, times=2)
    await grow_older(world, candidate, 31)
    provider.always = None
    assert await ask(world, tenant) == ANSWER
    await report(world.db, candidate, before, Outcome.FAILURE)
    assert [await ask(world, tenant) for _ in range(2)] == [ANSWER, ANSWER]
    assert series("rag_circuit_breaker_state", name=candidate.label) == 0


async def test_a_breaker_that_another_process_closes_between_two_looks_lets_the_call_pass(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    """It looks before the other's change is there and waits for the row until it is."""
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    provider.always = "failed"
    await fail(world, tenant, times=2)
    await grow_older(world, candidate, 31)
    is_waited_for = text("select from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))")
    async with system_transaction(world.db) as other:
        await other.execute(RESET, {"keys": [candidate.state_key]})
        passing = asyncio.create_task(pass_breaker(world.db, candidate))
        async with asyncio.timeout(10):
            while (await other.execute(is_waited_for)).first() is None:  # noqa: ASYNC110 - Postgres tells nobody of it
                await asyncio.sleep(0.01)
    assert (await passing).trial is None


@pytest.mark.contract("LP-15", part="shared between processes")
@pytest.mark.contract("LP-21", part="reset without a start")
async def test_another_process_finds_the_breaker_open_and_a_reset_closes_it_for_all(
    world: Runtime, runtime: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    provider.always = "failed"
    await fail(world, tenant, times=2)
    other = patient(runtime)
    assert await fail(other, tenant) == "breaker_open"
    (standing,) = [one for one in await list_standings(world.db) if one.key == candidate.state_key]
    assert (standing.state, standing.failures) == ("open", 5)
    assert await reset_breakers(world.db, [candidate.state_key]) == 1
    provider.always = None
    assert await ask(other, tenant) == ANSWER
    await note_standings(world.db)
    assert series("rag_circuit_breaker_state", name=candidate.label) == 0
    await other.models.close()


@pytest.mark.contract("LP-04")
@pytest.mark.contract("LP-25", part="the log's line")
async def test_a_refused_key_opens_no_breaker_and_is_logged_with_the_providers_words_but_without_the_key(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    provider.always = "key_refused"
    with capture_logs() as logs, pytest.raises(NotAllowed) as refused:
        await ask(world, tenant)
    assert refused.value.code == "provider_key_refused"
    (line,) = [log["event"] for log in logs if log["event"].startswith("[LLM] API error")]
    assert line.startswith("[LLM] API error: 401 Incorrect key provided")
    assert KEY not in str(logs)
    await fail(world, tenant, times=6)
    assert series("rag_circuit_breaker_state", name=candidate.label) == 0
    assert {row.status for row in await calls_of(world, tenant)} == {"provider_key_refused"}
    assert {row.cost_micro for row in await calls_of(world, tenant)} == {0}


@pytest.mark.parametrize("fault", ["failed", "hang_up", "not_json", "rate_limited", "key_refused", "no_such_model"])
@pytest.mark.contract("LP-20", part="failover before 503")
async def test_another_provider_answers_before_anybody_notices_and_only_its_answer_is_paid(
    world: Runtime, tenant: MadeTenant, provider: Provider, fault: Fault
) -> None:
    with provider_server(Provider(always=fault)) as broken:
        await make_provider(world, tenant.id, broken.openai_url, name="broken", is_default=True)
        await make_provider(world, tenant.id, provider.openai_url, name="spare")
        call = Call()
        assert await ask(world, tenant, call) == ANSWER
    assert (call.provider, call.failed_over_from) == ("spare", ("broken",))
    rows = await calls_of(world, tenant)
    assert [row.provider for row in rows if row.cost_micro] == ["spare"]
    assert sum(row.cost_micro or 0 for row in rows) == 3
    assert len(broken.asked) == (2 if fault in {"failed", "hang_up", "not_json"} else 1)


@pytest.mark.contract("LP-24", part="a cut answer is paid once")
async def test_an_answer_that_is_cut_is_not_begun_again_and_is_paid_once(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    await make_provider(world, tenant.id, provider.openai_url)
    provider.faults.append("cut")
    candidates = await world.models.resolve(tenant.id)
    pieces = world.models.stream(tenant.id, candidates, REQUEST, Call())
    assert await anext(pieces) == "The keeper "
    with pytest.raises(Unavailable) as cut:
        await anext(pieces)
    assert (cut.value.code, len(provider.asked)) == ("provider_answer_bad", 1)
    (row,) = await calls_of(world, tenant)
    assert (row.status, row.is_estimate, row.cost_micro) == ("provider_answer_bad", True, 3)


async def test_a_short_outage_is_bridged_by_a_second_try(
    world: Runtime, tenant: MadeTenant, provider: Provider, waits: Waits
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    provider.faults.extend(["failed", "failed"])
    assert await ask(world, tenant) == ANSWER
    assert len(waits.seconds) == 2
    assert 0.15 <= waits.seconds[0] <= 0.3 <= waits.seconds[1] <= 0.6


@pytest.mark.contract("LP-24", part="an answer somebody stops is paid as far as it came")
async def test_an_answer_that_is_stopped_is_counted_as_far_as_it_came(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    provider.always = "stalled"
    candidates = await world.models.resolve(tenant.id)
    async with aclosing(world.models.stream(tenant.id, candidates, REQUEST, Call())) as pieces:
        assert await anext(pieces) == "The keeper "
    (row,) = await calls_of(world, tenant)
    assert (row.status, row.is_estimate) == ("stopped", True)


@pytest.mark.contract("LP-22")
@pytest.mark.contract("ME-17")
async def test_requests_beyond_the_budget_wait_in_turn_up_to_a_bound_and_then_hear_of_the_limit(
    world: Runtime, tenant: MadeTenant, provider: Provider, waits: Waits
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True, requests_per_minute=2)
    (candidate,) = await world.models.resolve(tenant.id)
    await ask(world, tenant)
    assert series("rag_rate_limit_remaining", provider=candidate.label, window="minute") == 1
    await ask(world, tenant)
    assert series("rag_rate_limit_remaining", provider=candidate.label, window="minute") == 0
    with pytest.raises(LimitReached) as refused:
        await ask(world, tenant)
    assert refused.value.code == "provider_rate_limited"
    assert refused.value.message.startswith(f"Rate limit exceeded: {candidate.provider}")
    assert 55 < (refused.value.retry_after_seconds or 0) <= 60
    assert len(provider.asked) == 2
    await grow_older(world, candidate, 45)  # fifteen seconds are left of the minute
    await ask(world, tenant)
    await ask(world, tenant)
    assert [12 < seconds <= 15 for seconds in waits.seconds] == [True, True]
    with pytest.raises(LimitReached):  # both places of the next minute are taken
        await ask(world, tenant)
    await grow_older(world, candidate, 120)
    await ask(world, tenant)
    assert len(waits.seconds) == 2


@pytest.mark.contract("LP-22", part="the provider's own Retry-After is honoured")
async def test_a_provider_that_asks_to_wait_is_left_alone_that_long(
    world: Runtime, tenant: MadeTenant, provider: Provider, waits: Waits
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    provider.faults.append("rate_limited")
    provider.retry_after_seconds = 12
    assert await ask(world, tenant) == ANSWER
    assert any(11 < seconds <= 12 for seconds in waits.seconds)
    provider.faults.append("rate_limited")
    provider.retry_after_seconds = 300
    with pytest.raises(LimitReached) as refused:
        await ask(world, tenant)
    asked = len(provider.asked)
    assert 290 < (refused.value.retry_after_seconds or 0) <= 300
    with pytest.raises(LimitReached):
        await ask(world, tenant)
    assert len(provider.asked) == asked
    assert series("rag_circuit_breaker_state", name=candidate.label) == 0


@pytest.mark.contract("LP-22", part="a storm of refusals ends with the first")
async def test_a_storm_of_429_leaves_the_provider_alone_and_its_breaker_closed(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    provider.always, provider.retry_after_seconds = "rate_limited", 120
    await fail(world, tenant)
    asked = len(provider.asked)
    storm = await asyncio.gather(*(ask(world, tenant) for _ in range(20)), return_exceptions=True)
    assert {type(one) for one in storm} == {LimitReached}
    assert len(provider.asked) == asked
    assert series("rag_circuit_breaker_state", name=candidate.label) == 0


@pytest.mark.contract("LP-19", part="a time-out counts as an outage and is not tried twice")
async def test_a_provider_that_is_silent_is_asked_once_and_left_for_another(
    runtime: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    def impatient(candidate: Candidate) -> OpenAIChat:
        options = {"base_url": candidate.base_url, "key": candidate.key, "allows_private": True}
        return OpenAIChat(name=candidate.model, silence_seconds=0.3, **options)  # type: ignore[arg-type]

    models = Models(runtime.settings, runtime.db, runtime.vault, open_model=impatient)
    with provider_server(Provider(always="slow")) as silent:
        await make_provider(runtime, tenant.id, silent.openai_url, name="silent", is_default=True)
        await make_provider(runtime, tenant.id, provider.openai_url, name="spare")
        call, candidates = Call(), await models.resolve(tenant.id)
        said = [piece async for piece in models.stream(tenant.id, candidates, REQUEST, call)]
        assert ("".join(said), call.failed_over_from, len(silent.asked)) == (ANSWER, ("silent",), 1)
        silent.release.set()
    (standing,) = [one for one in await list_standings(runtime.db) if one.key == candidates[0].state_key]
    assert standing.failures == 1
    assert [row.status for row in await calls_of(runtime, tenant)] == ["provider_timed_out", "ok"]
    await models.close()


VECTORS = VectorRequest(("one lamp", "two lamps"))


async def make_vectors(world: Runtime, tenant: MadeTenant, wish: str, call: Call | None = None) -> Any:
    candidates = await world.models.resolve(tenant.id, wish)
    return await world.models.embed(tenant.id, candidates, VECTORS, call or Call(purpose="embed"))


@pytest.mark.contract("LP-24", part="vectors are counted and paid like answers")
async def test_vectors_go_the_same_way_as_answers_and_come_from_the_same_model_alone(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    small: dict[str, Any] = {"models": ["text-embedding-3-small"]}
    with provider_server(Provider(always="failed")) as broken:
        await make_provider(world, tenant.id, provider.openai_url, is_default=True)
        await make_provider(world, tenant.id, broken.openai_url, name="first", requests_per_minute=3, **small)
        await make_provider(world, tenant.id, provider.openai_url, name="second", **small)
        call = Call(purpose="embed")
        rows = await make_vectors(world, tenant, "first/text-embedding-3-small", call)
        first, _ = await world.models.resolve(tenant.id, "first/text-embedding-3-small")
    assert rows.shape == (2, provider.dimension)
    assert (call.provider, call.failed_over_from, call.cost_micro) == ("second", ("first",), 1)
    (asked,) = provider.asked
    assert (asked.path, asked.body["input"]) == ("/v1/embeddings", ["one lamp", "two lamps"])
    rows = [(row.provider, row.purpose, row.status, row.cost_micro) for row in await calls_of(world, tenant)]
    failed = ("first", "embed", "provider_failed", 0)
    assert rows == [failed, failed, ("second", "embed", "ok", 1)]
    assert series("rag_rate_limit_remaining", provider=first.label, window="minute") == 1
    labels = {"provider": first.label, "model": first.model}
    assert series("pharos_llm_call_duration_seconds_count", **labels, method="embed") == 2
    assert series("pharos_llm_first_token_seconds_count", **labels) == 0


@pytest.mark.parametrize("fault", ["wrong_dimension", "missing", "nan"])
async def test_vectors_that_cannot_be_used_are_a_failure_like_any_other_and_a_second_try_helps(
    world: Runtime, tenant: MadeTenant, provider: Provider, fault: Fault
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    (candidate,) = await world.models.resolve(tenant.id)
    wish = f"{candidate.provider}/{candidate.model}"
    provider.faults.append(fault)
    assert (await make_vectors(world, tenant, wish)).shape == (2, provider.dimension)
    assert [row.status for row in await calls_of(world, tenant)] == ["provider_answer_bad", "ok"]
    provider.always = fault
    for code, state in (("provider_answer_bad", 0), ("breaker_open", 1)):
        with pytest.raises(Unavailable) as refused:
            await make_vectors(world, tenant, wish)
        assert (refused.value.code, series("rag_circuit_breaker_state", name=candidate.label)) == (code, state)


async def test_a_provider_that_makes_no_vectors_is_not_asked_for_them(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.anthropic_url, name="talker", kind="anthropic", models=["lamp"])
    with pytest.raises(Invalid, match="makes no vectors"):
        await make_vectors(world, tenant, "talker/lamp")
    assert not provider.asked


@asynccontextmanager
async def budget(world: Runtime, tenant: MadeTenant, **columns: Any) -> AsyncIterator[None]:
    names = ", ".join(columns)
    async with world.db.transaction(tenant.id) as session:
        values = {"tenant_id": tenant.id, **columns}
        marks = ", ".join(f":{name}" for name in columns)
        await session.execute(
            text(f"insert into tenant_model_settings (tenant_id, {names}) values (:tenant_id, {marks})"), values
        )
    yield


@pytest.mark.contract("LP-24", part="a budget per tenant warns and stops")
async def test_a_spent_budget_warns_then_stops_and_leaves_what_costs_nothing(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    await make_provider(world, tenant.id, provider.openai_url, is_default=True)
    async with budget(world, tenant, budget_warn_micro=3, budget_stop_micro=6):
        with capture_logs() as logs:
            assert await ask(world, tenant) == ANSWER
            assert not [log for log in logs if log["event"] == "budget.nearly_spent"]
            assert await ask(world, tenant) == ANSWER
            assert [log["spent_micro"] for log in logs if log["event"] == "budget.nearly_spent"] == [3]
        with pytest.raises(LimitReached) as stopped:
            await ask(world, tenant)
        assert stopped.value.code == "spend_budget_used_up"
        assert len(provider.asked) == 2
        await make_provider(world, tenant.id, provider.openai_url, name="ours", kind="local", key=None, preset=None)
        call = Call()
        assert await ask(world, tenant, call) == ANSWER
        assert (call.provider, call.cost_micro) == ("ours", 0)
