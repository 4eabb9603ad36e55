"""What is known of providers beforehand: prices, limits, and how their keys look."""

from __future__ import annotations

import pytest

from pharos.providers.contract import Price, Usage
from pharos.providers.presets import PRESETS, Preset
from pharos.providers.prices import PRICED_PRESETS, PRICES, cost_micro
from pharos.providers.shapes import check_key

MILLION = Usage(1_000_000, 1_000_000)


@pytest.mark.contract("C-39")
def test_only_the_vendor_with_the_free_tier_of_28_a_minute_has_that_budget() -> None:
    assert {name: preset.requests_per_minute for name, preset in PRESETS.items() if preset.requests_per_minute} == {
        "groq": 28
    }


@pytest.mark.contract("LP-24", part="prices in a table")
def test_a_price_is_in_micro_dollars_rounded_up_and_unknown_where_nobody_knows_it() -> None:
    def cost(model: str, preset: str | None, usage: Usage = MILLION) -> int | None:
        return cost_micro(usage, model=model, preset=preset, is_local=False)

    assert cost("gpt-4o-mini", "openai") == 750_000
    assert cost("gpt-4o-mini-2024-07-18", "openai") == 750_000
    assert cost("claude-sonnet-4-5-20250929", "anthropic") == 18_000_000
    assert cost("gpt-4o-mini", "openai", Usage(1, 0)) == 1
    assert cost("gpt-4o-mini", "openai", Usage(0, 0)) == 0
    assert cost("gpt-4o-mini", None) is None
    assert cost("gpt-4o-mini", "openrouter") is None
    assert cost("a model of tomorrow", "openai") is None
    assert cost_micro(MILLION, model="anything", preset=None, is_local=True) == 0


@pytest.mark.contract("LP-24", part="a stated price comes before the list")
def test_a_stated_price_counts_whatever_the_model_and_nothing_is_lost_in_rounding() -> None:
    def cost(usage: Usage, stated: Price, *, is_local: bool = False) -> int | None:
        return cost_micro(usage, model="gpt-4o-mini", preset="openai", is_local=is_local, stated=stated)

    assert cost(MILLION, Price(500_000, 1_500_000)) == 2_000_000
    assert cost(MILLION, Price(500_000, 1_500_000), is_local=True) == 2_000_000
    assert cost(Usage(3, 1), Price(1, 1)) == 1
    assert cost(MILLION, Price(0, 0)) == 0


def test_every_preset_with_a_price_list_starts_with_models_whose_price_is_known() -> None:
    for name in PRICED_PRESETS:
        assert [model for model in PRESETS[name].models if model not in PRICES] == []


@pytest.mark.contract("LP-14", part="the kinds that run on one's own machine need no key")
def test_presets_of_local_servers_need_no_key_and_all_others_name_a_status_page() -> None:
    for preset in PRESETS.values():
        assert preset.needs_key == (preset.kind != "local")
        assert (preset.status_page is not None) == preset.needs_key


@pytest.mark.parametrize("preset", [preset for preset in PRESETS.values() if preset.key_prefixes])
def test_a_key_of_each_vendor_passes_its_own_check(preset: Preset) -> None:
    for prefix in preset.key_prefixes:
        key = f"{prefix}0123456789abcdef"
        assert check_key(f" {key}\n", preset=preset.name) == key
