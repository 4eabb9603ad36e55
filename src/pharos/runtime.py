"""The world, built once for each process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pharos.infra.blobs import BlobStore
from pharos.infra.cache import Cache
from pharos.infra.database_roles import connection_urls
from pharos.infra.db import Database, create_database
from pharos.infra.ids import TenantId
from pharos.infra.limits import Limits
from pharos.infra.notices import Notices
from pharos.infra.recent import Recent
from pharos.infra.settings import Settings
from pharos.infra.smtp import MailTransport
from pharos.infra.vault import Vault
from pharos.providers.calls import Models
from pharos.providers.catalog import open_embedding
from pharos.providers.contract import EmbeddingModel

SIGN_IN_SECONDS = 30.0


@dataclass(frozen=True)
class Runtime:
    """What a function needs that waits for the network, the disk or a model.

    `sign_ins` are the sessions seen in the last 30 seconds, `uses` when sessions and API keys were used and nobody has
    written down yet.
    """

    settings: Settings
    db: Database
    limits: Limits
    vault: Vault
    mail: MailTransport
    blobs: BlobStore
    embedding: EmbeddingModel
    models: Models
    cache: Cache = field(default_factory=Cache)
    notices: Notices = field(default_factory=Notices)
    sign_ins: Recent[UUID, Any] = field(default_factory=lambda: Recent(seconds=SIGN_IN_SECONDS, most=20_000))
    uses: dict[tuple[TenantId, str, UUID], datetime] = field(default_factory=dict)


@asynccontextmanager
async def open_runtime(settings: Settings) -> AsyncIterator[Runtime]:
    """Build the runtime of a process and close it at the end; opens no connection by itself."""
    db = create_database(connection_urls(settings).app, pool_size=settings.database_pool_size)
    limits = Limits(settings, db)
    vault = Vault(settings)
    models = Models(settings, db, vault)
    cache = Cache(settings.redis_url)
    async with open_embedding(settings) as embedding:
        try:
            yield Runtime(
                settings=settings,
                db=db,
                limits=limits,
                vault=vault,
                mail=MailTransport(settings),
                blobs=BlobStore(settings.blob_root),
                embedding=embedding,
                models=models,
                cache=cache,
            )
        finally:
            await cache.close()
            await models.close()
            await limits.close()
            await db.dispose()
