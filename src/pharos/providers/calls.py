"""Every call of a model goes through here: found by the resolver, tried, failed over, counted and paid, once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

from sqlalchemy import select, text

from pharos.infra.db import Database
from pharos.infra.errors import PharosError, Unavailable
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.infra.vault import Vault
from pharos.providers.catalog import open_chat_model
from pharos.providers.choice import Known, choose, list_known, of_environment, shared_of
from pharos.providers.contract import Call, Candidate, ChatModel, ChatRequest, OpenModel, Usage
from pharos.providers.models import TenantModelSettings

log = get_logger(__name__)

DEFAULT_TENANT = text("select id from tenants where slug = 'default'")
"""Whose shared providers are the installation's; the table of tenants has no fence."""


class Models:
    """The models a tenant may call. Holds open connections to providers, and nothing of any tenant."""

    def __init__(
        self, settings: Settings, db: Database, vault: Vault, *, open_model: OpenModel = open_chat_model
    ) -> None:
        self._settings = settings
        self._db = db
        self._vault = vault
        self._open_model = open_model
        self._opened: dict[Candidate, ChatModel] = {}
        self._default_tenant: TenantId | None = None

    async def resolve(
        self, tenant_id: TenantId, wish: str | None = None, *, project: str | None = None
    ) -> tuple[Candidate, ...]:
        """The models to ask, in the order of failover.

        `project` is the project's own setting and comes before `wish`; both are `provider/model` or a bare model.
        Raises `Unavailable` with `no_provider` or `llm_disabled`; nobody has been called then.
        """
        candidates = choose(await self.known(tenant_id), wish=wish, project=project)
        if self._settings.allow_private_providers:
            candidates = tuple(replace(one, allows_private=True) for one in candidates)
        first = candidates[0]
        # The words are what people search their logs for (LP-03).
        log.info(
            f"[LLM] resolveProvider -> url={first.base_url or 'default'} "  # noqa: G004
            f"keyPrefix={first.key_prefix} keyLen={len(first.key or '')}",
            provider=first.provider,
            model=first.model,
            fallbacks=len(candidates) - 1,
        )
        return candidates

    async def known(self, tenant_id: TenantId) -> list[Known]:
        """What a tenant may use, in the order of precedence. Raises `Unavailable` when it wants no models at all."""
        default_tenant = await self._find_default_tenant()
        is_default = tenant_id == default_tenant
        async with self._db.transaction(tenant_id) as session:
            allowed = (await session.execute(select(TenantModelSettings))).scalar_one_or_none()
            own = await list_known(session, self._vault, tenant_id, is_default_tenant=is_default)
        if allowed is not None and not allowed.llm_enabled:
            raise Unavailable("Models are switched off here. An administrator switches them on.", code="llm_disabled")
        if allowed is not None and not allowed.use_shared_providers:
            return own
        shared: list[Known] = []
        if default_tenant is not None and not is_default:
            async with self._db.transaction(default_tenant) as session:
                shared = shared_of(await list_known(session, self._vault, default_tenant, is_default_tenant=True))
        return [*own, *shared, *of_environment(self._settings)]

    async def stream(
        self, tenant_id: TenantId, candidates: tuple[Candidate, ...], request: ChatRequest, call: Call
    ) -> AsyncIterator[str]:
        """The answer of the first candidate that answers, piece by piece; `call` says what became of it.

        Before the first piece it is tried again and elsewhere; after it an error ends the stream.
        """
        failed: PharosError | None = None
        for candidate in candidates:
            begun = False
            call.provider, call.model = candidate.provider, candidate.model
            try:
                async for piece in self._try(candidate, request, call):
                    begun = True
                    yield piece
            except PharosError as error:
                if begun:
                    raise
                failed = error
                call.failed_over_from += (candidate.provider,)
            else:
                return
        assert failed is not None
        raise failed

    async def close(self) -> None:
        """Close the connections to all providers."""
        for model in self._opened.values():
            await model.close()
        self._opened.clear()

    async def _try(self, candidate: Candidate, request: ChatRequest, call: Call) -> AsyncIterator[str]:
        model = self._opened.get(candidate) or self._open_model(candidate)
        self._opened[candidate] = model
        started = time.perf_counter()
        async for piece in model.stream(request):
            if isinstance(piece, Usage):
                call.usage = piece
                continue
            if call.first_token_seconds is None:
                call.first_token_seconds = time.perf_counter() - started
            yield piece

    async def _find_default_tenant(self) -> TenantId | None:
        if self._default_tenant is None:
            row = await self._db.fetch(DEFAULT_TENANT, {})
            self._default_tenant = TenantId(row.id) if row is not None else None
        return self._default_tenant
