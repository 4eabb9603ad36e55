"""What is said of providers without asking them: by `pharos doctor`, and of what they cost."""

from __future__ import annotations

import pytest
from tests.make import make_tenant
from tests.provider_server import provider_server
from tests.providers.worlds import make_provider, patient
from tests.web.test_admin_pages import browser_of

from pharos.infra.errors import PharosError
from pharos.ops.provider_check import check_providers
from pharos.providers.contract import Call, ChatMessage, ChatRequest
from pharos.runtime import Runtime

REQUEST = ChatRequest((ChatMessage("user", "Who keeps the light?"),))


async def test_a_refused_key_is_named_with_the_next_command_until_the_provider_answers_again(
    fresh_runtime: Runtime,
) -> None:
    world, tenant = patient(fresh_runtime), await make_tenant(fresh_runtime.db)
    with provider_server() as provider:
        await make_provider(world, tenant.id, provider.openai_url, name="lamps", is_default=True)
        await make_provider(world, tenant.id, provider.openai_url, name="off", is_enabled=False)
        assert (await check_providers(world)).troubles == []

        async def ask() -> None:
            candidates = await world.models.resolve(tenant.id)
            assert [piece async for piece in world.models.stream(tenant.id, candidates, REQUEST, Call())]

        provider.faults.append("key_refused")
        with pytest.raises(PharosError):
            await ask()
        asked = len(provider.asked)
        found = await check_providers(world)
        (words,) = found.troubles
        assert found.number == 1
        assert "lamps ended its last call with provider_key_refused" in words
        assert words.endswith(f"pharos provider test lamps --tenant {tenant.slug}")
        assert len(provider.asked) == asked, "a look at it costs nothing"
        await ask()
        assert (await check_providers(world)).troubles == []
    await world.models.close()


async def test_what_nobody_knows_the_price_of_did_not_cost_nothing(runtime: Runtime) -> None:
    world, tenant = patient(runtime), await make_tenant(runtime.db)
    with provider_server() as provider:
        await make_provider(world, tenant.id, provider.openai_url, name="lamps", models=["lamp"], is_default=True)
        candidates = await world.models.resolve(tenant.id)
        assert [piece async for piece in world.models.stream(tenant.id, candidates, REQUEST, Call())]
    async with browser_of(world, tenant.admin) as browser:
        shown = (await browser.get("/admin/models")).text
    assert '<span class="pill">unknown</span>' in shown
    assert "$0.00" not in shown.partition("This month")[2].partition("Today")[0]
    await world.models.close()
