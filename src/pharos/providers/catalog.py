"""Which models this installation uses: the only place that knows a vendor's file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from pharos.infra.settings import Settings
from pharos.providers.contract import (
    PATIENT_SILENCE_SECONDS,
    SILENCE_SECONDS,
    Candidate,
    ChatModel,
    EmbeddingModel,
    ModelState,
    VectorModel,
)
from pharos.providers.embedder.minilm import DIMENSION, MAX_TOKENS, MODEL_NAME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pharos.providers.embedder.client import EmbedderClient


VECTOR_KINDS = frozenset({"openai", "local"})
"""The kinds of provider that make vectors: Anthropic has none."""


class _LateEmbedding:
    """The embedder's client, made when it is first needed: every command would pay a tenth of its start for numpy."""

    name, dimension, max_tokens = MODEL_NAME, DIMENSION, MAX_TOKENS

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _client(self) -> EmbedderClient:
        from pharos.providers.embedder.client import EmbedderClient

        return EmbedderClient(self._settings)

    async def state(self) -> ModelState:
        return await self._client.state()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return await self._client.embed(texts)

    async def close(self) -> None:
        if "_client" in self.__dict__:
            await self._client.close()


@asynccontextmanager
async def open_embedding(settings: Settings) -> AsyncIterator[EmbeddingModel]:
    """The embedder process, by its socket or address; it is not contacted before the first text."""
    embedding = _LateEmbedding(settings)
    try:
        yield embedding
    finally:
        await embedding.close()


def open_chat_model(candidate: Candidate) -> ChatModel:
    """The wire format a candidate speaks; its SDK takes most of a second to import, once."""
    if candidate.kind == "anthropic":
        from pharos.providers.anthropic import AnthropicChat as Chat
    else:
        from pharos.providers.openai import OpenAIChat as Chat  # type: ignore[assignment]

    return Chat(
        name=candidate.model,
        base_url=candidate.base_url,
        key=candidate.key,
        allows_private=candidate.allows_private,
        silence_seconds=PATIENT_SILENCE_SECONDS if candidate.kind == "local" else SILENCE_SECONDS,
    )


def open_vector_model(candidate: Candidate) -> VectorModel:
    """As `open_chat_model`, for a candidate of one of `VECTOR_KINDS`."""
    from pharos.providers.openai import OpenAIVectors

    return OpenAIVectors(
        name=candidate.model,
        base_url=candidate.base_url,
        key=candidate.key,
        allows_private=candidate.allows_private,
    )
