"""Providers as they are shown: who may be asked, how each fares, what was spent."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pharos.identity.principal import Principal
from pharos.identity.tenants import list_tenants
from pharos.infra.errors import Unavailable
from pharos.infra.ids import TenantId
from pharos.ops.provider_changes import list_managed, require_manager
from pharos.providers.breaker import list_standings
from pharos.providers.choice import Known, choose, price_of
from pharos.providers.contract import Price, Usage
from pharos.providers.models import Provider
from pharos.providers.prices import cost_micro
from pharos.providers.spend import SharedSpend, Spend, SpendLine, list_shared_spend, list_spend, read_spend
from pharos.runtime import Runtime

DEAREST_TENANTS = 50


@dataclass(frozen=True)
class Offer:
    """A provider somebody may ask; `is_chosen`: it answers where none is named. `state` is its breaker's.

    `unpriced` are those of its models whose price nobody knows: no budget counts them.
    """

    id: UUID | None
    name: str
    kind: str
    models: tuple[str, ...]
    is_default: bool
    is_shared: bool
    is_usable: bool
    is_chosen: bool
    state: str
    unpriced: tuple[str, ...] = ()


@dataclass(frozen=True)
class InstallationSpend:
    """This UTC month's use of shared providers: each in all, and by tenant and provider, the dearest first."""

    by_provider: list[SharedSpend]
    by_tenant: list[tuple[str, SharedSpend]]


@dataclass(frozen=True)
class ManagedProvider:
    """A provider with how it fares; `unpriced` as of an `Offer`."""

    provider: Provider
    state: str
    requests_left: int | None
    unpriced: tuple[str, ...] = ()


async def list_offers(runtime: Runtime, principal: Principal) -> list[Offer]:
    """What the principal may ask, in the order of precedence; nothing where models are switched off."""
    try:
        known = await runtime.models.known(principal.tenant_id)
    except Unavailable:
        return []
    standings = {one.key: one.state for one in await list_standings(runtime.db)}
    chosen = _chosen(known)
    return [
        Offer(
            id=one.id,
            name=one.name,
            kind=one.kind,
            models=one.models,
            is_default=one.is_default,
            is_shared=one.is_shared,
            is_usable=one.is_usable,
            is_chosen=one.name == chosen,
            state=standings.get(one.state_key, "closed"),
            unpriced=_unpriced(one, one.price),
        )
        for one in known
    ]


async def has_model(runtime: Runtime, principal: Principal) -> bool:
    """Whether a model answers the principal's questions that name none."""
    try:
        return bool(choose(await runtime.models.known(principal.tenant_id)))
    except Unavailable:
        return False


async def managed_providers(runtime: Runtime, principal: Principal) -> list[ManagedProvider]:
    """The providers the principal manages, by name. Raises `NotAllowed`."""
    standings = {one.key: one for one in await list_standings(runtime.db)}
    found = []
    for row in await list_managed(runtime, principal):
        standing = standings.get(str(row.id))
        has_limit = standing is not None and row.requests_per_minute is not None
        left = standing.requests_left if standing is not None and has_limit else row.requests_per_minute
        found.append(
            ManagedProvider(
                row, standing.state if standing is not None else "closed", left, _unpriced(row, price_of(row))
            )
        )
    return found


async def read_tenant_spend(runtime: Runtime, principal: Principal) -> tuple[Spend, list[SpendLine]]:
    """What the principal's tenant spent, in all and by model."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        return await read_spend(session), await list_spend(session)


def uncounted_models(offers: list[Offer]) -> list[str]:
    """What a budget does not stop, as `provider/model`: it can be asked, and nobody knows what it costs."""
    named = [f"{offer.name}/{model}" for offer in offers if offer.is_usable for model in offer.unpriced]
    return list(dict.fromkeys(named))  # one of the organisation and one of the installation may have the same name


def _unpriced(one: Known | Provider, stated: Price | None) -> tuple[str, ...]:
    def cost(model: str) -> int | None:
        is_local = one.kind == "local"
        return cost_micro(Usage(0, 0), model=model, preset=one.preset, is_local=is_local, stated=stated)

    return tuple(model for model in one.models if cost(model) is None)


async def read_installation_spend(runtime: Runtime, principal: Principal) -> InstallationSpend:
    """What all tenants took of the shared providers this month, for who pays for these. Raises `NotAllowed`.

    One short transaction a tenant: calls are fenced, and nobody reads those of two tenants at once.
    """
    await require_manager(runtime, principal, is_shared=True)
    by_provider: dict[str, SharedSpend] = {}
    by_tenant: list[tuple[str, SharedSpend]] = []
    for tenant in await list_tenants(runtime):
        async with runtime.db.transaction(TenantId(tenant.id)) as session:
            lines = await list_shared_spend(session)
        for line in lines:
            before = by_provider.get(line.provider)
            by_provider[line.provider] = line if before is None else before.plus(line)
            by_tenant.append((tenant.name, line))
    return InstallationSpend(
        sorted(by_provider.values(), key=lambda line: -line.cost_micro),
        sorted(by_tenant, key=lambda pair: -pair[1].cost_micro)[:DEAREST_TENANTS],
    )


def _chosen(known: list[Known]) -> str | None:
    try:
        return choose(known)[0].provider
    except Unavailable:
        return None
