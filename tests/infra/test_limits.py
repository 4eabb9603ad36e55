"""Limits hold across processes, tell when to retry, and never take the app down with their store."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from structlog.testing import capture_logs

from pharos.infra import limits as limits_module
from pharos.infra.db import create_database
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import LimitReached
from pharos.infra.limits import GENERAL, POLICIES, Limits, Policy, ip_subject
from pharos.infra.metrics import REGISTRY
from pharos.runtime import Runtime

NARROW = Policy("narrow", 3, 60, "local")


def somebody() -> str:
    return f"user:{secrets.token_hex(8)}"


def limits_of_another_process(runtime: Runtime) -> Limits:
    return Limits(runtime.settings, runtime.db)


def limits_without_store(runtime: Runtime) -> Limits:
    return Limits(runtime.settings, create_database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1))


def times_refused(policy: str) -> float:
    return REGISTRY.get_sample_value("pharos_rate_limit_hits_total", {"source": policy}) or 0


def times_failed_open(policy: str) -> float:
    return REGISTRY.get_sample_value("pharos_rate_limit_failed_open_total", {"source": policy}) or 0


async def allowed(limits: Limits, policy: Policy, subject: str, tries: int) -> int:
    """How many of so many tries at once are let through."""
    answers = await asyncio.gather(*(limits.hit(policy, subject) for _ in range(tries)), return_exceptions=True)
    assert all(answer is None or isinstance(answer, LimitReached) for answer in answers), answers
    return sum(answer is None for answer in answers)


@pytest.mark.contract("RL-09")
async def test_processes_share_one_window_and_a_restart_does_not_reset_it(runtime: Runtime) -> None:
    subject = somebody()
    worlds = [limits_of_another_process(runtime) for _ in range(4)]
    counts = await asyncio.gather(*(allowed(limits, NARROW, subject, 5) for limits in worlds))
    assert sum(counts) == NARROW.hits
    assert await allowed(limits_of_another_process(runtime), NARROW, subject, 1) == 0


async def test_somebody_else_and_another_policy_have_windows_of_their_own(runtime: Runtime) -> None:
    subject = somebody()
    assert await allowed(runtime.limits, NARROW, subject, 4) == 3
    assert await allowed(runtime.limits, NARROW, somebody(), 1) == 1
    assert await allowed(runtime.limits, replace(NARROW, name="other"), subject, 1) == 1


async def test_a_hit_that_is_taken_back_is_free_again_and_a_refused_one_is_not(runtime: Runtime) -> None:
    for limits in (runtime.limits, limits_without_store(runtime)):
        subject = somebody()
        assert await allowed(limits, NARROW, subject, 3) == 3
        await limits.take_back(NARROW, subject)
        assert await allowed(limits, NARROW, subject, 3) == 1
        for _ in range(9):
            await limits.take_back(NARROW, subject)
        assert await allowed(limits, NARROW, subject, 4) == 3, "below nothing there is nothing"


@pytest.mark.contract("RL-10", part="the limiter knows when the window ends, and a refused try does not move that")
async def test_a_refused_try_does_not_extend_the_wait(runtime: Runtime) -> None:
    subject, short = somebody(), Policy("short", 1, 0.4, "local")
    await runtime.limits.hit(short, subject)
    with pytest.raises(LimitReached) as refused:
        await runtime.limits.hit(short, subject)
    assert 0 < (refused.value.retry_after_seconds or 0) <= 0.4
    # somebody who goes on trying all the time gets through when the window ends
    tries = 0
    async with asyncio.timeout(5):
        while not await allowed(runtime.limits, short, subject, 1):
            tries += 1
    assert tries > 0


@pytest.mark.contract("RL-10", part="the whole address is in memory only: the table has a keyed hash")
async def test_no_address_is_stored(runtime: Runtime) -> None:
    await runtime.limits.hit(NARROW, ip_subject("203.0.113.77"))
    async with system_transaction(runtime.db) as session:
        keys = (await session.execute(text("select key from rate_limits"))).scalars().all()
    assert runtime.limits.key(NARROW, "ip:203.0.113.77") in keys
    assert not [key for key in keys if "203" in key and "113" in key and "." in key]


@pytest.mark.contract("RL-03", part="general limits let through, and every time is logged and measured")
@pytest.mark.contract(
    "AU-04", part="every hit let through is measured, and logged once a minute; the alert comes later"
)
async def test_without_its_store_a_general_limit_lets_through_and_says_so_once(runtime: Runtime) -> None:
    limits = limits_without_store(runtime)
    before = times_failed_open("general")
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        assert await allowed(limits, replace(GENERAL, hits=3), somebody(), 20) == 20
    assert times_failed_open("general") == before + 20
    told: list[Any] = [event for event in events if event["event"] == "limiter.failed_open"]
    assert [(event["log_level"], event["policy"]) for event in told] == [("error", "general")]


@pytest.mark.contract("RL-03", part="the limits of sign-in and mail count in the process")
async def test_without_its_store_a_limit_that_protects_sign_in_counts_in_the_process(runtime: Runtime) -> None:
    limits, subject = limits_without_store(runtime), somebody()
    assert await allowed(limits, NARROW, subject, 10) == NARROW.hits
    assert await allowed(limits, NARROW, somebody(), 1) == 1
    assert times_failed_open("narrow") == 0


async def test_what_is_counted_in_the_process_is_bounded_and_the_oldest_window_goes_first(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "LOCAL_KEYS", 100)
    limits, (first, second, *others) = limits_without_store(runtime), [somebody() for _ in range(200)]
    for subject in (first, second, *others[:98]):
        assert await allowed(limits, NARROW, subject, 3) == 3
    assert await allowed(limits, NARROW, first, 1) == 0
    for subject in others[98:]:
        assert await allowed(limits, NARROW, subject, 3) == 3
        assert len(limits._gone.windows) == 100
    assert await allowed(limits, NARROW, others[-1], 1) == 0
    assert await allowed(limits, NARROW, second, 1) == 1, "its window was given up for others"


@pytest.mark.contract("RL-03", part="the limits of sign-in and mail count in the process")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_only_the_general_and_the_model_limit_open_without_their_store(policy: Policy) -> None:
    assert (policy.when_store_is_gone == "open") == (policy.name in {"general", "llm"})


@pytest.mark.parametrize(("name", "seconds"), [("magic_link.email", 60), ("magic_link.ip", 20)])
async def test_a_second_try_within_its_window_is_refused_with_what_is_left_of_it(
    runtime: Runtime, name: str, seconds: float
) -> None:
    (policy,) = [policy for policy in POLICIES if policy.name == name]
    subject = somebody()
    await runtime.limits.hit(policy, subject)
    with pytest.raises(LimitReached) as refused:
        await runtime.limits.hit(policy, subject)
    assert refused.value.retry_after_seconds == pytest.approx(seconds, abs=2)


@pytest.mark.contract("RL-04", "ME-10")
async def test_what_was_refused_is_measured_by_policy(runtime: Runtime) -> None:
    one, other = times_refused("narrow"), times_refused("general")
    assert await allowed(runtime.limits, NARROW, somebody(), 5) == 3
    assert (times_refused("narrow"), times_refused("general")) == (one + 2, other)


def test_every_policy_is_measured_from_the_start() -> None:
    for policy in POLICIES:
        assert REGISTRY.get_sample_value("pharos_rate_limit_hits_total", {"source": policy.name}) is not None
    for name in ("general", "llm"):
        assert REGISTRY.get_sample_value("pharos_rate_limit_failed_open_total", {"source": name}) is not None


@pytest.mark.contract("RL-09", part="counts can be forgotten on purpose")
async def test_a_reset_forgets_one_subject_or_all(runtime: Runtime) -> None:
    subject, other = somebody(), somebody()
    for name in (subject, other):
        assert await allowed(runtime.limits, GENERAL, name, GENERAL.hits + 1) == GENERAL.hits
    assert await runtime.limits.reset(subject) == 1
    assert await allowed(runtime.limits, GENERAL, subject, 1) == 1
    assert await allowed(runtime.limits, GENERAL, other, 1) == 0
    assert await runtime.limits.reset() >= 2
    assert await allowed(runtime.limits, GENERAL, other, 1) == 1


async def test_a_sweep_removes_ended_windows_and_no_others(runtime: Runtime) -> None:
    ended, open_ = Policy("ended", 1, 0.0, "local"), somebody()
    subject = somebody()
    await runtime.limits.hit(ended, subject)
    await runtime.limits.hit(replace(NARROW, hits=1), open_)
    assert await runtime.limits.sweep() >= 1
    async with system_transaction(runtime.db) as session:
        keys = (await session.execute(text("select key from rate_limits"))).scalars().all()
    assert runtime.limits.key(ended, subject) not in keys
    assert runtime.limits.key(NARROW, open_) in keys


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    assert ip_subject("2001:db8::1") == ip_subject("2001:db8::ffff") != ip_subject("2001:db8:0:1::1")
    assert ip_subject("203.0.113.1") != ip_subject("203.0.113.2")
