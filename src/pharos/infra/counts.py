"""Where hits are counted, the same for any number of processes: in the database, or in Redis where one is named.

Both answer a key, which says nothing about whom it stands for, with the hits of its window and the seconds the window
still lasts. A window begins with its first hit, and further ones do not extend it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Row, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from pharos.infra.db import Database
from pharos.infra.errors import Unavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

DATABASE_SECONDS = 3.0
REDIS_SECONDS = 1.0
"""A store that takes longer is gone: no request waits longer than this for its permission."""
REDIS_CONNECTIONS = 20
PREFIX = "pharos:limit:"
REDIS_GONE = "Redis does not answer. Is it running, and is PHAROS_REDIS_URL right? See: pharos doctor redis"

# The commit is not waited for: a hit lost with a crashed server is cheaper than a disk flush for each request.
# hits stop growing at a number nobody allows, so that a flood cannot overflow them.
HIT = text(
    """
    with quick as materialized (select set_config('synchronous_commit', 'off', true))
    insert into rate_limits as r (key, hits, window_ends_at)
    select cast(:key as text), 1, clock_timestamp() + make_interval(secs => :seconds) from quick
    on conflict (key) do update set
        hits = case when r.window_ends_at <= clock_timestamp() then 1 else least(r.hits + 1, 1000000) end,
        window_ends_at = case when r.window_ends_at <= clock_timestamp() then excluded.window_ends_at
                              else r.window_ends_at end
    returning hits, extract(epoch from window_ends_at - clock_timestamp()) as seconds_left
    """
)
# One hit less; a window that has ended stays as it is.
TAKE_BACK = text(
    """
    with quick as materialized (select set_config('synchronous_commit', 'off', true))
    update rate_limits set hits = greatest(hits - 1, 0) from quick
    where key = cast(:key as text) and window_ends_at > clock_timestamp()
    returning hits
    """
)
SWEEP = text(
    """
    with gone as (delete from rate_limits where window_ends_at < now() returning key)
    select count(*) as number from gone
    """
)
FORGET = text(
    """
    with gone as (
        delete from rate_limits
        where cast(:keys as text[]) is null or key = any(cast(:keys as text[])) returning key
    )
    select count(*) as number from gone
    """
)

# The same in one step of Redis. A key without an end would refuse for ever, so the first hit is told by that alone.
HIT_SCRIPT = """
local hits = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    left = tonumber(ARGV[1])
end
return {hits, left}
"""
TAKE_BACK_SCRIPT = """
if tonumber(redis.call('GET', KEYS[1]) or 0) > 0 then
    return redis.call('DECR', KEYS[1])
end
return 0
"""


class CountsGone(Unavailable):
    """The store does not answer in time, or refuses; its cause says why."""


class Counts(Protocol):
    async def hit(self, key: str, seconds: float) -> tuple[int, float]:
        """Count one; hits in the window and the seconds it still lasts. Raises `CountsGone`."""

    async def take_back(self, key: str) -> None:
        """One hit less in the window, if it still lasts. Raises `CountsGone`."""

    async def forget(self, keys: Sequence[str] | None) -> int:
        """End the windows of these keys, or all; returns how many there were. Raises an `Unavailable` or of SQL."""

    async def sweep(self) -> int:
        """Remove windows that have ended; returns how many."""

    async def close(self) -> None:
        """Close what was opened for counting."""


class DatabaseCounts:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def hit(self, key: str, seconds: float) -> tuple[int, float]:
        row = await self._fetch(HIT, {"key": key, "seconds": seconds})
        assert row is not None
        return int(row.hits), float(row.seconds_left)

    async def take_back(self, key: str) -> None:
        await self._fetch(TAKE_BACK, {"key": key})

    async def _fetch(self, statement: TextClause, values: dict[str, object]) -> Row[Any] | None:
        try:
            # past the pool that requests wait in: whoever fills that one must not open the limit with it
            async with asyncio.timeout(DATABASE_SECONDS):
                return await self._db.fetch(statement, values)
        except (SQLAlchemyError, TimeoutError, OSError) as error:
            raise CountsGone("The database does not count. See: pharos doctor db") from error

    async def forget(self, keys: Sequence[str] | None) -> int:
        (row,) = await self._db.fetch_all(FORGET, {"keys": list(keys) if keys is not None else None})
        return int(row.number)

    async def sweep(self) -> int:
        (row,) = await self._db.fetch_all(SWEEP, {})
        return int(row.number)

    async def close(self) -> None:
        """Nothing: the database belongs to the runtime."""


class RedisCounts:
    """Redis or Valkey. Opens no connection before the first hit; what is counted ends with the server."""

    def __init__(self, url: str) -> None:
        self._redis = open_redis(url)
        self._script = self._redis.register_script(HIT_SCRIPT)
        self._take_back = self._redis.register_script(TAKE_BACK_SCRIPT)

    async def hit(self, key: str, seconds: float) -> tuple[int, float]:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(REDIS_SECONDS):
                hits, milliseconds = await self._script(keys=[PREFIX + key], args=[round(seconds * 1000)])
        except (RedisError, TimeoutError, OSError) as error:
            raise CountsGone(REDIS_GONE) from error
        return int(hits), milliseconds / 1000

    async def take_back(self, key: str) -> None:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(REDIS_SECONDS):
                await self._take_back(keys=[PREFIX + key])
        except (RedisError, TimeoutError, OSError) as error:
            raise CountsGone(REDIS_GONE) from error

    async def forget(self, keys: Sequence[str] | None) -> int:
        from redis.exceptions import RedisError

        try:
            names = [PREFIX + key for key in keys] if keys is not None else await self._all()
            return int(await self._redis.delete(*names)) if names else 0
        except (RedisError, OSError) as error:
            raise CountsGone(REDIS_GONE) from error

    async def sweep(self) -> int:
        """Nothing: Redis forgets what has ended."""
        return 0

    async def close(self) -> None:
        await self._redis.aclose()

    async def _all(self) -> list[str]:
        return [name.decode() async for name in self._redis.scan_iter(match=f"{PREFIX}*", count=1000)]


def open_redis(url: str) -> Redis:
    """A client with a bounded pool that gives up after a second; it connects when it is first asked."""
    # imported only where Redis is named: it takes a fifth of a second, which every command would pay
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=REDIS_CONNECTIONS,  # a flood waits for them in turn: without a bound it would open the limit
        timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 1),  # a connection may have died unseen; the count may then be one too high
    )
    return Redis.from_pool(pool)
