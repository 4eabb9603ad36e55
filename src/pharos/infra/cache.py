"""What is kept only to be faster: in this process, or in Redis where one is named. Losing all of it loses nothing.

While Redis does not answer the process keeps for itself, says so, and gives Redis what it kept as soon as that is back.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from pharos.infra.counts import REDIS_SECONDS, open_redis
from pharos.infra.logs import get_logger
from pharos.infra.metrics import FALLBACK_ACTIVE

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = get_logger(__name__)
T = TypeVar("T")

KEPT_SECONDS = 3600
MOST_KEPT = 1000
"""In a process: an answer with its sources is some 10 KB."""
PROBE_SECONDS = 2.0
PREFIX = "pharos:cache:"


class Cache:
    """Bytes by key, for an hour. A key says nothing about whom it stands for."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._redis: Redis | None = open_redis(redis_url) if redis_url else None
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._probe: asyncio.Task[None] | None = None
        if redis_url:
            FALLBACK_ACTIVE.labels("cache").set(0)

    @property
    def is_fallen_back(self) -> bool:
        """Whether a Redis is named and does not answer, so that this process keeps for itself."""
        return self._probe is not None

    async def get(self, key: str) -> bytes | None:
        """What was kept under a key, if it still is."""
        if self._redis is None or self.is_fallen_back:
            return self._own(key)
        redis = self._redis
        found: bytes | None = await self._try(lambda: redis.get(PREFIX + key))
        return self._own(key) if self.is_fallen_back else found

    async def put(self, key: str, value: bytes) -> None:
        """Keep a value; never fails."""
        if self._redis is not None and not self.is_fallen_back:
            redis = self._redis
            await self._try(lambda: redis.set(PREFIX + key, value, ex=KEPT_SECONDS))
            if not self.is_fallen_back:
                return
        self._kept[key] = (time.monotonic() + KEPT_SECONDS, value)
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    async def clear(self) -> None:
        """Forget everything that is kept here and in Redis; what other processes keep goes with its hour."""
        self._kept.clear()
        if self._redis is not None and not self.is_fallen_back:
            await self._try(self._delete_all)

    async def close(self) -> None:
        """Close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    def _own(self, key: str) -> bytes | None:
        ends_at, value = self._kept.get(key, (0.0, b""))
        return value if time.monotonic() < ends_at else None

    async def _delete_all(self) -> None:
        assert self._redis is not None
        names = [name async for name in self._redis.scan_iter(match=f"{PREFIX}*", count=1000)]
        if names:
            await self._redis.delete(*names)

    async def _try(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Ask Redis; from its first failure on this process keeps for itself."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(REDIS_SECONDS):
                return await ask()
        except (RedisError, TimeoutError, OSError) as error:
            if self._probe is None:
                # The words are what people search their logs for (CH-04).
                log.warning("FALLBACK ACTIVATED", store="cache", error=type(error).__name__)
                FALLBACK_ACTIVE.labels("cache").set(1)
                self._probe = asyncio.create_task(self._await_return(), context=contextvars.Context())
            return None

    async def _await_return(self) -> None:
        """Ask until Redis answers, give it what was kept meanwhile, and use it again."""
        from redis.exceptions import RedisError

        assert self._redis is not None
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    await self._redis.exists(PREFIX)
                for key, (ends_at, value) in list(self._kept.items()):
                    if (seconds := int(ends_at - time.monotonic())) > 0:
                        await self._redis.set(PREFIX + key, value, ex=seconds)
            except (RedisError, TimeoutError, OSError):
                continue
            self._kept.clear()
            FALLBACK_ACTIVE.labels("cache").set(0)
            log.info("fallback.ended", store="cache")
            self._probe = None
            return
