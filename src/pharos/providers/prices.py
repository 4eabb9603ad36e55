"""What models cost. A model that is not named here has the price that its provider's administrator states, or none that
is known; those of a machine of one's own cost nothing.

Prices are the vendors' list prices for text in dollars for a million tokens, as `genai-prices` 0.2.3 (November 2026)
collected them from openai.com/api/pricing, anthropic.com/pricing, console.groq.com/docs/models and
api-docs.deepseek.com/quick_start/pricing. Where a price depends on the hour the dearer one is meant; discounts for
cached prompts and surcharges for long ones are left out.
"""

from __future__ import annotations

import re

from pharos.providers.contract import Price, Usage

DATED = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$")
"""How vendors name one edition of a model."""

PRICES: dict[str, tuple[float, float]] = {
    "gpt-6.1-sol": (2, 10),
    "gpt-6.1-terra": (1, 5),
    "gpt-6-sol": (2, 10),
    "gpt-6-luna": (0.1, 0.5),
    "gpt-6-astra": (10, 50),
    "gpt-5.6-sol": (4, 20),
    "gpt-5.6-terra": (2, 12),
    "gpt-5.6-luna": (0.2, 1.2),
    "gpt-5.5": (5, 30),
    "gpt-5.4": (2.5, 15),
    "gpt-5.4-mini": (0.75, 4.5),
    "gpt-5.4-nano": (0.2, 1.25),
    "gpt-5.2": (1.75, 14),
    "gpt-5.1": (1.25, 10),
    "gpt-5": (1.25, 10),
    "gpt-5-mini": (0.25, 2),
    "gpt-5-nano": (0.05, 0.4),
    "gpt-4.1": (2, 8),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4o": (2.5, 10),
    "gpt-4o-mini": (0.15, 0.6),
    "o3": (2, 8),
    "o4-mini": (1.1, 4.4),
    "text-embedding-3-small": (0.02, 0),
    "text-embedding-3-large": (0.13, 0),
    "claude-opus-5-5": (4, 20),
    "claude-opus-5": (5, 25),
    "claude-opus-4-8": (5, 25),
    "claude-opus-4-7": (5, 25),
    "claude-opus-4-6": (5, 25),
    "claude-opus-4-5": (5, 25),
    "claude-opus-4-1": (15, 75),
    "claude-sonnet-5-5": (2, 10),
    "claude-sonnet-5": (2, 10),
    "claude-sonnet-4-6": (3, 15),
    "claude-sonnet-4-5": (3, 15),
    "claude-haiku-5-5": (0.1, 0.5),
    "claude-haiku-4-5": (1, 5),
    "claude-3-5-haiku": (0.8, 4),
    "llama-3.1-8b-instant": (0.05, 0.08),
    "llama-3.3-70b-versatile": (0.59, 0.79),
    "openai/gpt-oss-120b": (0.15, 0.6),
    "openai/gpt-oss-20b": (0.075, 0.3),
    "qwen/qwen3-32b": (0.29, 0.59),
    "deepseek-flash": (0.3, 1.2),
    "deepseek-v4-flash": (0.3, 1.2),
    "deepseek-v4-pro": (1.32, 3.96),
    "deepseek-chat": (0.27, 1.1),
    "deepseek-reasoner": (0.55, 2.19),
}
"""Prompt and answer. A dollar for a million tokens is a micro-dollar for one."""

PRICED_PRESETS = frozenset({"openai", "anthropic", "groq", "deepseek"})
"""Whose list these are: the same model elsewhere has another price."""


def cost_micro(
    usage: Usage, *, model: str, preset: str | None, is_local: bool, stated: Price | None = None
) -> int | None:
    """What a call cost in micro-dollars, rounded up; None where the price is not known.

    `stated`: what an administrator says the provider takes, which comes before any list.

    >>> cost_micro(Usage(1000, 200), model="gpt-4o-mini-2024-07-18", preset="openai", is_local=False)
    270
    """
    if stated is not None:
        in_millionths = usage.prompt_tokens * stated.input_micro + usage.completion_tokens * stated.output_micro
        return -(-in_millionths // 1_000_000)
    if is_local:
        return 0
    if preset not in PRICED_PRESETS:
        return None
    prices = PRICES.get(model) or PRICES.get(DATED.sub("", model))
    if prices is None:
        return None
    exact = usage.prompt_tokens * prices[0] + usage.completion_tokens * prices[1]
    return int(-(-round(exact, 6) // 1))
