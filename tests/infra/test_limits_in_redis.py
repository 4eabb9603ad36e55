"""With Redis named, limits are counted there: shared by processes, and never missed when it is gone."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from tests.conftest import open_client
from tests.infra.test_limits import NARROW, allowed, somebody, times_failed_open
from tests.redis_server import RedisServer, needs_redis

from pharos.infra import limits as limits_module
from pharos.infra.db_system import system_transaction
from pharos.infra.errors import LimitReached, Unavailable
from pharos.infra.limits import GENERAL, LOGIN, Limits, Policy
from pharos.infra.settings import Settings
from pharos.runtime import Runtime

pytestmark = needs_redis

ANOTHER_PROCESS = """
import asyncio, sys
from pharos.infra.db import create_database
from pharos.infra.errors import LimitReached
from pharos.infra.limits import Limits, Policy
from pharos.infra.settings import Settings

async def main(url, key, subject):
    settings = Settings(_env_file=None, redis_url=url, secret_key=key)
    limits = Limits(settings, create_database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1))
    passed = 0
    for _ in range(5):
        try:
            await limits.hit(Policy("narrow", 3, 60, "local"), subject)
            passed += 1
        except LimitReached:
            pass
    await limits.close()
    print(passed)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def in_redis(settings: Settings, redis_server: RedisServer) -> Settings:
    return settings.model_copy(update={"redis_url": redis_server.url})


@pytest.fixture
async def limits(runtime: Runtime, in_redis: Settings) -> AsyncIterator[Limits]:
    made = Limits(in_redis, runtime.db)
    yield made
    await made.close()


async def rows_in_the_database(runtime: Runtime) -> int:
    async with system_transaction(runtime.db) as session:
        return int((await session.execute(text("select count(*) from rate_limits"))).scalar_one())


