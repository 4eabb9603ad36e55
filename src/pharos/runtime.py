"""The world, built once for each process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pharos.infra.blobs import BlobStore
from pharos.infra.database_roles import connection_urls
from pharos.infra.db import Database, create_database
from pharos.infra.limits import Limits
from pharos.infra.settings import Settings
from pharos.providers.catalog import open_chat_model, open_embedding
from pharos.providers.contract import ChatModel, EmbeddingModel


@dataclass(frozen=True)
class Runtime:
    """What a function needs that waits for the network, the disk or a model.

    `chat_model` is None when no model is configured; answers are then extractive.
    """

    settings: Settings
    db: Database
    limits: Limits
    blobs: BlobStore
    embedding: EmbeddingModel
    chat_model: ChatModel | None


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    """Build the runtime of a process and close it at the end; opens no connection by itself."""
    db = create_database(connection_urls(settings).app, pool_size=settings.database_pool_size)
    async with open_embedding(settings) as embedding, open_chat_model(settings) as chat_model:
        try:
            yield Runtime(
                settings=settings,
                db=db,
                limits=Limits(settings, db),
                blobs=BlobStore(settings.blob_root),
                embedding=embedding,
                chat_model=chat_model,
            )
        finally:
            await db.dispose()
