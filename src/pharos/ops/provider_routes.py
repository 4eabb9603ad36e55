"""Providers over HTTP: what may be asked, for everybody; managing them, for who may; a key goes in and never out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.alias_generators import to_camel

from pharos.identity.current import CurrentPerson, CurrentPrincipal, CurrentRuntime
from pharos.ops import provider_changes
from pharos.ops.provider_changes import MOST_PRICE_MICRO, NO_PRICE, Draft
from pharos.ops.provider_report import ManagedProvider, list_offers, managed_providers, read_tenant_spend
from pharos.providers.contract import Call
from pharos.providers.presets import PRESETS
from pharos.providers.spend import SpendLine

router = APIRouter(tags=["providers"])

Micro = Annotated[int, Field(ge=0, le=10**15, description="Micro-dollars in a calendar month (UTC).")]


class Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class Input(Body):
    model_config = ConfigDict(extra="forbid")


class OfferedProvider(Body):
    """A provider the caller may ask; `state` is its breaker's. `id` is null for the one of PHAROS_LLM_*."""

    id: UUID | None
    name: str
    kind: str
    models: list[str]
    is_default: bool
    is_shared: bool
    is_usable: bool = Field(description="False while it is switched off or lacks a key.")
    state: str


class OfferedProviders(Body):
    providers: list[OfferedProvider]


class OfferedModel(Body):
    """`id` is what a question names."""

    id: str
    provider: str
    model: str
    is_default: bool


class OfferedModels(Body):
    models: list[OfferedModel]


class Managed(Body):
    """A provider as its managers see it; of the key only its first characters and its length."""

    id: UUID
    name: str
    kind: str
    preset: str | None
    base_url: str
    models: list[str]
    is_default: bool
    is_shared: bool
    is_enabled: bool
    requests_per_minute: int | None
    status_page: str | None
    input_price_micro: int | None
    output_price_micro: int | None
    key_prefix: str
    key_length: int
    created_at: datetime
    updated_at: datetime
    state: str = "closed"
    requests_left: int | None = None
    unpriced: list[str] = Field(default=[], description="Models whose price nobody knows: no budget counts them.")


class ManagedList(Body):
    providers: list[Managed]


class PresetBody(Body):
    name: str
    title: str
    kind: str
    base_url: str
    models: list[str]
    key_prefixes: list[str]
    needs_key: bool
    requests_per_minute: int | None
    status_page: str | None
    keys_page: str | None


class Presets(Body):
    presets: list[PresetBody]


class ProviderInput(Input):
    """Null leaves a field as it is, or as the preset has it; an empty key keeps the present one.

    An empty status page, 0 requests a minute and prices of -1 are none. Prices are micro-dollars for a million tokens
    of question and of answer, whatever the model; without them those of the list count. Switched off a provider is
    kept with its key and not asked.
    """

    name: Annotated[str | None, Field(max_length=63)] = None
    preset: Annotated[str | None, Field(max_length=63)] = None
    kind: Literal["openai", "anthropic", "local"] | None = None
    base_url: Annotated[str | None, Field(max_length=2000)] = None
    models: Annotated[list[str] | None, Field(max_length=100)] = None
    requests_per_minute: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    status_page: Annotated[str | None, Field(max_length=2000, pattern=r"^(https?://\S+)?$")] = None
    input_price_micro: Annotated[int | None, Field(ge=NO_PRICE, le=MOST_PRICE_MICRO)] = None
    output_price_micro: Annotated[int | None, Field(ge=NO_PRICE, le=MOST_PRICE_MICRO)] = None
    is_shared: bool | None = None
    is_default: bool | None = None
    is_enabled: bool | None = None
    key: SecretStr | None = None
    ping: Annotated[bool, Field(description="Ask it for one word before anything is saved.")] = True

    def draft(self) -> Draft:
        return Draft(
            name=self.name,
            preset=self.preset,
            kind=self.kind,
            base_url=self.base_url,
            models=tuple(self.models) if self.models is not None else None,
            requests_per_minute=self.requests_per_minute,
            status_page=self.status_page,
            input_price_micro=self.input_price_micro,
            output_price_micro=self.output_price_micro,
            is_shared=self.is_shared,
            is_default=self.is_default,
            is_enabled=self.is_enabled,
            key=self.key.get_secret_value() if self.key is not None else None,
        )


class Answered(Body):
    """What a ping took."""

    model: str
    seconds: float
    cost_micro: int | None


class SavedProvider(Body):
    provider: Managed
    ping: Answered | None = Field(description="Null where nobody was asked: without a key, or for a mere renaming.")


class ModelSettings(Body):
    """Switches and budgets of the caller's tenant."""

    llm_enabled: bool
    use_shared_providers: bool
    budget_warn_micro: int | None
    budget_stop_micro: int | None


class ModelSettingsInput(Input):
    """What is left out stays; null removes a budget."""

    llm_enabled: bool = True
    use_shared_providers: bool = True
    budget_warn_micro: Micro | None = None
    budget_stop_micro: Micro | None = None


class SpendLineBody(Body):
    provider: str
    model: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_micro: int


