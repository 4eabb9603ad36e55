"""Every call of a model goes through here: found by the resolver, tried, failed over, counted and paid, once."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.db import Database
from pharos.infra.errors import Invalid, LimitReached, PharosError, Unavailable
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.infra.settings import Settings
from pharos.infra.vault import Vault
from pharos.providers import breaker
from pharos.providers.catalog import VECTOR_KINDS, open_chat_model, open_vector_model
from pharos.providers.choice import Known, choose, list_known, of_environment, shared_of
from pharos.providers.contract import (
    Call,
    Candidate,
    ChatMessage,
    ChatRequest,
    Cut,
    OpenModel,
    OpenVectorModel,
    Usage,
    VectorRequest,
)
from pharos.providers.models import TenantModelSettings
from pharos.providers.open_models import OpenModels
from pharos.providers.refusals import as_kind
from pharos.providers.request_budget import pause_provider, take_place
from pharos.providers.spend import (
    cost_of,
    count_call,
    estimate_prompt,
    estimate_usage,
    find_overspent,
    price_call,
    record_call,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = get_logger(__name__)

DEFAULT_TENANT = text("select id from tenants where slug = 'default'")
"""Whose shared providers are the installation's; the table of tenants has no fence."""

ATTEMPTS, ATTEMPTS_WITH_ANOTHER = 3, 2
RETRIED_CODES = frozenset({"provider_unreachable", "provider_failed", "provider_answer_bad", "provider_rate_limited"})
"""Not a time-out: whoever asks has waited long enough."""
BACKOFF_SECONDS = 0.3
"""Before the second try; twice that before the third. Half of it is chance, so that not all come back together."""
NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, and halves of UTF-16 pairs, which come from servers that cut their text anywhere: no database takes them."""
A_WORD = Usage(1, 1)
"""What costs nothing for this much costs nothing at all: costs are rounded up."""
LONGEST_CALL_SECONDS = 180.0
PING = ChatRequest((ChatMessage("user", "Say: ready."),), max_tokens=16)

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class _Work(Generic[Piece]):
    """What is asked of a model. `guess` says what it took, by the characters that came, where the provider does not."""

    begin: Callable[[Candidate], AbstractAsyncContextManager[AsyncIterator[Piece | Usage | Cut]]]
    clean: Callable[[Piece], Piece]
    guess: Callable[[int], Usage]


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Bounds a call that has no turn to bound it: who sends bytes that say nothing is not silent.

    Raises `Unavailable` (`provider_timed_out`).
    """
    try:
        async with asyncio.timeout(LONGEST_CALL_SECONDS):
            yield
    except TimeoutError as error:
        raise as_kind(error, key=None) from error


