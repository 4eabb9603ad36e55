"""The wire format of OpenAI, spoken by many servers: Ollama, vLLM, llama.cpp, Groq, OpenRouter. Translates only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai

from pharos.infra.errors import LimitReached, NotAllowed, PharosError, Unavailable
from pharos.providers.contract import ChatRequest

FIRST_BYTE_TIMEOUT_SECONDS = 60.0


class OpenAIChat:
    def __init__(self, *, name: str, base_url: str | None, key: str | None) -> None:
        self.name = name
        # A local server wants no key, the SDK insists on one; retries belong to the caller.
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key or "none", max_retries=0, timeout=FIRST_BYTE_TIMEOUT_SECONDS
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[str]:
        """Pieces of the answer. Raises `NotAllowed` for a bad key, `LimitReached`, or `Unavailable`."""
        messages: list[Any] = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            reply = await self._client.chat.completions.create(
                model=self.name,
                messages=messages,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                stream=True,
            )
            async for chunk in reply:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    yield piece
        except openai.OpenAIError as error:
            raise _as_kind(error) from error

    async def close(self) -> None:
        await self._client.close()


def _as_kind(error: openai.OpenAIError) -> PharosError:
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return NotAllowed("The model's key was refused. Check PHAROS_LLM_KEY.", code="provider_key_refused")
    if isinstance(error, openai.RateLimitError):
        return LimitReached("The model's own limit is reached. Wait a minute.", code="provider_rate_limited")
    if isinstance(error, openai.NotFoundError):
        return Unavailable("The server knows no such model. Check PHAROS_LLM_MODEL.", code="no_such_model")
    if isinstance(error, openai.APIConnectionError):
        return Unavailable("The model's server does not answer. Check PHAROS_LLM_URL.", code="provider_unreachable")
    return Unavailable("Failed to generate response.", code="provider_failed")
