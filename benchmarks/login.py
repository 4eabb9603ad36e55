"""How long others wait while twenty people sign in at once.

Somebody lists their projects again and again, alone first, then while twenty sign-ins are always under way; both
rounds run three times in turn, each request and each sign-in over HTTP against a web process of its own. The
bound is on the 99th percentile of the waiting during the sign-ins, compared with the same of the quiet rounds.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from benchmarks.scratch import Scratch, scratch_installation

from pharos.identity.passwords import hash_apart
from pharos.identity.setup import NewPerson, add_person, close_setup
from pharos.identity.sign_in import open_session
from pharos.identity.tenants import ensure_default_tenant
from pharos.runtime import open_runtime

AT_ONCE = 20
PEOPLE = 1000
ASKERS = 30
"""Enough that none of them asks more often than the limit of requests allows."""
ROUNDS = 3
REQUESTS = 200
PAUSE_SECONDS = 0.01
MAX_RATIO = 3.0


def main(eval_dir: Path) -> dict[str, Any]:
    """Needs no evaluation set."""
    # Each sign-in comes from an address of its own, and from a person who has not signed in yet: what is measured is
    # the password, not the limits that answer before it.
    with scratch_installation(PHAROS_TRUSTED_PROXIES="127.0.0.1/32") as scratch:
        return asyncio.run(measure(scratch))


async def measure(scratch: Scratch) -> dict[str, Any]:
    """Milliseconds; `ratio` is busy p99 over quiet p99."""
    password = secrets.token_urlsafe(18)
    emails, askers = await _make_people(scratch, password)
    waiting = iter(emails)
    quiet: list[float] = []
    busy: list[float] = []
    sign_ins: list[float] = []
    limits = httpx.Limits(max_connections=AT_ONCE + 5)
    async with httpx.AsyncClient(base_url=scratch.settings.base_url, timeout=60, limits=limits) as client:
        await _ask(client, askers, [])
        for _ in range(ROUNDS):
            await _ask(client, askers, quiet)
            done = asyncio.Event()
            crowd = [asyncio.create_task(_sign_in(client, waiting, password, done, sign_ins)) for _ in range(AT_ONCE)]
            await asyncio.sleep(0.5)
            await _ask(client, askers, busy)
            done.set()
            await asyncio.gather(*crowd)
    ratio = _p99(busy) / _p99(quiet)
    return {
        "quiet_p50_ms": _ms(statistics.median(quiet)),
        "quiet_p99_ms": _ms(_p99(quiet)),
        "busy_p50_ms": _ms(statistics.median(busy)),
        "busy_p99_ms": _ms(_p99(busy)),
        "sign_ins": len(sign_ins),
        "sign_in_p50_ms": _ms(statistics.median(sign_ins)),
        "ratio": round(ratio, 2),
        "ratio_ok": ratio < MAX_RATIO,
    }


async def _make_people(scratch: Scratch, password: str) -> tuple[list[str], list[str]]:
    """Addresses of those who sign in, and access tokens of those who ask."""
    async with open_runtime(scratch.settings) as runtime:
        hashed, tenant_id = await hash_apart(password), await ensure_default_tenant(runtime)
        emails = [f"person{number}@example.org" for number in range(PEOPLE)]
        async with runtime.db.transaction(tenant_id) as session:
            made = [
                await add_person(session, tenant_id, NewPerson(name="A Person", email=email), hashed)
                for email in emails
            ]
            await close_setup(session)
        askers = [(await open_session(runtime, person)).access_token for person in made[-ASKERS:]]
        return emails[:-ASKERS], askers


async def _ask(client: httpx.AsyncClient, askers: list[str], seconds: list[float]) -> None:
    for number in range(REQUESTS):
        started = time.perf_counter()
        headers = {"Authorization": f"Bearer {askers[number % len(askers)]}"}
        answer = await client.get("/projects", headers=headers)
        seconds.append(time.perf_counter() - started)
        answer.raise_for_status()
        await asyncio.sleep(PAUSE_SECONDS)


async def _sign_in(
    client: httpx.AsyncClient, waiting: Iterator[str], password: str, done: asyncio.Event, seconds: list[float]
) -> None:
    """One person after the other until `done`."""
    while not done.is_set():
        address = f"10.{secrets.randbelow(250)}.{secrets.randbelow(250)}.{secrets.randbelow(250)}"
        body = {"email": next(waiting), "password": password}
        started = time.perf_counter()
        answer = await client.post("/auth/login", json=body, headers={"X-Forwarded-For": address})
        seconds.append(time.perf_counter() - started)
        answer.raise_for_status()


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