class SpendBody(Body):
    """In micro-dollars; `unpriced` calls have no known price and are not in the sums."""

    month_micro: int
    today_micro: int
    dearest_day_micro: int = Field(description="Of the seven days before today.")
    is_anomalous: bool
    calls: int
    unpriced: int
    lines: list[SpendLineBody]


@router.get("/providers")
async def list_providers(principal: CurrentPrincipal, runtime: CurrentRuntime) -> OfferedProviders:
    """The providers the caller may ask, in the order in which they are looked through; no secrets."""
    found = await list_offers(runtime, principal)
    return OfferedProviders(providers=[OfferedProvider.model_validate(offer) for offer in found])


@router.get("/providers/models")
async def list_provider_models(principal: CurrentPrincipal, runtime: CurrentRuntime) -> OfferedModels:
    """The models that can be named in a question, the default first."""
    found = [offer for offer in await list_offers(runtime, principal) if offer.is_usable]
    listed = [
        OfferedModel(
            id=f"{offer.name}/{model}", provider=offer.name, model=model, is_default=offer.is_chosen and number == 0
        )
        for offer in found
        for number, model in enumerate(offer.models)
    ]
    return OfferedModels(models=sorted(listed, key=lambda model: not model.is_default))


@router.get("/providers/presets")
async def list_presets(_principal: CurrentPerson) -> Presets:
    """What is known of the providers people use most."""
    return Presets(presets=[PresetBody.model_validate(preset) for preset in PRESETS.values()])


@router.get("/providers/admin")
async def list_managed_providers(principal: CurrentPerson, runtime: CurrentRuntime) -> ManagedList:
    """The providers the caller manages: an administrator their tenant's own, an engineer the shared ones."""
    return ManagedList(providers=[_managed(one) for one in await managed_providers(runtime, principal)])


@router.post("/providers/admin", status_code=201)
async def add_provider(body: ProviderInput, principal: CurrentPerson, runtime: CurrentRuntime) -> SavedProvider:
    """Add a provider once it has answered."""
    return _saved(await provider_changes.add_provider(runtime, principal, body.draft(), ping=body.ping))


@router.put("/providers/admin/{provider_id}")
async def change_provider(
    provider_id: UUID, body: ProviderInput, principal: CurrentPerson, runtime: CurrentRuntime
) -> SavedProvider:
    """Change a provider. Another address drops the key: enter it again with the address."""
    draft = body.draft()
    return _saved(await provider_changes.change_provider(runtime, principal, provider_id, draft, ping=body.ping))


@router.delete("/providers/admin/{provider_id}", status_code=204)
async def remove_provider(provider_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """Remove a provider and its key."""
    await provider_changes.remove_provider(runtime, principal, provider_id)


@router.post("/providers/{provider_id}/test")
async def ping_provider(provider_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> Answered:
    """Ask a provider for one word now, past its breaker; it costs what one word costs."""
    return _answered(await provider_changes.ping_provider(runtime, principal, provider_id))


@router.post("/providers/{provider_id}/breaker/reset", status_code=204)
async def reset_breaker(provider_id: UUID, principal: CurrentPerson, runtime: CurrentRuntime) -> None:
    """Close a provider's breaker in all processes, as a restart does."""
    await provider_changes.reset_breaker(runtime, principal, provider_id)


@router.get("/providers/settings")
async def read_model_settings(principal: CurrentPerson, runtime: CurrentRuntime) -> ModelSettings:
    """Whether models are on, whether shared providers may be used, and the budgets."""
    await provider_changes.require_manager(runtime, principal, is_shared=False)
    return ModelSettings.model_validate(await provider_changes.read_model_settings(runtime, principal))


@router.put("/providers/settings")
async def change_model_settings(
    body: ModelSettingsInput, principal: CurrentPerson, runtime: CurrentRuntime
) -> ModelSettings:
    """Change what is named; it counts from the next request on."""
    changes = body.model_dump(exclude_unset=True)
    return ModelSettings.model_validate(await provider_changes.change_model_settings(runtime, principal, changes))


@router.get("/providers/spend")
async def read_spend(principal: CurrentPerson, runtime: CurrentRuntime) -> SpendBody:
    """What the tenant's calls cost this month, and whether today is unlike the seven days before."""
    await provider_changes.require_manager(runtime, principal, is_shared=False)
    spend, lines = await read_tenant_spend(runtime, principal)
    return SpendBody(
        month_micro=spend.month_micro,
        today_micro=spend.today_micro,
        dearest_day_micro=spend.dearest_day_micro,
        is_anomalous=spend.is_anomalous,
        calls=spend.calls,
        unpriced=spend.unpriced,
        lines=[_line(line) for line in lines],
    )


def _line(line: SpendLine) -> SpendLineBody:
    return SpendLineBody.model_validate(line)


def _managed(one: ManagedProvider) -> Managed:
    shown = Managed.model_validate(one.provider)
    return shown.model_copy(
        update={"state": one.state, "requests_left": one.requests_left, "unpriced": list(one.unpriced)}
    )


def _saved(saved: provider_changes.Saved) -> SavedProvider:
    return SavedProvider(
        provider=Managed.model_validate(saved.provider), ping=_answered(saved.ping) if saved.ping else None
    )


def _answered(call: Call) -> Answered:
    return Answered(model=call.model, seconds=round(call.seconds, 3), cost_micro=call.cost_micro)
