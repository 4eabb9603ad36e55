"""Which models this installation uses: the only place that knows a vendor's file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pharos.infra.settings import Settings
from pharos.providers.contract import ChatModel, EmbeddingModel


@asynccontextmanager
async def open_embedding(settings: Settings) -> AsyncIterator[EmbeddingModel]:
    """The embedder process, by its socket or address; it is not contacted before the first text."""
    from pharos.providers.embedder.client import EmbedderClient  # numpy and HTTP, which most commands do not need

    client = EmbedderClient(settings)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def open_chat_model(settings: Settings) -> AsyncIterator[ChatModel | None]:
    """The configured OpenAI-compatible model, or None: answers are then extractive."""
    if settings.llm_model is None or (settings.llm_url is None and settings.llm_key is None):
        yield None
        return
    from pharos.providers.openai import OpenAIChat  # its SDK takes most of a second to import

    model = OpenAIChat(
        name=settings.llm_model,
        base_url=settings.llm_url,
        key=settings.llm_key.get_secret_value() if settings.llm_key else None,
    )
    try:
        yield model
    finally:
        await model.close()
