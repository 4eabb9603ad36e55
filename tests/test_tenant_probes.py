"""No route tells one tenant anything of another, not even that something exists."""

from __future__ import annotations

import asyncio
import random
import secrets
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from tests.conftest import make_runtime, make_settings, open_client
from tests.make import MadeTenant, make_person, make_project, make_tenant, make_token
from tests.postgres import Server
from tests.probes import (
    CANARY,
    Findings,
    Ids,
    Probe,
    delete_everything,
    fingerprint,
    list_probes,
    make_everything,
    run_probes,
)

from pharos.access.models import Project
from pharos.app import create_app
from pharos.identity.principal import Principal
from pharos.infra.db import create_database
from pharos.infra.ids import new_id
from pharos.infra.settings import Settings
from pharos.runtime import Runtime
from pharos.tables import metadata

MIN_PROBES = 5000

Choose = Callable[[list[Probe]], list[Probe]]


described: dict[str, Any] = {}


def openapi_of(runtime: Runtime) -> dict[str, Any]:
    """The same for every app of this process, and a second's work to write."""
    if not described:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            described.update(create_app(runtime.settings, runtime=runtime).openapi())
    return described


async def probe_as(
    runtime: Runtime, tenant: MadeTenant, principal: Principal, foreign: Ids, *, chosen: Choose = list
) -> Findings:
    """Everything of another tenant asked for by one person, who has everything of their own to ask with."""
    own = await make_everything(runtime.db, tenant, mark="mine")
    deleted = await make_everything(runtime.db, tenant, mark="gone")
    await delete_everything(runtime, tenant, deleted)
    openapi = openapi_of(runtime)
    probes = chosen(list_probes(openapi, sorted(foreign)))
    async with open_client(runtime, principal) as client:
        return await run_probes(runtime, client, openapi, own=own, foreign=foreign, deleted=deleted, probes=probes)


@pytest.mark.prove
async def test_another_tenants_a_deleted_and_an_invented_id_are_answered_alike_by_every_route(
    runtime: Runtime, tenant: MadeTenant, capsys: pytest.CaptureFixture[str]
) -> None:
    other = await make_tenant(runtime.db)
    foreign = await make_everything(runtime.db, other, mark=CANARY)
    before = await fingerprint(runtime.db, other.id)
    engineer = await make_person(runtime.db, tenant.id, platform_role="engineer")
    member = await make_person(runtime.db, tenant.id)
    found = [await probe_as(runtime, tenant, who, foreign) for who in (tenant.admin, engineer, member)]
    probes = sum(each.probes for each in found)
    with capsys.disabled():
        print(f"\n{probes} probes across tenants")  # noqa: T201 - the count is part of the proof
    assert [finding for each in found for finding in each.all] == []
    assert await fingerprint(runtime.db, other.id) == before
    assert probes >= MIN_PROBES


@pytest.mark.slow
@pytest.mark.contract("AC-09")
async def test_every_place_for_an_id_answers_a_foreign_one_like_an_invented_one(
    runtime: Runtime, tenant: MadeTenant
) -> None:
    seed = secrets.randbits(32)
    dice = random.Random(seed)

    def one_kind_a_place(probes: list[Probe]) -> list[Probe]:
        by_place = defaultdict(list)
        for probe in probes:
            by_place[probe.method, probe.path, probe.place].append(probe)
        named = [[p for p in each if p.kind in p.place.replace("_", " ")] for each in by_place.values()]
        return [dice.choice(right or any_) for right, any_ in zip(named, by_place.values(), strict=True)]

    other = await make_tenant(runtime.db)
    foreign = await make_everything(runtime.db, other, mark=CANARY)
    before = await fingerprint(runtime.db, other.id)
    found = await probe_as(runtime, tenant, tenant.admin, foreign, chosen=one_kind_a_place)
    assert found.all == [], f"seed {seed}"
    assert await fingerprint(runtime.db, other.id) == before
    assert found.probes > 100


