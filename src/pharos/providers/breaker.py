"""The breaker of a provider, one for all processes: closed it lets calls pass, open it refuses them at once, half open
it lets a few try (LP-15).

It opens after 5 failures in a row, tries again after 30 seconds and closes after 3 successes. A refused key, a used-up
limit or a wrong request is no failure: the provider is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from sqlalchemy import text

from pharos.infra.db import Database
from pharos.infra.errors import PharosError, Unavailable
from pharos.infra.logs import get_logger
from pharos.providers.contract import Candidate
from pharos.providers.meters import BREAKER_STATE, BREAKER_TRANSITIONS, REQUESTS_LEFT

log = get_logger(__name__)

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 30
SUCCESSES_TO_CLOSE = 3
TRIALS_AT_ONCE = 3
"""No more than could close it: whoever comes later is refused at once instead of waiting for a time-out."""
TRIAL_SECONDS = 180
"""How long a trial may last before its place is free again: longer than any call, so only a killed one loses it."""
FAILURE_CODES = frozenset({"provider_unreachable", "provider_timed_out", "provider_failed", "provider_answer_bad"})
STATE_NUMBERS = {"closed": 0, "open": 1, "half_open": 2}


class Outcome(Enum):
    """What a call says about the provider's health; NEITHER: nothing."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEITHER = "neither"


LOOK = text(
    """
    select state, extract(epoch from opened_at - clock_timestamp()) + :open_seconds as closed_for,
           extract(epoch from paused_until - clock_timestamp()) as paused_for
    from provider_states where key = :key
    """
)
MEET = text("insert into provider_states (key, label) values (:key, :label) on conflict (key) do nothing returning key")
# Each statement locks the row first and then says what state it was in, so that every change is counted by one.
TRY = text(
    """
    with old as (select state from provider_states where key = :key for update)
    update provider_states s set
        state = 'half_open',
        successes = case when s.state = 'open' then 0 else s.successes end,
        trial_ends = array(
            select moment from unnest(s.trial_ends) moment where s.state <> 'open' and moment > clock_timestamp()
        ) || (clock_timestamp() + make_interval(secs => :trial_seconds))
    from old
    where s.key = :key and (
        s.state = 'open' and s.opened_at <= clock_timestamp() - make_interval(secs => :open_seconds)
        or s.state = 'half_open' and :trials > (
            select count(*) from unnest(s.trial_ends) moment where moment > clock_timestamp()
        )
    )
    returning old.state as was, s.state as state, s.trial_ends[cardinality(s.trial_ends)] as trial
    """
)
# Only a trial's success counts towards closing: a call from before the breaker opened proves nothing about now.
SUCCEED = text(
    """
    with old as (select state from provider_states where key = :key for update)
    update provider_states s set
        failures = 0,
        successes = s.successes + case when s.state = 'half_open' and cast(:trial as timestamptz) is not null
                                       then 1 else 0 end,
        state = case when s.state = 'half_open' and cast(:trial as timestamptz) is not null
                          and s.successes + 1 >= :successes then 'closed' else s.state end,
        trial_ends = array_remove(s.trial_ends, cast(:trial as timestamptz))
    from old
    where s.key = :key and (s.failures > 0 or cast(:trial as timestamptz) is not null)
    returning old.state as was, s.state as state
    """
)
# Only a trial's failure opens it anew, for the same reason: a time-out of before it opened would shut out who is back.
FAIL = text(
    """
    with old as (
        select state, state = 'half_open' and cast(:trial as timestamptz) is not null
               or state = 'closed' and failures + 1 >= :failures as opens
        from provider_states where key = :key for update
    )
    update provider_states s set
        failures = s.failures + 1,
        successes = case when old.opens then 0 else s.successes end,
        state = case when old.opens then 'open' else s.state end,
        opened_at = case when old.opens then clock_timestamp() else s.opened_at end,
        trial_ends = array_remove(s.trial_ends, cast(:trial as timestamptz))
    from old where s.key = :key
    returning old.state as was, s.state as state
    """
)
LEAVE = text("update provider_states set trial_ends = array_remove(trial_ends, :trial) where key = :key returning key")
RESET = text(
    """
    with old as (
        select key, state from provider_states
        where cast(:keys as text[]) is null or key = any(cast(:keys as text[])) for update
    )
    update provider_states s set
        state = 'closed', failures = 0, successes = 0, opened_at = null, trial_ends = '{}', paused_until = null
    from old where s.key = old.key
    returning s.label, old.state as was, s.state
    """
)
FORGET = text("delete from provider_states where key = any(:keys) returning label")
SHOW = text(
    """
    select key, label, state, failures, successes, opened_at, cardinality(trial_ends) as trials,
           greatest(extract(epoch from paused_until - clock_timestamp()), 0) as paused_for,
           extract(epoch from opened_at - clock_timestamp()) + :open_seconds as closed_for,
           window_limit,
           case when window_began_at > clock_timestamp() - interval '60 s' then window_used else 0 end as window_used
    from provider_states order by label, key
    """
)


