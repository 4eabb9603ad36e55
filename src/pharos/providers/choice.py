"""Which provider answers: what a tenant may use, and which of it a wish means (LP-02)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.infra.errors import NotFound, PharosError, Unavailable
from pharos.infra.ids import TenantId
from pharos.infra.logs import get_logger
from pharos.infra.models import Secret
from pharos.infra.settings import Settings
from pharos.infra.vault import PREFIX_CHARACTERS, UnreadableSecret, Vault, sealed_secrets
from pharos.providers.contract import Candidate, Kind, Price
from pharos.providers.models import Provider
from pharos.providers.presets import PRESETS, preset_of

log = get_logger(__name__)

KEY_KIND = "provider_key"
ENVIRONMENT = "environment"
"""The provider of `PHAROS_LLM_*`: read-only, shared, and last wherever another would do."""


@dataclass(frozen=True)
class Known:
    """A provider that a tenant may use, its key opened; `id` is None for the one of the environment.

    `models`: what it may be asked for, its default first; empty: whatever it knows.
    """

    id: UUID | None
    name: str
    kind: Kind
    base_url: str | None
    models: tuple[str, ...]
    is_default: bool
    is_shared: bool
    state_key: str
    label: str
    is_enabled: bool = True
    key: str | None = field(default=None, repr=False)
    preset: str | None = None
    requests_per_minute: int | None = None
    status_page: str | None = None
    price: Price | None = None
    allows_private: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether a call can be made: nobody is called who is switched off, or with an empty key who wants one."""
        return self.is_enabled and (self.key is not None or self.kind == "local")

    def candidate(self, model: str) -> Candidate:
        return Candidate(
            provider=self.name,
            kind=self.kind,
            base_url=self.base_url,
            model=model,
            state_key=self.state_key,
            label=self.label,
            key=self.key,
            key_prefix=key_prefix(self.key),
            preset=self.preset,
            is_shared=self.is_shared,
            allows_private=self.allows_private,
            requests_per_minute=self.requests_per_minute,
            status_page=self.status_page,
            price=self.price,
            is_listed=model in self.models,
        )


async def list_known(
    session: AsyncSession, vault: Vault, tenant_id: TenantId, *, is_default_tenant: bool, allows_private: bool
) -> list[Known]:
    """A tenant's own providers with their keys, the oldest first and those it shares last.

    A key that is off or cannot be opened is none.
    `allows_private`: whether the operator lets tenants name addresses of this machine and of private networks.
    """
    ordered = select(Provider).order_by(Provider.is_shared, Provider.created_at, Provider.id)
    rows = (await session.execute(ordered)).scalars().all()
    sealed = sealed_secrets(tenant_id).add_columns(Secret.name).where(Secret.kind == KEY_KIND, Secret.is_enabled)
    keys: dict[str, str] = {}
    for secret in await session.execute(sealed) if rows else ():
        try:
            keys[secret.name] = vault.open_row(tenant_id, secret).decode()
        except UnreadableSecret as error:
            log.error("provider.key_unreadable", provider_id=secret.name, error=error.message)
    return [
        Known(
            id=row.id,
            name=row.name,
            kind=cast("Kind", row.kind),
            base_url=row.base_url,
            models=tuple(row.models),
            is_default=row.is_default,
            is_shared=row.is_shared and is_default_tenant,
            state_key=str(row.id),
            # Two tenants may give the same name; one series must not mix them, nor show one's names to the other.
            label=row.name if is_default_tenant else f"{row.name}:{row.id.hex[-8:]}",
            is_enabled=row.is_enabled,
            key=keys.get(str(row.id)),
            preset=row.preset,
            requests_per_minute=row.requests_per_minute,
            status_page=row.status_page,
            price=price_of(row),
            allows_private=allows_private,
        )
        for row in rows
    ]


def price_of(row: Provider) -> Price | None:
    """What an administrator says a provider takes; None where nobody did."""
    if row.input_price_micro is None or row.output_price_micro is None:
        return None
    return Price(row.input_price_micro, row.output_price_micro)


def shared_of(known: Iterable[Known]) -> list[Known]:
    """What other tenants may use of the default tenant's providers; the first is their default if none is named."""
    shared = [one for one in known if one.is_shared]
    return sorted(shared, key=lambda one: not one.is_default)


