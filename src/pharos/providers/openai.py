"""The wire format of OpenAI, spoken by many servers: Ollama, vLLM, llama.cpp, Groq, OpenRouter. Translates only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from pharos.infra.address_guard import GuardedTransport, guarded_client, refuse_url
from pharos.providers.contract import ChatRequest, ModelState, Usage
from pharos.providers.refusals import MALFORMED, as_kind, bad_answer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OFFICIAL_URL = "https://api.openai.com/v1"
SILENCE_SECONDS = 60.0
"""How long a provider may say nothing, before its first word or between two."""
MAX_ANSWER_CHARACTERS = 1_000_000
TEXTS_A_REQUEST = 128
FAILURES = (openai.OpenAIError, httpx2.HTTPError, *MALFORMED)


class OpenAIChat:
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
        self._is_official = base_url is None or base_url.rstrip("/") == OFFICIAL_URL
        self._client = _open_client(
            base_url, key, allows_private=allows_private, silence_seconds=silence_seconds, transport=transport
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[str | Usage]:
        """Pieces of the answer and what it took. Raises what `ChatModel` says."""
        body = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._bounds(request),
        }
        length, usage, is_whole = 0, None, False
        try:
            # Not `chat.completions.create`: making objects of each word takes it two thirds of a word's whole way.
            async with await self._client.post(
                "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            ) as reply:
                async for chunk in reply:
                    usage = _usage(chunk) or usage
                    for choice in _choices(chunk):
                        is_whole = is_whole or choice.get("finish_reason") is not None
                        piece = str((choice.get("delta") or {}).get("content") or "")
                        length += len(piece)
                        if length > MAX_ANSWER_CHARACTERS:
                            raise bad_answer("it does not end")
                        if piece:
                            yield piece
        except FAILURES as error:
            raise as_kind(error, key=self._key, has_begun=length > 0) from error
        if not is_whole:
            raise bad_answer("it broke off" if length else "it holds nothing")
        if usage is not None:
            yield usage

    async def list_models(self) -> list[str]:
        """The names the provider offers, in its order. Raises what `stream` raises."""
        try:
            page = await self._client.models.list()
            return [str(model.id) for model in page.data]
        except FAILURES as error:
            raise as_kind(error, key=self._key) from error

    async def close(self) -> None:
        await self._client.close()

    def _bounds(self, request: ChatRequest) -> dict[str, Any]:
        """The vendor has renamed the limit, and refuses a temperature with models that think first; others know both.

        A few local servers take neither name but ignore what they do not know.
        """
        if not self._is_official:
            return {"max_tokens": request.max_tokens, "temperature": request.temperature}
        thinks = self.name.startswith(("o1", "o3", "o4", "gpt-5"))
        return {"max_completion_tokens": request.max_tokens} | ({} if thinks else {"temperature": request.temperature})


class OpenAIEmbedding:
    """Vectors of an OpenAI-compatible server. What has another length than `dimension` is refused as a whole."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str | None,
        key: str | None,
        dimension: int,
        max_tokens: int = 8191,
        allows_private: bool = False,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = max_tokens
        self._key = key
        self._client = _open_client(base_url, key, allows_private=allows_private, silence_seconds=silence_seconds)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `EmbeddingModel` says; all rows or none."""
        import numpy as np

        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_A_REQUEST):
            part = list(texts[start : start + TEXTS_A_REQUEST])
            rows[start : start + len(part)] = await self._embed(part)
        return rows

    async def state(self) -> ModelState:
        """Whether the server answers now; nothing is embedded for that."""
        try:
            await self._client.models.list()
        except FAILURES:
            return "down"
        return "ready"

    async def close(self) -> None:
        await self._client.close()

    async def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        import numpy as np

        try:
            reply = await self._client.embeddings.create(model=self.name, input=texts, encoding_format="float")
            ordered = sorted(reply.data, key=lambda one: one.index)
            rows: NDArray[np.float32] = np.array([one.embedding for one in ordered], dtype=np.float32)
        except FAILURES as error:
            raise as_kind(error, key=self._key) from error
        if rows.shape != (len(texts), self.dimension):
            raise bad_answer(f"vectors of shape {rows.shape} came where {(len(texts), self.dimension)} were due")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(rows).all() or not (lengths > 0).all():
            raise bad_answer("a vector holds something that is no number, or nothing")
        rows /= lengths
        return rows


def _open_client(
    base_url: str | None,
    key: str | None,
    *,
    allows_private: bool,
    silence_seconds: float,
    transport: GuardedTransport | None = None,
) -> openai.AsyncOpenAI:
    """Raises `AddressRefused`. A local server wants no key, the SDK insists on one; retries belong to the caller."""
    url = base_url or OFFICIAL_URL
    refuse_url(url)
    client = guarded_client(allow_private=allows_private, timeout_seconds=silence_seconds, transport=transport)
    return openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0, http_client=client)


def _choices(chunk: Any) -> list[dict[str, Any]]:
    """The first choice of a chunk, if it has one. Raises what is `MALFORMED`."""
    choices: list[dict[str, Any]] = (chunk.get("choices") or [])[:1]
    return choices


def _usage(chunk: Any) -> Usage | None:
    usage = chunk.get("usage")
    if usage is None:
        return None
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