async def test_the_probes_find_the_leaks_of_a_database_without_a_fence(
    database_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = f"test_{secrets.token_hex(6)}"
    urls = database_server.clone(name)
    with psycopg.connect(urls.migrator, autocommit=True) as connection:
        connection.execute(f"set role {urls.owner_role}")
        for table in (table.name for table in metadata.sorted_tables if "tenant_id" in table.columns):
            connection.execute(f"alter table {table} disable row level security")
    settings = make_settings(urls, tmp_path_factory.mktemp("unfenced"))
    assert settings.database_url is not None
    database = create_database(settings.database_url, pool_size=5)
    runtime = make_runtime(settings, database)
    tenant, other = await make_tenant(database), await make_tenant(database)
    foreign = await make_everything(database, other, mark=CANARY)
    own = await make_everything(database, tenant, mark="mine")
    openapi = openapi_of(runtime)
    probes = [
        probe
        for probe in list_probes(openapi, ["document", "project", "group", "user"])
        if probe.method == "get" and probe.kind in probe.place
    ]
    async with open_client(runtime, tenant.admin) as client:
        found = await run_probes(
            runtime, client, openapi, own=own, foreign=foreign, deleted=dict.fromkeys(foreign, new_id()), probes=probes
        )
    await database.dispose()
    database_server.drop(name)
    assert found.leaks
    assert found.differences


@pytest.mark.contract("AC-09")
async def test_no_list_holds_a_row_of_another_tenant(runtime: Runtime, tenant: MadeTenant) -> None:
    other = await make_tenant(runtime.db)
    foreign = await make_everything(runtime.db, other, mark=CANARY)
    openapi = openapi_of(runtime)
    asked = 0
    async with open_client(runtime, tenant.admin) as client:
        for path, methods in openapi["paths"].items():
            if "get" in methods and "{" not in path:
                answer = await client.get(path)
                asked += answer.status_code == 200
                assert CANARY not in answer.text
                assert not any(str(identifier) in answer.text for identifier in foreign.values()), path
    assert asked > 10


@dataclass
class Crowd:
    """People of twenty tenants who all ask one app over four connections; `foreign` counts rows they must not see."""

    client: httpx.AsyncClient
    runtime: Runtime
    people: list[tuple[Principal, dict[str, str], str]]
    dice: random.Random
    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    foreign: int = 0

    async def ask(self) -> None:
        """One request of somebody: answered, cut off after a moment, or one whose transaction fails half-way."""
        principal, headers, project = self.dice.choice(self.people)
        turn = self.dice.random()
        if turn < 0.1:
            try:
                async with self.runtime.db.transaction(principal.tenant_id) as session:
                    names = (await session.execute(select(Project.name))).scalars().all()
                    self.foreign += sum(name != project for name in names)
                    await session.execute(text("select 1 / 0"))
            except DBAPIError:
                self.failed += 1
            return
        request = self.client.get("/projects", headers=headers)
        if turn < 0.25:
            try:
                await asyncio.wait_for(request, timeout=self.dice.random() * 0.01)
            except TimeoutError:
                self.cancelled += 1
            return
        answer = await request
        assert answer.status_code == 200, answer.text
        self.foreign += sum(each["name"] != project for each in answer.json()["projects"])
        self.answered += 1


async def make_crowd(
    runtime: Runtime, client: httpx.AsyncClient, dice: random.Random, *, people_a_tenant: int
) -> Crowd:
    people = []
    for _ in range(20):
        tenant = await make_tenant(runtime.db)
        name = f"Project of {tenant.slug}"
        await make_project(runtime.db, tenant.admin, name=name)
        for _ in range(people_a_tenant):
            person = await make_person(runtime.db, tenant.id)
            people.append((person, {"Authorization": f"Bearer {await make_token(runtime, person)}"}, name))
    return Crowd(client, runtime, people, dice)


@pytest.mark.slow
@pytest.mark.contract("AC-09")
async def test_interleaved_requests_of_twenty_tenants_over_four_connections_mix_nothing(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await _mix_nothing(settings, capsys, requests=200, people_a_tenant=1)


@pytest.mark.prove
async def test_ten_thousand_interleaved_requests_mix_nothing(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await _mix_nothing(settings, capsys, requests=10_000, people_a_tenant=10)


async def _mix_nothing(
    settings: Settings, capsys: pytest.CaptureFixture[str], *, requests: int, people_a_tenant: int
) -> None:
    seed = secrets.randbits(32)
    assert settings.database_url is not None
    database = create_database(settings.database_url, pool_size=2)  # and two of overflow
    runtime = make_runtime(settings, database)
    async with open_client(runtime) as client:
        crowd = await make_crowd(runtime, client, random.Random(seed), people_a_tenant=people_a_tenant)
        turns = iter(range(requests))

        async def keep_asking() -> None:
            for _ in turns:
                await crowd.ask()

        await asyncio.gather(*(keep_asking() for _ in range(16)))
    await database.dispose()
    with capsys.disabled():
        print(  # noqa: T201 - the counts are part of the proof
            f"\nseed {seed}: {crowd.answered} answered, {crowd.cancelled} cut off, {crowd.failed} failed half-way"
        )
    assert crowd.foreign == 0
    assert min(crowd.answered, crowd.cancelled, crowd.failed) > requests / 50
