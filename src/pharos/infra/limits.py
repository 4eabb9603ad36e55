"""How often somebody may do something: counted for all processes together, in the database or in Redis.

A window opens with its first hit and ends `seconds` later; a try that is refused does not extend it. Around the end of
a window twice the number can pass, which is the price of one row and one statement a hit.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pharos.infra.counts import Counts, CountsGone, DatabaseCounts, RedisCounts
from pharos.infra.db import Database
from pharos.infra.errors import LimitReached
from pharos.infra.logs import get_logger
from pharos.infra.secret_files import read_or_make_secret
from pharos.infra.settings import Settings

log = get_logger(__name__)


@dataclass(frozen=True)
class Policy:
    """At most `hits` in `seconds`. Its name is part of the key and of logs.

    `when_store_is_gone`: "open" lets everything through; "local" counts in this process alone.
    """

    name: str
    hits: int
    seconds: float
    when_store_is_gone: Literal["open", "local"]


# RL-01, RL-02: a knowledge base that nobody can ask is worse than one that somebody asks too often.
GENERAL = Policy("general", 100, 60, "open")
LLM = Policy("llm", 10, 60, "open")
# F-34, F-32, RL-05: they keep passwords from being guessed and mailboxes from being filled.
LOGIN = Policy("login", 5, 60, "local")
SETUP = Policy("setup", 10, 60, "local")
REFRESH = Policy("refresh", 30, 60, "local")
MAGIC_LINK_EMAIL = Policy("magic_link.email", 1, 60, "local")
MAGIC_LINK_IP = Policy("magic_link.ip", 1, 20, "local")
MAGIC_LINK_CONSUME = Policy("magic_link.consume", 5, 60, "local")
PASSWORD_FORGOTTEN = Policy("password.forgotten", 3, 3600, "local")
PASSWORD_RESET = Policy("password.reset", 5, 3600, "local")
EMAIL_CHANGE_EMAIL = Policy("email_change.email", 1, 60, "local")
EMAIL_CHANGE_USER = Policy("email_change.user", 1, 60, "local")
EMAIL_CHANGE_IP = Policy("email_change.ip", 1, 60, "local")
# A whole department in one go, and a mistyped role put right; not a mailing.
INVITATION_USER = Policy("invitation.user", 30, 3600, "local")
INVITATION_EMAIL = Policy("invitation.email", 3, 3600, "local")
SHARE_LINK = Policy("share.link", 30, 60, "local")
GUEST_QUESTION = Policy("guest.question", 10, 60, "local")

STORE_RETRY_SECONDS = 5.0
TOLD_EVERY_SECONDS = 60.0
LOCAL_KEYS = 10_000


@dataclass
class _Gone:
    """Since when the store does not answer, as seen by this process; times are monotonic seconds."""

    until: float = 0.0
    told_at: float = -math.inf
    passed: int = 0
    windows: dict[str, tuple[int, float]] = field(default_factory=dict)


class Limits:
    """Counts in Redis where the settings name one, else in the database; what was refused is a metric."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings = settings
        self._counts: Counts = RedisCounts(settings.redis_url) if settings.redis_url else DatabaseCounts(db)
        self._gone = _Gone()

    async def hit(self, policy: Policy, subject: str) -> None:
        """Count one try of `subject` (such as "user:ID" or an `ip_subject`).

        Raises `LimitReached` (code "rate_limited") with the seconds until the window ends. Never raises because the
        store is gone.
        """
        key = self.key(policy, subject)
        counted = await self._count(policy, key)
        if counted is None:
            counted = self._count_here(policy, key)
        hits, seconds_left = counted
        if hits > policy.hits:
            from pharos.infra.metrics import LIMIT_HITS  # as in `_tell`

            LIMIT_HITS.labels(policy.name).inc()
            seconds = max(seconds_left, 0.001)
            raise LimitReached(
                f"Too many requests. Try again in {math.ceil(seconds)} seconds.",
                code="rate_limited",
                retry_after_seconds=seconds,
            )

    async def take_back(self, policy: Policy, subject: str) -> None:
        """Forget one hit: what it was for may be done as often as one likes. Never raises because the store is gone."""
        key = self.key(policy, subject)
        if time.monotonic() >= self._gone.until:
            try:
                await self._counts.take_back(key)
            except CountsGone as gone:
                self._note_gone(gone)
        if key in self._gone.windows:
            hits, ends_at = self._gone.windows[key]
            self._gone.windows[key] = max(hits - 1, 0), ends_at

    def key(self, policy: Policy, subject: str) -> str:
        """What is stored instead of the subject: nobody who reads the store learns an address or an e-mail."""
        return hmac.new(self._hash_key, f"{policy.name}\n{subject}".encode(), hashlib.sha256).hexdigest()

    async def reset(self, *subjects: str) -> int:
        """Forget the hits of these subjects under every policy, or of everybody; returns how many windows ended."""
        keys = [self.key(policy, subject) for policy in POLICIES for subject in subjects]
        return await self._counts.forget(keys if subjects else None)

    async def sweep(self) -> int:
        """Remove windows that have ended; returns how many."""
        return await self._counts.sweep()

    async def probe(self) -> None:
        """Count one for nobody. Raises `CountsGone`, an `Unavailable`, when the store does not count."""
        await self._counts.hit("probe", 1.0)

    async def close(self) -> None:
        """Close what was opened for counting."""
        await self._counts.close()

    @cached_property
    def _hash_key(self) -> bytes:
        given = self._settings.secret_key
        file = self._settings.data_dir / "secrets" / "limits_key"
        secret = given.get_secret_value() if given is not None else read_or_make_secret(file)
        return hashlib.sha256(b"limits:" + secret.encode()).digest()

    async def _count(self, policy: Policy, key: str) -> tuple[int, float] | None:
        """Hits in the window and the seconds it still lasts; None when the store is gone."""
        if time.monotonic() < self._gone.until:
            return None
        try:
            return await self._counts.hit(key, policy.seconds)
        except CountsGone as gone:
            self._note_gone(gone)
            return None

    def _note_gone(self, gone: CountsGone) -> None:
        self._gone.until = time.monotonic() + STORE_RETRY_SECONDS
        log.warning("limiter.store_gone", error=type(gone.__cause__).__name__)

    def _count_here(self, policy: Policy, key: str) -> tuple[int, float]:
        if policy.when_store_is_gone == "open":
            self._tell(policy)
            return 0, 0.0
        now, windows = time.monotonic(), self._gone.windows
        hits, ends_at = windows.get(key, (0, 0.0))
        if ends_at <= now:
            hits, ends_at = 0, now + policy.seconds
            windows.pop(key, None)  # so that the first of all is always the one that was opened longest ago
        if key not in windows and len(windows) >= LOCAL_KEYS:
            del windows[next(iter(windows))]
        windows[key] = hits + 1, ends_at
        return hits + 1, ends_at - now

    def _tell(self, policy: Policy) -> None:
        """Count every hit let through uncounted, and say so once a minute (AU-04)."""
        from pharos.infra.metrics import LIMITS_FAILED_OPEN  # every command has limits, few meet one

        LIMITS_FAILED_OPEN.labels(policy.name).inc()
        self._gone.passed += 1
        now = time.monotonic()
        if now - self._gone.told_at >= TOLD_EVERY_SECONDS:
            log.error("limiter.failed_open", policy=policy.name, passed=self._gone.passed)
            self._gone.told_at, self._gone.passed = now, 0


def ip_subject(address: str) -> str:
    """The subject an address counts as: an IPv4 address, or the /64 of an IPv6 one, which is one household.

    >>> ip_subject("2001:db8::1") == ip_subject("2001:db8::2")
    True
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "ip:unknown"
    return f"ip:{ipaddress.ip_network((ip, 32 if ip.version == 4 else 64), strict=False).network_address}"


POLICIES = tuple(value for value in globals().copy().values() if isinstance(value, Policy))