def of_environment(settings: Settings) -> list[Known]:
    """The provider that the operator named with `PHAROS_LLM_*`, or nothing."""
    if settings.llm_model is None or (settings.llm_url is None and settings.llm_key is None):
        return []
    key = settings.llm_key.get_secret_value() if settings.llm_key else None
    preset = preset_of(settings.llm_url or PRESETS["openai"].base_url)
    # Another address or another key is another provider: it starts with a closed breaker and a full budget.
    mark = hashlib.sha256(f"{settings.llm_url}\n{key}".encode()).hexdigest()[:12]
    return [
        Known(
            id=None,
            name=ENVIRONMENT,
            kind="local" if key is None else preset.kind if preset is not None else "openai",
            base_url=settings.llm_url,
            models=(settings.llm_model,),
            is_default=True,
            is_shared=True,
            state_key=f"{ENVIRONMENT}:{mark}",
            label=ENVIRONMENT,
            key=key,
            preset=preset.name if preset is not None else None,
            status_page=preset.status_page if preset is not None else None,
            allows_private=True,  # the operator's own word
        )
    ]


def choose(known: Sequence[Known], *, wish: str | None = None, project: str | None = None) -> tuple[Candidate, ...]:
    """The candidates in the order of failover; `known` in the order of precedence: own, shared, the environment's.

    A project's setting comes first, then a wish (`provider/model` or a bare model), then the default. A model that was
    named is replaced by the same one elsewhere at most, the default by any; a local one by local ones alone: whoever
    chose it chose that nothing leaves the house. Raises `Unavailable` with `no_provider`, or with `llm_disabled` where
    only a key is missing; `NotFound` with `no_provider` for a wish that nobody offers: asking again does not help.
    """
    usable = [one for one in known if one.is_usable]
    if named := project or wish:
        first, model = _by_name(known, usable, named, refused=Unavailable if project else NotFound)
    else:
        first, model = _by_default(known, usable)
    others = [one for one in usable if one is not first and (one.kind == "local" or first.kind != "local")]
    fallbacks = [one.candidate(model) for one in others if model in one.models]
    if not named:
        fallbacks += [one.candidate(one.models[0]) for one in others if one.models]
    chosen = {(one.state_key, one.model): one for one in [first.candidate(model), *fallbacks]}
    return tuple(chosen.values())


def key_prefix(key: str | None) -> str:
    """The first characters of a key, by which people tell theirs apart; of a short one no more than a third."""
    return key[: min(PREFIX_CHARACTERS, len(key) // 3)] if key else ""


def _by_name(
    known: Sequence[Known], usable: Sequence[Known], wish: str, *, refused: type[PharosError]
) -> tuple[Known, str]:
    """`refused`: the kind of error where nobody offers it. A project's setting is not the asker's mistake."""
    provider, _, model = wish.partition("/")
    named = next((one for one in known if one.name == provider), None)
    if named is not None:  # else the slash, if any, is part of the model's own name
        model = model or (named.models[0] if named.models else "")
        if named.models and model not in named.models:
            words = f"{named.name} does not offer {model}: it has {', '.join(named.models)}."
            raise refused(words, code="no_provider")
        if not named.is_usable:
            raise _no_key(named)
        return named, model
    offering = [one for one in usable if wish in one.models]
    own = [one for one in offering if not one.is_shared]
    for choices in (own, [one for one in own if one.is_default], offering, [one for one in offering if one.is_default]):
        if len(choices) == 1:
            return choices[0], wish
    if offering:
        names = " and ".join(one.name for one in offering)
        raise _no_provider(f"{names} offer {wish}. Say which one: `{offering[0].name}/{wish}`.")
    if locked := next((one for one in known if wish in one.models), None):
        raise _no_key(locked)
    default = next((one for one in usable if one.is_default), None)
    if default is not None and not default.models:
        return default, wish
    words = f"No provider offers the model {wish}. `GET /providers/models` lists what there is."
    raise refused(words, code="no_provider")


def _by_default(known: Sequence[Known], usable: Sequence[Known]) -> tuple[Known, str]:
    default = next((one for one in usable if one.is_default and (one.models or one.kind == "local")), None)
    if default is not None and not default.models:  # nobody chose to have another asked in a local one's place
        raise _no_provider(f"{default.name} is the default and names no model. An administrator names one.")
    # An installation may share providers without a default of its own; its first one will do.
    default = default or next((one for one in usable if one.is_shared and one.models), None)
    if default is not None:
        return default, default.models[0]
    if locked := next((one for one in known if one.is_default and not one.is_usable), None):
        raise _no_key(locked)
    if known:
        raise _no_provider("No provider is the default. An administrator makes one: `pharos provider default NAME`.")
    raise _no_provider(
        "No model is configured. An administrator adds a provider at /admin/models, an engineer one for all at "
        "/engineer/providers, or the operator with `pharos provider add`."
    )


def _no_provider(message: str) -> Unavailable:
    return Unavailable(message, code="no_provider")


def _no_key(provider: Known) -> Unavailable:
    return Unavailable(
        f"{provider.name} has no key, or is switched off. An administrator enters one, or switches it on.",
        code="llm_disabled",
    )