@asynccontextmanager
async def _closing(pieces: AsyncIterator[str | Usage | Cut]) -> AsyncIterator[AsyncIterator[str | Usage | Cut]]:
    """Let go of the provider as soon as nobody listens any more."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


class Models:
    """The models a tenant may call. Holds open connections to providers, and nothing of any tenant.

    `sleep` is how it waits, between tries and for a place in a provider's budget.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        vault: Vault,
        *,
        open_model: OpenModel = open_chat_model,
        open_vectors: OpenVectorModel = open_vector_model,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._db = db
        self._vault = vault
        self._opened = OpenModels(open_model)
        self._opened_vectors = OpenModels(open_vectors)
        self._sleep = sleep
        self._default_tenant: TenantId | None = None

    async def resolve(
        self, tenant_id: TenantId, wish: str | None = None, *, project: str | None = None
    ) -> tuple[Candidate, ...]:
        """The models to ask, in the order of failover.

        `project` is the project's own setting and comes before `wish`; both are `provider/model` or a bare model.
        Raises `Unavailable` with `no_provider` or `llm_disabled`, `NotFound` with `no_provider` for a wish that nobody
        offers, and `LimitReached` with `spend_budget_used_up` where nothing that costs nothing is left to ask. Nobody
        has been called then.
        """
        known, overspent = await self._look(tenant_id)
        candidates = choose(known, wish=wish, project=project)
        if overspent is not None:
            candidates = tuple(one for one in candidates if cost_of(one, A_WORD) == 0)
            if not candidates:
                raise overspent
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
        known, _ = await self._look(tenant_id)
        return known

    async def stream(
        self, tenant_id: TenantId, candidates: tuple[Candidate, ...], request: ChatRequest, call: Call
    ) -> AsyncGenerator[str, None]:
        """The answer of the first candidate that answers, piece by piece; `call` says what became of it.

        Before the first piece it is tried again and elsewhere; after it an error ends the stream. Close it
        (`aclosing`) when you leave early: the provider is then left at once and what came so far is counted.
        Raises what `ChatModel.stream` does, `Unavailable` (`breaker_open`) and `LimitReached`.
        """
        async with aclosing(self._first_of(tenant_id, candidates, self._words(request), call)) as pieces:
            async for piece in pieces:
                yield piece

    async def embed(
        self, tenant_id: TenantId, candidates: tuple[Candidate, ...], request: VectorRequest, call: Call
    ) -> NDArray[np.float32]:
        """The vectors of the first candidate that makes them, as `VectorModel` says; all or none.

        With all that is around `stream`. Name the model (`wish`) when you resolve: then the candidates are the same
        model at several providers, and vectors of different ones cannot be compared. Raises what `stream` raises.
        """
        able = tuple(candidate for candidate in candidates if candidate.kind in VECTOR_KINDS)
        if not able:
            raise Invalid(f"{candidates[0].provider} makes no vectors. Choose another provider.", code="unsupported")
        async with aclosing(self._first_of(tenant_id, able, self._vectors(request), call)) as pieces:
            (rows,) = [piece async for piece in pieces]
        return rows

    async def _first_of(
        self, tenant_id: TenantId, candidates: tuple[Candidate, ...], work: _Work[Piece], call: Call
    ) -> AsyncGenerator[Piece, None]:
        """What the first candidate says that does."""
        for number, candidate in enumerate(candidates, start=1):
            has_another = number < len(candidates)
            try:
                async with aclosing(self._persist(tenant_id, candidate, work, call, has_another)) as pieces:
                    async for piece in pieces:
                        yield piece
            except PharosError as error:
                if call.first_token_seconds is not None or not has_another:
                    raise
                log.warning("provider.failed_over", provider=candidate.provider, code=error.code)
                call.failed_over_from += (candidate.provider,)
            else:
                return

    async def ping(self, tenant_id: TenantId, candidate: Candidate) -> Call:
        """Ask for one word, past breaker and budget: somebody wants to know now. Raises what `ChatModel.stream` does.

        It is recorded and paid like any call, and its failure counts; it does not close an open breaker.
        """
        call = Call(purpose="test")
        pinged = self._attempt(tenant_id, candidate, breaker.Passed(), self._words(PING), call)
        async with _in_time(), aclosing(pinged) as pieces:
            async for _ in pieces:
                pass
        return call

    async def list_models(self, candidate: Candidate) -> list[str]:
        """What the provider says it offers. Raises what `ChatModel.stream` does."""
        async with _in_time(), self._opened.use(candidate) as model:
            return await model.list_models()

    async def find_default_tenant(self) -> TenantId | None:
        """The tenant whose shared providers are the installation's; None before the first setup."""
        if self._default_tenant is None:
            row = await self._db.fetch(DEFAULT_TENANT, {})
            self._default_tenant = TenantId(row.id) if row is not None else None
        return self._default_tenant

    async def close(self) -> None:
        """Close the connections to all providers."""
        await self._opened.close()
        await self._opened_vectors.close()

    async def _look(self, tenant_id: TenantId) -> tuple[list[Known], LimitReached | None]:
        """What a tenant may use, and why it may pay for nothing more this month, if so. Raises as `known` does."""
        default_tenant = await self.find_default_tenant()
        async with self._db.transaction(tenant_id) as session:
            allowed = (await session.execute(select(TenantModelSettings))).scalar_one_or_none()
            own = await self._list(session, tenant_id)
            overspent = await find_overspent(session, allowed) if allowed is not None else None
        if allowed is not None and not allowed.llm_enabled:
            raise Unavailable("Models are switched off here. An administrator switches them on.", code="llm_disabled")
        if allowed is not None and not allowed.use_shared_providers:
            return own, overspent
        shared: list[Known] = []
        if default_tenant not in (None, tenant_id):
            assert default_tenant is not None
            async with self._db.transaction(default_tenant) as session:
                shared = shared_of(await self._list(session, default_tenant))
        return [*own, *shared, *of_environment(self._settings)], overspent

    async def _list(self, session: AsyncSession, tenant_id: TenantId) -> list[Known]:
        return await list_known(
            session,
            self._vault,
            tenant_id,
            is_default_tenant=tenant_id == self._default_tenant,
            allows_private=self._settings.allow_private_providers,
        )

    def _words(self, request: ChatRequest) -> _Work[str]:
        @asynccontextmanager
        async def begin(candidate: Candidate) -> AsyncIterator[AsyncIterator[str | Usage | Cut]]:
            async with self._opened.use(candidate) as model, _closing(model.stream(request)) as pieces:
                yield pieces

        return _Work(begin, partial(NOT_STORABLE.sub, "\N{REPLACEMENT CHARACTER}"), partial(estimate_usage, request))

    def _vectors(self, request: VectorRequest) -> _Work[NDArray[np.float32]]:
        async def made(candidate: Candidate) -> AsyncIterator[NDArray[np.float32] | Usage]:
            async with _in_time(), self._opened_vectors.use(candidate) as model:
                rows, usage = await model.embed(request)
            if usage is not None:
                yield usage
            yield rows

        @asynccontextmanager
        async def begin(candidate: Candidate) -> AsyncIterator[AsyncIterator[NDArray[np.float32] | Usage]]:
            yield made(candidate)

        return _Work(begin, lambda rows: rows, lambda _characters: estimate_prompt(request.texts))

    async def _persist(
        self, tenant_id: TenantId, candidate: Candidate, work: _Work[Piece], call: Call, has_another: bool
    ) -> AsyncGenerator[Piece, None]:
        """One candidate, tried again while it is worth it."""
        attempts = ATTEMPTS_WITH_ANOTHER if has_another else ATTEMPTS
        for number in range(1, attempts + 1):
            call.provider, call.model, call.first_token_seconds = candidate.provider, candidate.model, None
            passed = await self._pass(candidate, has_another=has_another)
            try:
                async with aclosing(self._attempt(tenant_id, candidate, passed, work, call)) as pieces:
                    async for piece in pieces:
                        yield piece
            except PharosError as error:
                is_worth_it = error.code in RETRIED_CODES and not (has_another and isinstance(error, LimitReached))
                if call.first_token_seconds is not None or number == attempts or not is_worth_it:
                    raise
            else:
                return
            await self._sleep(BACKOFF_SECONDS * 2 ** (number - 1) * random.uniform(0.5, 1))  # noqa: S311

    async def _pass(self, candidate: Candidate, *, has_another: bool) -> breaker.Passed:
        """Leave from the breaker and a place in the budget, waited for. Raises `Unavailable` or `LimitReached`."""
        passed = await breaker.pass_breaker(self._db, candidate)
        try:
            wait = await take_place(self._db, candidate, paused_seconds=passed.paused_seconds, has_another=has_another)
            if wait > 0:
                await self._sleep(wait)
        except (LimitReached, asyncio.CancelledError):
            await breaker.report(self._db, candidate, passed, breaker.Outcome.NEITHER)
            raise
        return passed

    async def _attempt(
        self, tenant_id: TenantId, candidate: Candidate, passed: breaker.Passed, work: _Work[Piece], call: Call
    ) -> AsyncGenerator[Piece, None]:
        """One call of a provider, with all that is due around it."""
        call.provider, call.model, call.usage, call.cut = candidate.provider, candidate.model, None, None
        started, characters = time.perf_counter(), 0
        status, outcome = "failed", breaker.Outcome.NEITHER
        try:
            async with work.begin(candidate) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Usage):
                        call.usage = piece
                        continue
                    if isinstance(piece, Cut):
                        call.cut = piece.reason
                        continue
                    if isinstance(piece, str):
                        if call.first_token_seconds is None:
                            call.first_token_seconds = time.perf_counter() - started
                        characters += len(piece)
                    yield work.clean(piece)
            status, outcome = "ok", breaker.Outcome.SUCCESS
        except PharosError as error:
            status, outcome = error.code, breaker.outcome_of(error)
            # The words are what people search their logs for (LP-25).
            log.warning(
                f"[LLM] API error: {error.cause_words or error.message}",  # noqa: G004
                provider=candidate.provider,
                model=candidate.model,
                code=error.code,
            )
            if isinstance(error, LimitReached):
                await pause_provider(self._db, candidate, error.retry_after_seconds)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = "stopped"
            raise
        finally:
            call.seconds = time.perf_counter() - started
            if call.usage is None and (characters or status in {"ok", "stopped"}):
                call.usage = work.guess(characters)
            # Whoever stops an answer does not get it for nothing: the accounts are closed all the same.
            await asyncio.shield(self._settle(tenant_id, candidate, passed, call, status=status, outcome=outcome))

    async def _settle(
        self,
        tenant_id: TenantId,
        candidate: Candidate,
        passed: breaker.Passed,
        call: Call,
        *,
        status: str,
        outcome: breaker.Outcome,
    ) -> None:
        price_call(candidate, call)
        count_call(candidate, call, status=status)
        try:
            await breaker.report(self._db, candidate, passed, outcome)
            async with self._db.transaction(tenant_id) as session:
                record_call(session, tenant_id, candidate, call, status=status)
        except (SQLAlchemyError, OSError) as error:
            # The answer is there already and must not fail for its bill; the figures are in this line instead.
            log.error(
                "llm_call.not_recorded",
                provider=call.provider,
                model=call.model,
                cost_micro=call.cost_micro,
                error=type(error).__name__,
            )
