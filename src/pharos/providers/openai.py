"""The wire format of OpenAI, spoken by many servers: Ollama, vLLM, llama.cpp, Groq, OpenRouter. Translates only."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from pharos.infra.address_guard import refuse_url
from pharos.infra.guarded_client import GuardedTransport, ReplyTooLong, guarded_client
from pharos.providers.contract import (
    PATIENT_SILENCE_SECONDS,
    SILENCE_SECONDS,
    ChatRequest,
    Cut,
    CutReason,
    Usage,
    VectorRequest,
)
from pharos.providers.refusals import MALFORMED, as_kind, bad_answer, nothing_came

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OFFICIAL_URL = "https://api.openai.com/v1"
CUTS: dict[str, CutReason] = {"length": "length", "content_filter": "content_filter"}
TO_END_SECONDS = 0.1
MAX_ANSWER_CHARACTERS = 50_000
"""Ten times what is asked for; each sentence of an answer is checked on the loop that all tenants share."""
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

    async def stream(self, request: ChatRequest) -> AsyncIterator[str | Usage | Cut]:
        """Pieces of the answer, what it took and whether it was cut. Raises what `ChatModel` says."""
        body = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._bounds(request),
        }
        length, usage, ended = 0, None, None
        try:
            # Not `chat.completions.create`, nor the stream's own reading: making objects of each word, and events
            # before, takes them most of a word's whole way.
            async with (
                await self._client.post(
                    "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
                ) as reply,
                aclosing(reply.response.aiter_bytes()) as parts,
            ):
                content_type = reply.response.headers.get("content-type", "")
                async for chunk in _chunks(parts):
                    _refuse_failure(chunk, reply.response.request)
                    usage = _usage(chunk) or usage
                    for choice in _choices(chunk):
                        ended = ended or choice.get("finish_reason")
                        piece = str((choice.get("delta") or {}).get("content") or "")
                        length += len(piece)
                        if length > MAX_ANSWER_CHARACTERS:
                            raise bad_answer("it does not end")
                        if piece:
                            yield piece
                await _read_to_end(parts)
        except FAILURES as error:
            raise as_kind(error, key=self._key, has_begun=length > 0) from error
        if ended is None:
            raise bad_answer("it broke off") if length else nothing_came(content_type)
        if cut := CUTS.get(str(ended)):
            yield Cut(cut)
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


class OpenAIVectors:
    """Vectors of an OpenAI-compatible server."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str | None,
        key: str | None,
        allows_private: bool = False,
        silence_seconds: float = PATIENT_SILENCE_SECONDS,
        transport: GuardedTransport | None = None,
    ) -> None:
        self.name = name
        self._key = key
        self._client = _open_client(
            base_url, key, allows_private=allows_private, silence_seconds=silence_seconds, transport=transport
        )

    async def embed(self, request: VectorRequest) -> tuple[NDArray[np.float32], Usage | None]:
        """As `VectorModel` says. What a model's dimension is, its first row says, unless the request does."""
        import numpy as np

        dimension = openai.omit if request.dimension is None else request.dimension
        try:
            reply = await self._client.embeddings.create(
                model=self.name, input=list(request.texts), encoding_format="float", dimensions=dimension
            )
            ordered = sorted(reply.data, key=lambda one: one.index)
            numbers = [one.index for one in ordered]
            with np.errstate(over="ignore"):
                rows: NDArray[np.float32] = np.array([one.embedding for one in ordered], dtype=np.float32)
            counted = getattr(reply, "usage", None)  # which some servers leave out
            usage = Usage(int(counted.prompt_tokens), 0) if counted is not None else None
        except FAILURES as error:
            raise as_kind(error, key=self._key) from error
        if numbers != list(range(len(request.texts))):
            raise bad_answer(f"{len(numbers)} vectors came for {len(request.texts)} texts, or in no order")
        if rows.ndim != 2 or request.dimension not in {None, rows.shape[1]}:
            raise bad_answer(f"its vectors are of another dimension: {rows.shape}, not {request.dimension}")
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not (lengths > 0).all():
            raise bad_answer("a vector holds something that is no number, or nothing")
        return rows / lengths, usage

    async def close(self) -> None:
        await self._client.close()


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


async def _chunks(parts: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """The JSON of each event up to `[DONE]`. Raises what is `MALFORMED`."""
    begun: list[bytes] = []  # of a line; joined once, for one of 16 MiB comes in hundreds of parts
    data: list[bytes] = []
    async for part in parts:
        begun.append(part)
        if b"\n" not in part and b"\r" not in part:
            continue
        whole = b"".join(begun)
        half = b"\r" if whole.endswith(b"\r") else b""  # perhaps of a line end that was cut in two
        *lines, rest = whole.removesuffix(half).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        begun = [rest + half]
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:])
            elif not line and data:
                said = b"\n".join(data)
                if said.lstrip().startswith(b"[DONE]"):
                    return
                data = []
                yield json.loads(said.decode())  # half of a UTF-16 pair is taken: servers cut their text anywhere


async def _read_to_end(parts: AsyncIterator[bytes]) -> None:
    """What comes after the last word, mostly nothing, is read: then the connection serves the next call as well.

    The answer is whole already: a line that is cut now, or a flood, costs only itself.
    """
    with contextlib.suppress(TimeoutError, httpx2.HTTPError, ReplyTooLong):
        async with asyncio.timeout(TO_END_SECONDS):
            async for _ in parts:
                pass


def _refuse_failure(chunk: Any, request: httpx2.Request) -> None:
    """Raise what a provider says has failed in the middle of its answer."""
    failure = chunk.get("error")
    if failure:
        said = failure.get("message") if isinstance(failure, dict) else None
        raise openai.APIError(str(said or "An error occurred during streaming"), request, body=failure)


def _choices(chunk: Any) -> list[dict[str, Any]]:
    """The first choice of a chunk, if it has one. Raises what is `MALFORMED`."""
    choices: list[dict[str, Any]] = (chunk.get("choices") or [])[:1]
    return choices


def _usage(chunk: Any) -> Usage | None:
    usage = chunk.get("usage")
    if usage is None:
        return None
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
