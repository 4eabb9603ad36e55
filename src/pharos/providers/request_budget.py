"""How many requests a minute a provider takes, shared by all processes (LP-22).

Whoever comes when the minute is used up gets the next free place in a minute to come and waits for it, in the order of
coming; whoever would wait too long is refused at once. A provider that asks to wait is left alone that long.
"""

from __future__ import annotations

import math

from sqlalchemy import text

from pharos.infra.db import Database
from pharos.infra.errors import LimitReached
from pharos.providers.contract import Candidate
from pharos.providers.meters import REQUESTS_LEFT

WINDOW_SECONDS = 60
MOST_WAIT_SECONDS = 20.0
"""A person waits that long for a first word, if nobody else can say it."""
WAIT_WITH_ANOTHER_SECONDS = 2.0
"""The same where another provider could answer."""
PAUSE_SECONDS = 5.0
"""After a refusal that does not say how long to wait."""
MOST_PAUSE_SECONDS = 3600.0

TAKE = text(
    """
    with old as (
        select s.*, clock_timestamp() as now,
               coalesce(floor(extract(epoch from clock_timestamp() - s.window_began_at) / :window), 0) as passed
        from provider_states s where key = :key for update
    ), rolled as (
        select now, paused_until, cast(greatest(window_used - passed * :limit, 0) as int) as used,
               case when window_began_at is null or window_used <= passed * :limit then now
                    else window_began_at + make_interval(secs => passed * :window) end as began
        from old
    ), place as (
        select used, began, greatest(
            extract(epoch from began + make_interval(secs => (used / :limit) * :window) - now),
            extract(epoch from paused_until - now),
            0
        ) as wait
        from rolled
    )
    update provider_states s set
        window_began_at = place.began,
        window_used = place.used + case when place.wait <= :most_wait then 1 else 0 end,
        window_limit = :limit
    from place where s.key = :key
    returning place.wait, greatest(:limit - s.window_used, 0) as remaining
    """
)
PAUSE = text(
    """
    update provider_states set
        paused_until = greatest(paused_until, clock_timestamp() + make_interval(secs => :seconds))
    where key = :key returning key
    """
)


async def take_place(db: Database, candidate: Candidate, *, paused_seconds: float, has_another: bool) -> float:
    """A place in the provider's budget: the seconds to wait for it, mostly 0.

    `paused_seconds` is how long the provider has asked to be left alone. Raises `LimitReached`
    (`provider_rate_limited`) when the wait would be too long; nothing is taken then.
    """
    most = WAIT_WITH_ANOTHER_SECONDS if has_another else MOST_WAIT_SECONDS
    wait = paused_seconds
    if candidate.requests_per_minute is not None:
        values = {"limit": candidate.requests_per_minute, "window": WINDOW_SECONDS, "most_wait": most}
        row = await db.fetch(TAKE, {"key": candidate.state_key, **values})
        if row is None:  # the provider was changed just now, and starts anew
            return 0.0
        REQUESTS_LEFT.labels(candidate.label, "minute").set(int(row.remaining))
        wait = float(row.wait)
    if wait > most:
        raise LimitReached(
            f"Rate limit exceeded: {candidate.provider} takes no more requests now. "
            f"Try again in {math.ceil(wait)} seconds.",
            code="provider_rate_limited",
            retry_after_seconds=wait,
            provider=candidate.provider,
        )
    return wait


async def pause_provider(db: Database, candidate: Candidate, retry_after_seconds: float | None) -> None:
    """Leave a provider alone for as long as it asked, an hour at most."""
    seconds = min(PAUSE_SECONDS if retry_after_seconds is None else retry_after_seconds, MOST_PAUSE_SECONDS)
    await db.fetch(PAUSE, {"key": candidate.state_key, "seconds": max(seconds, 0.0)})