@dataclass(frozen=True)
class Passed:
    """Leave to call: `trial` marks one that tries whether a provider is back; wait `paused_seconds` first."""

    trial: datetime | None = None
    paused_seconds: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How a provider fares; `requests_left` is None without a budget, `tried_again_in_seconds` unless it is open."""

    key: str
    label: str
    state: str
    failures: int
    successes: int
    opened_at: datetime | None
    trials: int
    paused_seconds: float
    tried_again_in_seconds: float | None
    requests_left: int | None


async def pass_breaker(db: Database, candidate: Candidate) -> Passed:
    """Leave to call a provider; every one must be given back with `report`.

    Raises `Unavailable` (`breaker_open`) while it rests, with the seconds until it is tried again.
    """
    row = await db.fetch(LOOK, {"key": candidate.state_key, "open_seconds": OPEN_SECONDS})
    if row is None:
        await db.fetch(MEET, {"key": candidate.state_key, "label": candidate.label})
        BREAKER_STATE.labels(candidate.label).set(0)
        return Passed()
    paused = max(float(row.paused_for or 0.0), 0.0)
    if row.state == "closed":
        return Passed(paused_seconds=paused)
    values = {"open_seconds": OPEN_SECONDS, "trial_seconds": TRIAL_SECONDS, "trials": TRIALS_AT_ONCE}
    tried = await db.fetch(TRY, {"key": candidate.state_key, **values})
    if tried is None:
        row = await db.fetch(LOOK, {"key": candidate.state_key, "open_seconds": OPEN_SECONDS})
        if row is None or row.state == "closed":  # by another process, since the first look
            return Passed(paused_seconds=paused)
        raise _resting(candidate, seconds=max(float(row.closed_for or 0.0), 1.0))
    _note(candidate.label, tried.was, tried.state)
    return Passed(trial=tried.trial, paused_seconds=paused)


async def report(db: Database, candidate: Candidate, passed: Passed, outcome: Outcome) -> None:
    """Say how a call ended, and give a trial's place back."""
    values: dict[str, object] = {"key": candidate.state_key, "trial": passed.trial}
    if outcome is Outcome.SUCCESS:
        row = await db.fetch(SUCCEED, values | {"successes": SUCCESSES_TO_CLOSE})
    elif outcome is Outcome.FAILURE:
        row = await db.fetch(FAIL, values | {"failures": FAILURES_TO_OPEN})
    else:
        row = None
        if passed.trial is not None:
            await db.fetch(LEAVE, values)
    if row is not None:
        _note(candidate.label, row.was, row.state)


def outcome_of(error: PharosError) -> Outcome:
    """What an error says about the provider: only an outage counts (LP-04)."""
    return Outcome.FAILURE if error.code in FAILURE_CODES else Outcome.NEITHER


async def reset_breakers(db: Database, keys: list[str] | None = None) -> int:
    """Close the breakers of these providers, or all, and forget their pauses; returns how many were not closed."""
    rows = await db.fetch_all(RESET, {"keys": keys})
    for row in rows:
        _note(row.label, row.was, row.state)
    return sum(row.was != "closed" for row in rows)


async def forget_states(db: Database, keys: list[str]) -> None:
    """Forget how providers fared that are no more what they were."""
    rows = await db.fetch_all(FORGET, {"keys": keys})
    for row in rows:
        BREAKER_STATE.labels(row.label).set(0)


async def list_standings(db: Database) -> list[Standing]:
    """How every provider fares that was ever called, by name."""
    rows = await db.fetch_all(SHOW, {"open_seconds": OPEN_SECONDS})
    return [
        Standing(
            key=row.key,
            label=row.label,
            state=row.state,
            failures=row.failures,
            successes=row.successes,
            opened_at=row.opened_at,
            trials=row.trials,
            paused_seconds=round(float(row.paused_for or 0.0), 1),
            tried_again_in_seconds=max(round(float(row.closed_for), 1), 0.0) if row.state == "open" else None,
            requests_left=max(row.window_limit - row.window_used, 0) if row.window_limit is not None else None,
        )
        for row in rows
    ]


async def note_standings(db: Database) -> None:
    """Put what all processes share into this one's series: whoever collects asks one of them."""
    for standing in await list_standings(db):
        BREAKER_STATE.labels(standing.label).set(STATE_NUMBERS[standing.state])
        if standing.requests_left is not None:
            REQUESTS_LEFT.labels(standing.label, "minute").set(standing.requests_left)


def _note(label: str, was: str, state: str) -> None:
    BREAKER_STATE.labels(label).set(STATE_NUMBERS[state])
    if was == state:
        return
    BREAKER_TRANSITIONS.labels(label, was, state).inc()
    emit = log.warning if state == "open" else log.info
    emit("breaker.changed", provider=label, was=was, state=state)


def _resting(candidate: Candidate, *, seconds: float) -> Unavailable:
    details = {"status_page": candidate.status_page} if candidate.status_page else {}
    return Unavailable(
        f"{candidate.provider} does not answer and is left alone for now. Try again in {math.ceil(seconds)} seconds.",
        code="breaker_open",
        retry_after_seconds=seconds,
        provider=candidate.provider,
        **details,
    )
