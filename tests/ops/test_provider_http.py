"""Providers over HTTP: who manages which, what is checked before one is saved, and that no key comes out again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from tests.conftest import open_client
from tests.make import MadeTenant, make_person, make_tenant
from tests.provider_server import Provider, provider_server
from tests.providers.worlds import KEY, make_provider, patient
from tests.web.test_admin_pages import browser_of

from pharos.identity.principal import Principal
from pharos.identity.tenants import ensure_default_tenant
from pharos.infra.errors import LimitReached, NotAllowed, Unavailable
from pharos.infra.models import Secret
from pharos.ops.provider_changes import Draft, add_provider, list_managed, make_default, remove_provider
from pharos.ops.provider_report import list_offers, read_installation_spend, uncounted_models
from pharos.ops.spend_watch import watch_spend
from pharos.providers.breaker import list_standings
from pharos.providers.calls import Models
from pharos.providers.contract import Call, ChatMessage, ChatRequest
from pharos.runtime import Runtime

REQUEST = ChatRequest((ChatMessage("user", "Who keeps the light?"),))
GOOD_KEY = "sk-lamp-fedcba9876543210"


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with provider_server() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.__dict__.update(Provider(port=running.port, release=running.release).__dict__)
    return running


@pytest.fixture
async def world(runtime: Runtime) -> AsyncIterator[Runtime]:
    world = patient(runtime)
    yield world
    await world.models.close()


@pytest.fixture
async def admin(world: Runtime, tenant: MadeTenant) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(world, tenant.admin) as client:
        yield client


def entered(provider: Provider, **fields: Any) -> dict[str, Any]:
    return {"name": "lamp", "baseUrl": provider.openai_url, "models": ["lamp-large"], "key": GOOD_KEY} | fields


async def key_of(world: Runtime, tenant: MadeTenant) -> str | None:
    async with world.db.transaction(tenant.id) as session:
        row = (await session.execute(select(Secret.id).where(Secret.kind == "provider_key"))).scalar_one_or_none()
        return await world.vault.open(session, tenant_id=tenant.id, secret_id=row) if row else None


@pytest.mark.contract("LP-05")
@pytest.mark.contract("LP-07")
async def test_a_provider_is_pinged_before_it_is_saved_and_its_key_never_comes_out(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    provider.key = GOOD_KEY
    saved = await admin.post("/providers/admin", json=entered(provider))
    assert saved.status_code == 201, saved.text
    shown = saved.json()["provider"]
    assert (shown["keyPrefix"], shown["keyLength"], shown["isDefault"]) == ("sk-lamp-", 24, True)
    assert saved.json()["ping"]["model"] == "lamp-large"
    listed = await admin.get("/providers")
    (offer,) = listed.json()["providers"]
    assert (offer["name"], offer["isUsable"], offer["isDefault"], offer["state"]) == ("lamp", True, True, "closed")
    managed = await admin.get("/providers/admin")
    models = await admin.get("/providers/models")
    assert models.json()["models"] == [
        {"id": "lamp/lamp-large", "provider": "lamp", "model": "lamp-large", "isDefault": True}
    ]
    for answer in (saved, listed, managed, models):
        assert GOOD_KEY not in answer.text
    assert await key_of(world, tenant) == GOOD_KEY
    tested = await admin.post(f"/providers/{shown['id']}/test")
    assert (tested.status_code, tested.json()["model"]) == (200, "lamp-large")
    async with open_client(world, await make_person(world.db, tenant.id)) as member:
        assert [one["name"] for one in (await member.get("/providers")).json()["providers"]] == ["lamp"]
        assert "keyPrefix" not in (await member.get("/providers")).text
        assert (await member.get("/providers/admin")).status_code == 403


@pytest.mark.contract("LP-05", part="a live ping before commit")
async def test_a_key_that_the_provider_refuses_is_not_saved_and_its_words_are_shown(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    provider.always = "key_refused"
    refused = await admin.post("/providers/admin", json=entered(provider))
    assert (refused.status_code, refused.json()["error"]) == (422, "provider_key_refused")
    assert "401 Incorrect key provided" in refused.json()["message"]
    assert (await admin.get("/providers/admin")).json() == {"providers": []}
    assert await key_of(world, tenant) is None
    forced = await admin.post("/providers/admin", json=entered(provider, ping=False))
    assert (forced.status_code, forced.json()["ping"]) == (201, None)


@pytest.mark.parametrize(
    ("preset", "key"),
    [
        ("openai", 'export OPENAI_API_KEY="sk-0123456789abcdef"'),
        ("openai", "OPENAI_API_KEY=sk-0123456789abcdef"),
        ("openai", "$OPENAI_API_KEY"),
        ("openai", "'sk-0123456789abcdef'"),
        ("openai", "Bearer sk-0123456789abcdef"),
        ("openai", "sk-01234 56789abcdef"),
        ("openai", "sk-01234\n56789abcdef"),
        ("openai", "sk-…"),
        ("openai", "sk-ant-0123456789abcdef"),
        ("openai", "gsk_0123456789abcdef"),
        ("anthropic", "sk-0123456789abcdef"),
        ("groq", "sk-0123456789abcdef"),
        (None, "short"),
    ],
)
@pytest.mark.contract("LP-05", part="shape checks")
async def test_a_key_that_cannot_be_right_is_refused_before_anybody_is_called(
    admin: httpx.AsyncClient, provider: Provider, preset: str | None, key: str
) -> None:
    refused = await admin.post("/providers/admin", json=entered(provider, preset=preset, key=key))
    assert (refused.status_code, refused.json()["error"]) == (422, "bad_key")
    assert key not in refused.text
    assert provider.asked == []


@pytest.mark.contract("LP-06")
async def test_an_empty_key_keeps_the_old_one_and_another_address_drops_it(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    made = (await admin.post("/providers/admin", json=entered(provider))).json()["provider"]
    place = f"/providers/admin/{made['id']}"
    provider.asked.clear()
    renamed = await admin.put(place, json={"name": "lantern", "key": ""})
    assert (renamed.json()["provider"]["name"], renamed.json()["provider"]["keyLength"]) == ("lantern", 24)
    assert renamed.json()["ping"] is None
    assert await key_of(world, tenant) == GOOD_KEY
    repaired = await admin.put(place, json={"key": f" {KEY}\n"})
    assert (repaired.json()["provider"]["keyLength"], await key_of(world, tenant)) == (len(KEY), KEY)
    assert [asked.headers["authorization"] for asked in provider.asked] == [f"Bearer {KEY}"]
    provider.asked.clear()
    moved = await admin.put(place, json={"baseUrl": f"{provider.openai_url}/elsewhere"})
    assert (moved.json()["provider"]["keyPrefix"], moved.json()["provider"]["keyLength"]) == ("", 0)
    assert (await key_of(world, tenant), provider.asked) == (None, [])
    assert (await admin.get("/providers")).json()["providers"][0]["isUsable"] is False


@pytest.mark.contract("LP-08")
async def test_exactly_one_provider_is_the_default(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    first = (await admin.post("/providers/admin", json=entered(provider))).json()["provider"]
    second = (await admin.post("/providers/admin", json=entered(provider, name="spare", isDefault=True))).json()
    assert second["provider"]["isDefault"]

    async def defaults() -> list[str]:
        listed = (await admin.get("/providers/admin")).json()["providers"]
        return [one["name"] for one in listed if one["isDefault"]]

    assert await defaults() == ["spare"]
    await admin.put(f"/providers/admin/{first['id']}", json={"isDefault": True})
    assert await defaults() == ["lamp"]
    taken = await admin.post("/providers/admin", json=entered(provider))
    assert (taken.status_code, taken.json()["error"]) == (409, "provider_exists")
    with pytest.raises(Exception, match="uq_providers_default"):
        async with world.db.transaction(tenant.id) as session:
            await session.execute(text("update providers set is_default = true"))


async def test_a_key_entered_for_an_address_that_is_changed_meanwhile_is_not_saved(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    made = (await admin.post("/providers/admin", json=entered(provider))).json()["provider"]
    place = f"/providers/admin/{made['id']}"
    provider.always = "slow"
    provider.asked.clear()
    repairing = asyncio.create_task(admin.put(place, json={"key": KEY}))
    async with asyncio.timeout(10):
        while not provider.asked:  # noqa: ASYNC110 - its server lives in a thread
            await asyncio.sleep(0.01)
    elsewhere = f"{provider.openai_url}/elsewhere"
    assert (await admin.put(place, json={"baseUrl": elsewhere})).status_code == 200
    provider.release.set()
    repaired = await repairing
    provider.release.clear()
    assert (repaired.status_code, repaired.json()["error"]) == (409, "provider_changed")
    (left,) = (await admin.get("/providers/admin")).json()["providers"]
    assert (left["baseUrl"], left["keyLength"], await key_of(world, tenant)) == (elsewhere, 0, None)


async def test_optional_fields_can_be_emptied_and_what_a_provider_went_through_is_kept_by_small_changes(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    extras = {"requestsPerMinute": 9, "statusPage": "https://status.lamp.example"}
    made = (await admin.post("/providers/admin", json=entered(provider, **extras))).json()["provider"]
    place = f"/providers/admin/{made['id']}"
    assert (made["requestsPerMinute"], made["statusPage"]) == (9, "https://status.lamp.example")
    candidates = await world.models.resolve(tenant.id)
    assert [piece async for piece in world.models.stream(tenant.id, candidates, REQUEST, Call())]

    async def met() -> list[str]:
        return [one.key for one in await list_standings(world.db) if one.key == made["id"]]

    emptied = (await admin.put(place, json={"requestsPerMinute": 0, "statusPage": ""})).json()["provider"]
    assert (emptied["requestsPerMinute"], emptied["requestsLeft"], emptied["statusPage"]) == (None, None, None)
    await admin.put(place, json={"isDefault": True})
    assert await met() == [made["id"]]
    await admin.put(place, json={"key": KEY})
    assert await met() == []


async def test_a_provider_typed_by_its_vendors_address_has_that_vendors_prices_and_limits(
    admin: httpx.AsyncClient,
) -> None:
    groq = {"name": "mine", "baseUrl": "https://api.groq.com/openai/v1/", "key": "gsk_0123456789abcdef", "ping": False}
    made = (await admin.post("/providers/admin", json=groq)).json()["provider"]
    assert (made["preset"], made["requestsPerMinute"]) == ("groq", 28)
    place = f"/providers/admin/{made['id']}"
    await admin.put(place, json={"inputPriceMicro": 0, "outputPriceMicro": 0})
    moved = (await admin.put(place, json={"baseUrl": "https://lamp.example/v1", "ping": False})).json()["provider"]
    assert (moved["preset"], moved["inputPriceMicro"], moved["outputPriceMicro"]) == (None, None, None)
    there = {"baseUrl": "https://api.openai.com/v1", "ping": False, "inputPriceMicro": 1, "outputPriceMicro": 2}
    back = (await admin.put(place, json=there)).json()["provider"]
    assert (back["preset"], back["inputPriceMicro"], back["outputPriceMicro"]) == ("openai", 1, 2)


async def test_what_no_budget_can_count_is_named_beside_the_budget(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant
) -> None:
    await make_provider(world, tenant.id, "https://openrouter.ai/api/v1", name="router", preset="openrouter")
    await make_provider(world, tenant.id, "https://api.openai.com/v1", name="known")
    await make_provider(world, tenant.id, "http://127.0.0.1:9/v1", name="ours", kind="local", preset=None, key=None)
    assert uncounted_models(await list_offers(world, tenant.admin)) == ["router/gpt-4o-mini"]
    async with browser_of(world, tenant.admin) as browser:
        page = await browser.get("/admin/models")
    assert "No price is known of router/gpt-4o-mini:" in page.text


@pytest.mark.contract("LP-24", part="a stated price is counted and stops")
async def test_what_an_administrator_says_a_provider_takes_is_counted_and_stops_until_it_is_taken_back(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    made = (await admin.post("/providers/admin", json=entered(provider))).json()["provider"]
    place = f"/providers/admin/{made['id']}"
    tested = await admin.post(f"/providers/{made['id']}/test")
    assert tested.json()["costMicro"] is None
    async with browser_of(world, tenant.admin) as browser:
        assert "Price unknown, not counted" in (await browser.get("/admin/models")).text
    half = await admin.put(place, json={"inputPriceMicro": 1})
    assert (half.status_code, half.json()["error"]) == (422, "bad_price")
    await admin.put(place, json={"inputPriceMicro": 1_000_000_000, "outputPriceMicro": 2_500_000})
    async with browser_of(world, tenant.admin) as browser:
        page = (await browser.get("/admin/models")).text
    assert "$1000 a million tokens of question, $2.5 of answer" in page
    assert "Price unknown" not in page
    cost = (await admin.post(f"/providers/{made['id']}/test")).json()["costMicro"]
    assert (await admin.get("/providers/spend")).json()["monthMicro"] == cost > 1000
    await admin.put("/providers/settings", json={"budgetStopMicro": cost})
    with pytest.raises(LimitReached):
        await world.models.resolve(tenant.id)
    await admin.put(place, json={"inputPriceMicro": 0, "outputPriceMicro": 0})
    assert await world.models.resolve(tenant.id), "what costs nothing is not stopped"
    provider.always = "failed"
    await admin.post(f"/providers/{made['id']}/test")
    (line,) = (await admin.get("/providers/spend")).json()["lines"]
    async with browser_of(world, tenant.admin) as browser:
        assert f"{line['calls'] - 1} answered, 1 failed" in (await browser.get("/admin/models")).text
    gone = (await admin.put(place, json={"inputPriceMicro": -1, "outputPriceMicro": -1})).json()["provider"]
    assert (gone["inputPriceMicro"], gone["outputPriceMicro"]) == (None, None)


@pytest.mark.contract("LP-11", part="switched off a provider is not asked and its key is kept")
async def test_a_provider_that_is_switched_off_keeps_its_key_and_is_asked_no_more(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    made = (await admin.post("/providers/admin", json=entered(provider))).json()["provider"]
    place = f"/providers/admin/{made['id']}"
    off = await admin.put(place, json={"isEnabled": False})
    assert (off.json()["provider"]["isEnabled"], await key_of(world, tenant)) == (False, GOOD_KEY)
    with pytest.raises(Unavailable) as refused:
        await world.models.resolve(tenant.id)
    assert refused.value.code == "llm_disabled"
    assert (await admin.get("/providers")).json()["providers"][0]["isUsable"] is False
    await admin.put(place, json={"isEnabled": True})
    assert (await world.models.resolve(tenant.id))[0].key == GOOD_KEY


@pytest.mark.contract("LP-11", part="a removed key, from the next request on")
async def test_a_removed_provider_is_asked_no_more_and_its_key_is_gone(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    made = (await admin.post("/providers/admin", json=entered(provider))).json()["provider"]
    assert await world.models.resolve(tenant.id)
    assert (await admin.delete(f"/providers/admin/{made['id']}")).status_code == 204
    assert (await key_of(world, tenant), (await admin.get("/providers")).json()) == (None, {"providers": []})


async def test_an_address_of_a_private_network_is_refused_where_the_operator_does_not_allow_it(
    runtime: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    async with open_client(runtime, tenant.admin) as client:
        for address in (provider.openai_url, "http://169.254.169.254/v1", "file:///etc/passwd"):
            refused = await client.post("/providers/admin", json=entered(provider, baseUrl=address))
            assert (refused.status_code, refused.json()["error"]) == (422, "provider_address_refused")
    assert provider.asked == []


@pytest.mark.contract("AC-01", part="an engineer keeps the installation's providers, an administrator the tenant's")
@pytest.mark.contract("C-35")
async def test_engineers_manage_what_is_shared_and_tenants_their_own_and_neither_sees_the_others_keys(
    fresh_runtime: Runtime, provider: Provider
) -> None:
    world = patient(fresh_runtime)
    home = await ensure_default_tenant(world)
    people = {role: await make_person(world.db, home, platform_role=role) for role in ("engineer", "admin")}

    guest = await make_tenant(world.db)
    async with AsyncExitStack() as stack:

        async def client_of(who: Principal) -> httpx.AsyncClient:
            return await stack.enter_async_context(open_client(world, who))

        engineer, admin = await client_of(people["engineer"]), await client_of(people["admin"])
        tenant = await client_of(guest.admin)
        shared = entered(provider, name="house", isShared=True)
        assert (await admin.post("/providers/admin", json=shared)).status_code == 403
        assert (await tenant.post("/providers/admin", json=shared)).status_code == 403
        house = await engineer.post("/providers/admin", json=shared)
        assert house.status_code == 201, house.text
        assert (await engineer.post("/providers/admin", json=entered(provider))).status_code == 403
        assert (await admin.post("/providers/admin", json=entered(provider, name="ours"))).status_code == 201

        async def names(client: httpx.AsyncClient) -> list[str]:
            return [one["name"] for one in (await client.get("/providers/admin")).json()["providers"]]

        assert (await names(engineer), await names(admin), await names(tenant)) == (["house"], ["ours"], [])
        hidden = await admin.put(f"/providers/admin/{house.json()['provider']['id']}", json={"name": "mine"})
        assert hidden.status_code == 404

        async def default_of_guest() -> str:
            (first, *_) = await world.models.resolve(guest.id)
            return first.provider

        assert await default_of_guest() == "house"
        call = Call()
        candidates = await world.models.resolve(guest.id)
        assert [piece async for piece in world.models.stream(guest.id, candidates, REQUEST, call)]
        assert (await tenant.get("/providers/spend")).json()["calls"] == 1  # who asks pays
        assert (await tenant.post("/providers/admin", json=entered(provider, name="theirs"))).status_code == 201
        assert await default_of_guest() == "theirs"
        forbidden = await tenant.put("/providers/settings", json={"useSharedProviders": False})
        assert forbidden.status_code == 200, forbidden.text
        assert [one["name"] for one in (await tenant.get("/providers")).json()["providers"]] == ["theirs"]
        off = await tenant.put("/providers/settings", json={"llmEnabled": False})
        assert (off.json()["llmEnabled"], off.json()["useSharedProviders"]) == (False, False)
        assert (await tenant.get("/providers")).json() == {"providers": []}
    await world.models.close()


@pytest.mark.contract("C-35", part="two scopes, two defaults, and who owns a key sees what it costs")
async def test_the_installations_default_and_spend_are_its_engineers(
    fresh_runtime: Runtime, provider: Provider
) -> None:
    world = patient(fresh_runtime)
    home, guest = await ensure_default_tenant(world), await make_tenant(world.db)
    engineer, admin = [await make_person(world.db, home, platform_role=role) for role in ("engineer", "admin")]
    house = Draft(base_url=provider.openai_url, models=("lamp-large",), key=GOOD_KEY, is_shared=True)
    first = await add_provider(world, engineer, replace(house, name="house"))
    await add_provider(world, admin, replace(house, name="ours", is_shared=False))

    async def defaults() -> list[str]:
        rows = [row for who in (engineer, admin) for row in await list_managed(world, who)]
        return [row.name for row in rows if row.is_default]

    assert await defaults() == ["house", "ours"]  # an administrator's does not unset the installation's
    await add_provider(world, engineer, replace(house, name="second", is_default=True))
    assert await defaults() == ["second", "ours"]
    assert [(await world.models.resolve(one))[0].provider for one in (home, guest.id)] == ["ours", "second"]
    await make_default(world, engineer, first.provider.id)
    assert await defaults() == ["house", "ours"]

    candidates = await world.models.resolve(guest.id)
    assert [piece async for piece in world.models.stream(guest.id, candidates, REQUEST, Call())]
    spend = await read_installation_spend(world, engineer)
    taken = sorted((one.provider, one.calls, one.unpriced) for one in spend.by_provider)
    assert taken == [("house", 2, 2), ("second", 1, 1)]  # each was pinged by its engineer
    assert sorted(line.calls for _, line in spend.by_tenant if line.provider == "house") == [1, 1]
    for other in (admin, guest.admin):
        with pytest.raises(NotAllowed):
            await read_installation_spend(world, other)
    await world.models.close()


async def test_what_became_of_providers_is_audited_without_keys(
    world: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    draft = Draft(name="lamp", base_url=provider.openai_url, models=("lamp-large",), key=GOOD_KEY)
    saved = await add_provider(world, tenant.admin, draft)
    await remove_provider(world, tenant.admin, saved.provider.id)
    async with world.db.transaction(tenant.id) as session:
        rows = (await session.execute(text("select action, subject, detail::text as detail from audit_log"))).all()
        events = (await session.execute(text("select event_type from security_events"))).scalars().all()
    assert {row.action for row in rows} >= {"provider.added", "provider.removed"}
    assert GOOD_KEY not in str(rows)
    assert list(events) == ["secret_saved"]


@pytest.mark.contract("AL-11")
async def test_a_day_that_costs_three_times_the_dearest_of_the_week_is_noticed(
    admin: httpx.AsyncClient, world: Runtime, tenant: MadeTenant
) -> None:
    row = text(
        "insert into llm_calls (tenant_id, id, at, provider, model, purpose, cost_micro, status) "
        "values (:tenant, gen_random_uuid(), now() - make_interval(days => :days), 'lamp', 'm', 'answer', :micro, 'ok')"
    )
    async with world.db.transaction(tenant.id) as session:
        for days, micro in ((9, 90_000_000), (3, 1_000_000), (2, 700_000), (0, 2_900_000)):
            await session.execute(row, {"tenant": tenant.id, "days": days, "micro": micro})
    spend = (await admin.get("/providers/spend")).json()
    assert (spend["todayMicro"], spend["dearestDayMicro"], spend["isAnomalous"]) == (2_900_000, 1_000_000, False)
    async with world.db.transaction(tenant.id) as session:
        await session.execute(row, {"tenant": tenant.id, "days": 0, "micro": 200_000})
    spend = (await admin.get("/providers/spend")).json()
    assert (spend["todayMicro"], spend["isAnomalous"]) == (3_100_000, True)
    for _ in range(2):
        async with world.db.transaction(tenant.id) as session:
            await watch_spend(session, tenant.id)
    async with world.db.transaction(tenant.id) as session:
        told = (await session.execute(text("select event_type, detail from security_events"))).all()
    assert told == [("spend_anomalous", {"today_micro": 3_100_000, "dearest_day_micro": 1_000_000})]


async def test_the_environments_provider_is_shared_read_only_and_comes_last(
    runtime: Runtime, tenant: MadeTenant, provider: Provider
) -> None:
    settings = runtime.settings.model_copy(update={"llm_url": provider.openai_url, "llm_model": "lamp-large"})
    models = Models(settings, runtime.db, runtime.vault)
    (only,) = await models.resolve(tenant.id)
    assert (only.provider, only.is_shared, only.allows_private, only.key) == ("environment", True, True, None)
    await make_provider(runtime, tenant.id, provider.openai_url, name="own", is_default=True)
    assert [one.provider for one in await models.resolve(tenant.id)] == ["own", "environment"]
    vendor = settings.model_copy(update={"llm_url": None, "llm_key": SecretStr(KEY), "llm_model": "gpt-4o-mini"})
    (*_, known) = await Models(vendor, runtime.db, runtime.vault).resolve(tenant.id)
    assert (known.provider, known.kind, known.preset) == ("environment", "openai", "openai")
    await models.close()