@pytest.mark.slow
@pytest.mark.contract("RL-09", part="another process counts in the same window of Redis")
async def test_two_processes_share_one_window(limits: Limits, in_redis: Settings, runtime: Runtime) -> None:
    subject = somebody()
    before = await rows_in_the_database(runtime)
    assert await allowed(limits, NARROW, subject, 2) == 2
    assert in_redis.secret_key is not None
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(in_redis.redis_url), in_redis.secret_key.get_secret_value()]
    done = await asyncio.to_thread(subprocess.run, [*command, subject], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stdout + done.stderr
    assert await allowed(limits, NARROW, subject, 1) == 0
    assert await rows_in_the_database(runtime) == before


@pytest.mark.contract("RL-10", part="the same with Redis: a refused try does not move the end of the window")
async def test_a_refused_try_does_not_extend_the_wait(limits: Limits) -> None:
    subject, short = somebody(), Policy("short", 1, 0.4, "local")
    await limits.hit(short, subject)
    with pytest.raises(LimitReached) as refused:
        await limits.hit(short, subject)
    assert 0 < (refused.value.retry_after_seconds or 0) <= 0.4
    tries = 0
    async with asyncio.timeout(5):
        while not await allowed(limits, short, subject, 1):
            tries += 1
    assert tries > 0


async def test_a_hit_that_is_taken_back_is_free_again(limits: Limits) -> None:
    subject = somebody()
    assert await allowed(limits, LOGIN, subject, 5) == 5
    await limits.take_back(LOGIN, subject)
    assert await allowed(limits, LOGIN, subject, 3) == 1
    stranger = somebody()
    await limits.take_back(LOGIN, stranger)
    assert await allowed(limits, LOGIN, stranger, 6) == 5


async def test_a_flood_from_many_is_counted_exactly(limits: Limits) -> None:
    before = times_failed_open("general")
    assert await allowed(limits, GENERAL, somebody(), 500) == GENERAL.hits
    assert times_failed_open("general") == before


async def test_what_lies_in_redis_says_nothing_and_ends_by_itself(limits: Limits, redis_server: RedisServer) -> None:
    await limits.hit(NARROW, "ip:203.0.113.77")
    async with Redis.from_url(redis_server.url) as client:
        (name,) = await client.keys("*")
        assert name.decode() == f"pharos:limit:{limits.key(NARROW, 'ip:203.0.113.77')}"
        assert 0 < await client.pttl(name) <= 60_000
        # a key that has lost its end must not refuse for ever
        await client.persist(name)
        await limits.hit(NARROW, "ip:203.0.113.77")
        assert 0 < await client.pttl(name) <= 60_000


@pytest.mark.contract(
    "RL-03", part="without Redis, within a second: general limits open, those of sign-in count locally"
)
@pytest.mark.parametrize("way", ["killed", "held"])
async def test_without_redis_nobody_waits_and_sign_in_stays_limited(
    limits: Limits, redis_server: RedisServer, way: str
) -> None:
    subject = somebody()
    await limits.hit(GENERAL, subject)
    (redis_server.kill if way == "killed" else redis_server.hold)()
    before, started = times_failed_open("general"), time.monotonic()
    assert await allowed(limits, replace(GENERAL, hits=3), subject, 20) == 20
    assert await allowed(limits, NARROW, subject, 10) == NARROW.hits
    assert time.monotonic() - started < 1.9, "one wait of a second, and nobody waits after that"
    assert times_failed_open("general") == before + 20


@pytest.mark.contract("RL-09", part="with Redis back, hits are counted there again")
async def test_with_redis_back_hits_are_counted_there_again(
    limits: Limits, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "STORE_RETRY_SECONDS", 0.05)
    subject, few = somebody(), replace(GENERAL, hits=3)
    assert await allowed(limits, few, subject, 5) == 3
    redis_server.kill()
    assert await allowed(limits, few, subject, 5) == 5
    redis_server.start()
    async with asyncio.timeout(5):
        while await allowed(limits, few, subject, 1):
            pass
    assert await allowed(limits, few, subject, 5) == 0


async def test_redis_that_takes_no_more_is_as_good_as_gone(limits: Limits, redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url) as client:
        await client.config_set("maxmemory", "1")
    before = times_failed_open("general")
    assert await allowed(limits, replace(GENERAL, hits=1), somebody(), 5) == 5
    assert times_failed_open("general") == before + 5


async def test_a_reset_forgets_one_subject_or_all_and_nothing_of_others(
    limits: Limits, redis_server: RedisServer
) -> None:
    subject, other = somebody(), somebody()
    async with Redis.from_url(redis_server.url) as client:
        await client.set("somebody-elses", "1")
        for name in (subject, other):
            assert await allowed(limits, LOGIN, name, 6) == 5
        assert await limits.reset(subject) == 1
        assert await allowed(limits, LOGIN, subject, 1) == 1
        assert await allowed(limits, LOGIN, other, 1) == 0
        assert await limits.reset() == 2
        assert await limits.reset() == 0
        assert await client.keys("*") == [b"somebody-elses"]
    assert await limits.sweep() == 0
    redis_server.kill()
    with pytest.raises(Unavailable, match="PHAROS_REDIS_URL"):
        await limits.reset(subject)


async def test_health_names_redis_where_one_is_configured_and_works_without_it(
    runtime: Runtime, limits: Limits, in_redis: Settings, redis_server: RedisServer
) -> None:
    world = replace(runtime, settings=in_redis, limits=limits)
    async with open_client(world) as client:
        up = (await client.get("/health/detailed")).json()
        redis_server.kill()
        down = await client.get("/health/detailed")
        answer = await client.get("/bootstrap/status")
    assert up["components"]["redis"] == {"status": "up"}
    assert down.json()["components"]["redis"] == {"status": "down"}
    assert (down.status_code, down.json()["status"]) == (200, "degraded")
    assert answer.status_code == 200


async def test_two_installations_at_one_redis_do_not_share_their_counts(
    runtime: Runtime, limits: Limits, in_redis: Settings
) -> None:
    other = in_redis.model_copy(update={"secret_key": None, "data_dir": in_redis.data_dir / secrets.token_hex(4)})
    theirs = Limits(other, runtime.db)
    subject = somebody()
    assert await allowed(limits, NARROW, subject, 4) == 3
    assert await allowed(theirs, NARROW, subject, 4) == 3
    await theirs.close()
