"""The wire format of Anthropic. Translates only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2

from pharos.infra.address_guard import refuse_url
from pharos.infra.guarded_client import GuardedTransport, guarded_client
from pharos.providers.contract import SILENCE_SECONDS, ChatMessage, ChatRequest, Cut, CutReason, Usage
from pharos.providers.refusals import MALFORMED, as_kind, bad_answer, nothing_came

OFFICIAL_URL = "https://api.anthropic.com"
CUTS: dict[str, CutReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
MAX_ANSWER_CHARACTERS = 50_000
"""Ten times what is asked for; each sentence of an answer is checked on the loop that all tenants share."""
FAILURES = (anthropic.AnthropicError, httpx2.HTTPError, *MALFORMED)


class AnthropicChat:
    """`allows_private`: the address may be of this machine or of a private network."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str | None,
        key: str | None,
        allows_private: bool = False,
        silence_seconds: float = SILENCE_SECONDS,
        transport: GuardedTransport | None = None,
    ) -> None:
        self.name = name
        self._key = key
        url = base_url or OFFICIAL_URL
        refuse_url(url)
        client = guarded_client(allow_private=allows_private, timeout_seconds=silence_seconds, transport=transport)
        # Without a key the SDK would look for one in the environment and in files; retries belong to the caller.
        self._client = anthropic.AsyncAnthropic(
            base_url=url, api_key=key or "none", max_retries=0, http_client=client, timeout=client.timeout
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[str | Usage | Cut]:
        """Pieces of the answer, what it took and whether it was cut. Raises what `ChatModel` says."""
        system, messages = _to_wire(request.messages)
        length, prompt_tokens, completion_tokens, is_whole = 0, 0, 0, False
        cut: CutReason | None = None
        try:
            # It takes no temperature: answers come at the vendor's own.
            async with await self._client.messages.create(
                model=self.name,
                max_tokens=request.max_tokens,
                system=system or anthropic.omit,
                messages=messages,
                stream=True,
            ) as reply:
                content_type = reply.response.headers.get("content-type", "")
                async for event in reply:
                    if event.type == "message_start":
                        prompt_tokens = int(event.message.usage.input_tokens)
                    elif event.type == "message_delta":
                        completion_tokens = int(event.usage.output_tokens)
                        cut = CUTS.get(str(event.delta.stop_reason))
                    elif event.type == "message_stop":
                        is_whole = True
                    elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                        length += len(event.delta.text)
                        if length > MAX_ANSWER_CHARACTERS:
                            raise bad_answer("it does not end")
                        yield event.delta.text
        except FAILURES as error:
            raise as_kind(error, key=self._key, has_begun=length > 0) from error
        if not is_whole:
            raise bad_answer("it broke off") if length else nothing_came(content_type)
        if cut is not None:
            yield Cut(cut)
        yield Usage(prompt_tokens, completion_tokens)

    async def list_models(self) -> list[str]:
        """The names the provider offers, in its order. Raises what `stream` raises."""
        try:
            page = await self._client.models.list(limit=100)
            return [str(model.id) for model in page.data]
        except FAILURES as error:
            raise as_kind(error, key=self._key) from error

    async def close(self) -> None:
        await self._client.close()


def _to_wire(messages: tuple[ChatMessage, ...]) -> tuple[str, list[Any]]:
    """The instructions apart and the conversation, which must begin with a question."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    spoken = [message for message in messages if message.role != "system"]
    while spoken and spoken[0].role == "assistant":
        spoken = spoken[1:]
    return system, [{"role": message.role, "content": message.content} for message in spoken]
