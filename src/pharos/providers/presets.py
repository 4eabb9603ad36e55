"""Providers people know: what has not to be typed for them."""

from __future__ import annotations

from dataclasses import dataclass

from pharos.providers.contract import Kind


@dataclass(frozen=True)
class Preset:
    """What is known of a provider.

    `key_prefixes` are how its keys begin; empty: nothing is known of them. `needs_key` is false for servers of one's
    own. `models` are a start, its default first; the provider's own list is the truth.
    """

    name: str
    title: str
    kind: Kind
    base_url: str
    models: tuple[str, ...] = ()
    key_prefixes: tuple[str, ...] = ()
    needs_key: bool = True
    requests_per_minute: int | None = None
    status_page: str | None = None
    keys_page: str | None = None


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "openai",
            "OpenAI",
            "openai",
            "https://api.openai.com/v1",
            models=("gpt-6.1-terra", "gpt-6.1-sol", "gpt-6-luna"),
            key_prefixes=("sk-",),
            status_page="https://status.openai.com",
            keys_page="https://platform.openai.com/api-keys",
        ),
        Preset(
            "anthropic",
            "Anthropic",
            "anthropic",
            "https://api.anthropic.com",
            models=("claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"),
            key_prefixes=("sk-ant-",),
            status_page="https://status.anthropic.com",
            keys_page="https://console.anthropic.com/settings/keys",
        ),
        Preset(
            "groq",
            "Groq",
            "openai",
            "https://api.groq.com/openai/v1",
            models=("llama-3.3-70b-versatile", "llama-3.1-8b-instant", "openai/gpt-oss-120b"),
            key_prefixes=("gsk_",),
            # The free tier takes 30 (C-39); two are left for whoever else uses the key.
            requests_per_minute=28,
            status_page="https://groqstatus.com",
            keys_page="https://console.groq.com/keys",
        ),
        Preset(
            "deepseek",
            "DeepSeek",
            "openai",
            "https://api.deepseek.com/v1",
            models=("deepseek-v4-flash", "deepseek-v4-pro"),
            key_prefixes=("sk-",),
            status_page="https://status.deepseek.com",
            keys_page="https://platform.deepseek.com/api_keys",
        ),
        Preset(
            "openrouter",
            "OpenRouter",
            "openai",
            "https://openrouter.ai/api/v1",
            models=("openrouter/auto",),
            key_prefixes=("sk-or-",),
            status_page="https://status.openrouter.ai",
            keys_page="https://openrouter.ai/settings/keys",
        ),
        Preset("ollama", "Ollama", "local", "http://127.0.0.1:11434/v1", needs_key=False),
        Preset("vllm", "vLLM", "local", "http://127.0.0.1:8000/v1", needs_key=False),
        Preset("llama.cpp", "llama.cpp", "local", "http://127.0.0.1:8080/v1", needs_key=False),
    )
}


def preset_of(base_url: str) -> Preset | None:
    """The vendor who is found at this address; None for any other, servers of one's own among them."""
    return next((one for one in PRESETS.values() if one.needs_key and one.base_url == base_url.rstrip("/")), None)
