"""Providers as people manage them: added and changed after a live ping, made the default, removed; each audited.

Two scopes (C-35): a tenant's own are managed by its administrators, the shared ones, which lie in the default tenant,
by its engineers; neither sees the other's keys, not even their beginnings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from pharos.identity.audit import record_audit
from pharos.identity.model_managers import managed_scopes
from pharos.identity.principal import Principal
from pharos.identity.security import record_security_event
from pharos.infra.address_guard import check_address
from pharos.infra.errors import Conflict, Invalid, NotAllowed, NotFound, PharosError, Unavailable
from pharos.infra.ids import TenantId, new_id
from pharos.infra.models import Secret
from pharos.infra.vault import Vault
from pharos.providers.breaker import forget_states, reset_breakers
from pharos.providers.choice import KEY_KIND, Known, key_prefix, price_of
from pharos.providers.contract import Call, Kind
from pharos.providers.models import Provider, TenantModelSettings
from pharos.providers.presets import PRESETS, Preset, preset_of
from pharos.providers.shapes import check_key, check_models, check_name
from pharos.runtime import Runtime

FIELDS = (
    "name", "preset", "kind", "base_url", "models", "requests_per_minute", "status_page",
    "input_price_micro", "output_price_micro", "is_shared", "is_enabled",
)  # fmt: skip
OPTIONAL_FIELDS = ("preset", "requests_per_minute", "status_page")
PRICE_FIELDS = ("input_price_micro", "output_price_micro")
MOST_PRICE_MICRO = 10**12
NO_PRICE = -1
"""Takes a stated price away: 0 is one, of what costs nothing."""


@dataclass(frozen=True)
class Draft:
    """A provider as somebody enters it; None leaves a field as it is, or as the preset has it. A `status_page` of "",
    0 `requests_per_minute` and prices of `NO_PRICE` are none; both prices are stated or neither. Without a `preset` it
    is the one whose address is entered.

    `key`: None or empty keeps the present one, unless the address changes: a key goes to the address it was entered
    for and to no other. Nor do prices that are not stated with the new address.
    """

    name: str | None = None
    preset: str | None = None
    kind: Kind | None = None
    base_url: str | None = None
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    status_page: str | None = None
    input_price_micro: int | None = None
    output_price_micro: int | None = None
    is_shared: bool | None = None
    is_default: bool | None = None
    is_enabled: bool | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Saved:
    """A saved provider and its ping; None where there was nothing to ask, or nobody wanted it."""

    provider: Provider
    ping: Call | None


async def add_provider(runtime: Runtime, principal: Principal, draft: Draft, *, ping: bool = True) -> Saved:
    """Add a provider once it has answered. Raises `Invalid` with its words when it does not, `Conflict`, `NotAllowed`.

    The first one of a tenant becomes its default, and the first shared one that of all others.
    """
    preset = _preset(draft.preset) or preset_of(draft.base_url or "")
    await require_manager(runtime, principal, is_shared=bool(draft.is_shared))
    values: dict[str, Any] = {
        "name": "",
        "kind": "openai",
        "base_url": "",
        "models": [],
        "is_shared": False,
        "is_enabled": True,
    }
    values |= _of_preset(preset) | _changes(draft)
    check_name(values["name"])
    key = check_key(draft.key, preset=values.get("preset")) if draft.key and draft.key.strip() else None
    row = Provider(tenant_id=principal.tenant_id, id=new_id(), **values)
    _check_price(row)
    call = await _try_out(runtime, row, key, ping=ping)
    async with runtime.db.transaction(principal.tenant_id) as session:
        await _refuse_taken(session, row)
        has_default = await _has_default(session, is_shared=row.is_shared)
        session.add(row)
        await session.flush()
        await _keep_key(session, runtime.vault, principal, row, key)
        if draft.is_default or not has_default:
            await _make_default(session, row)
        await _record(session, principal, row, "added")
        await session.refresh(row)
    return Saved(row, call)


async def change_provider(
    runtime: Runtime, principal: Principal, provider_id: UUID, draft: Draft, *, ping: bool = True
) -> Saved:
    """Change what the draft names, once the provider has answered; raises as `add_provider` does.

    Raises `Conflict` where the address was changed while it was asked: the key would reach one it was not entered for.
    """
    old = await get_managed(runtime, principal, provider_id)
    rescoped = draft.is_shared is not None and draft.is_shared != old.is_shared
    if rescoped:
        await require_manager(runtime, principal, is_shared=True)
        await require_manager(runtime, principal, is_shared=False)
    changes = _changes(draft)
    moved = changes.get("base_url", old.base_url).rstrip("/") != old.base_url.rstrip("/")
    if moved and draft.preset is None:
        found = preset_of(changes["base_url"])
        changes["preset"] = found.name if found is not None else None
    if moved:  # another vendor has other prices
        changes = dict.fromkeys(name for name in PRICE_FIELDS if getattr(old, name) is not None) | changes
    row = Provider(**{column.name: getattr(old, column.name) for column in Provider.__table__.columns} | changes)
    _check_price(row)
    entered = check_key(draft.key, preset=row.preset) if draft.key and draft.key.strip() else None
    key = entered if entered or moved else await _present_key(runtime, old)
    is_another = bool(entered) or moved or row.kind != old.kind
    call = await _try_out(runtime, row, key, ping=ping and (is_another or row.models[:1] != old.models[:1]))
    async with runtime.db.transaction(principal.tenant_id) as session:
        await _refuse_taken(session, row)
        await _update_unmoved(session, row, old, changes | ({"is_default": False} if rescoped else {}))
        if entered or moved:
            await _keep_key(session, runtime.vault, principal, row, entered)
        if draft.is_default or (rescoped and not await _has_default(session, is_shared=row.is_shared)):
            await _make_default(session, row)
        await _record(session, principal, row, "changed", fields=sorted(changes), key_dropped=moved and not entered)
        saved = await session.get_one(Provider, (row.tenant_id, row.id), populate_existing=True)
    if is_another:
        await forget_states(runtime.db, [str(row.id)])
    return Saved(saved, call)


async def make_default(runtime: Runtime, principal: Principal, provider_id: UUID) -> Provider:
    """Let a provider answer wherever none is named, in place of the one before."""
    row = await get_managed(runtime, principal, provider_id)
    async with runtime.db.transaction(principal.tenant_id) as session:
        await _make_default(session, row)
        await _record(session, principal, row, "made_default")
    return row


async def remove_provider(runtime: Runtime, principal: Principal, provider_id: UUID) -> Provider:
    """Remove a provider and its key; nobody is called there from the next request on (LP-11)."""
    row = await get_managed(runtime, principal, provider_id)
    async with runtime.db.transaction(principal.tenant_id) as session:
        await _drop_key(session, row.id)
        await session.execute(delete(Provider).where(Provider.id == row.id))
        await _record(session, principal, row, "removed")
    await forget_states(runtime.db, [str(row.id)])
    return row


async def ping_provider(runtime: Runtime, principal: Principal, provider_id: UUID, *, model: str | None = None) -> Call:
    """Ask a provider for one word, now.

    Raises what it answers instead, with its own words, and `Conflict` when it lacks key or model.
    """
    row = await get_managed(runtime, principal, provider_id)
    key = await _present_key(runtime, row)
    model = model or next(iter(row.models), None)
    if model is None or (key is None and row.kind != "local"):
        raise Conflict(f"{row.name} has no {'key' if model else 'model'} yet. Enter one first.", code="llm_disabled")
    known = await _as_known(runtime, row, key)
    try:
        return await runtime.models.ping(TenantId(row.tenant_id), known.candidate(model))
    except PharosError as error:
        error.message += _said(error)
        raise


async def reset_breaker(runtime: Runtime, principal: Principal, provider_id: UUID) -> int:
    """Close a provider's breaker and end its pause; returns 1 where it was not closed, else 0."""
    row = await get_managed(runtime, principal, provider_id)
    return await reset_breakers(runtime.db, [str(row.id)])


async def list_managed(runtime: Runtime, principal: Principal) -> list[Provider]:
    """The providers of the principal's tenant that they may manage, by name."""
    scopes = await managed_scopes(runtime, principal)
    if not scopes:
        raise _not_yours()
    async with runtime.db.transaction(principal.tenant_id) as session:
        rows = (await session.execute(select(Provider).order_by(Provider.name))).scalars().all()
    return [row for row in rows if row.is_shared in scopes]


async def get_managed(runtime: Runtime, principal: Principal, provider_id: UUID) -> Provider:
    """A provider the principal may manage. Raises `NotFound`, also for one of the other scope, and `NotAllowed`."""
    found = next((row for row in await list_managed(runtime, principal) if row.id == provider_id), None)
    if found is None:
        raise NotFound("There is no such provider. `GET /providers/admin` lists them.", code="no_such_provider")
    return found


async def require_manager(runtime: Runtime, principal: Principal, *, is_shared: bool) -> None:
    """Raise `NotAllowed` unless the principal manages this scope."""
    if is_shared not in await managed_scopes(runtime, principal):
        raise _not_yours()


async def read_model_settings(runtime: Runtime, principal: Principal) -> TenantModelSettings:
    """What the tenant allows its members; the defaults while nobody has said anything."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = (await session.execute(select(TenantModelSettings))).scalar_one_or_none()
    return found or TenantModelSettings(tenant_id=principal.tenant_id, llm_enabled=True, use_shared_providers=True)


async def change_model_settings(runtime: Runtime, principal: Principal, changes: dict[str, Any]) -> TenantModelSettings:
    """Change switches and budgets from the next request on. Raises `NotAllowed`, `Invalid`."""
    await require_manager(runtime, principal, is_shared=False)
    present = await read_model_settings(runtime, principal)
    warn, stop = (changes.get(name, getattr(present, name)) for name in ("budget_warn_micro", "budget_stop_micro"))
    if (warn or 0) < 0 or (stop or 0) < 0 or (warn is not None and stop is not None and warn > stop):
        raise Invalid("A budget is not negative, and the warning comes before the stop.", code="bad_budget")
    async with runtime.db.transaction(principal.tenant_id) as session:
        if changes:
            row = insert(TenantModelSettings).values(tenant_id=principal.tenant_id, **changes)
            await session.execute(row.on_conflict_do_update(index_elements=["tenant_id"], set_=changes))
            await record_audit(
                session, principal, action="models.changed", subject=f"tenant:{principal.tenant_id}", **changes
            )
    return await read_model_settings(runtime, principal)


async def _try_out(runtime: Runtime, row: Provider, key: str | None, *, ping: bool) -> Call | None:
    """Ask the provider for one word as it would be saved; fills in its models where none were named.

    Raises `Invalid`, with the provider's own words for whoever enters it.
    """
    try:
        await check_address(row.base_url, allow_private=runtime.settings.allow_private_providers)
    except Unavailable:  # a name that nobody knows just now
        if ping:
            raise
    known = await _as_known(runtime, row, key)
    if not ping or not known.is_usable:
        return None
    try:
        if not row.models:
            row.models = (await runtime.models.list_models(known.candidate("")))[:1]
        if not row.models:
            raise Invalid("It offers no model. Name one.", code="no_such_model")
        return await runtime.models.ping(TenantId(row.tenant_id), known.candidate(row.models[0]))
    except PharosError as error:
        raise Invalid(f"Not saved. {error.message}{_said(error)}", code=error.code) from error


def _said(error: PharosError) -> str:
    """The provider's own words, for who manages it."""
    return f" It said: {error.cause_words}" if error.cause_words else ""


async def _as_known(runtime: Runtime, row: Provider, key: str | None) -> Known:
    is_default_tenant = row.tenant_id == await runtime.models.find_default_tenant()
    return Known(
        id=row.id,
        name=row.name,
        kind=cast("Kind", row.kind),
        base_url=row.base_url,
        models=tuple(row.models),
        is_default=False,
        is_shared=row.is_shared,
        state_key=str(row.id),
        label=row.name if is_default_tenant else f"{row.name}:{row.id.hex[-8:]}",
        key=key,
        preset=row.preset,
        price=price_of(row),
        allows_private=runtime.settings.allow_private_providers,
    )


def _of_preset(preset: Preset | None) -> dict[str, Any]:
    if preset is None:
        return {}
    known = {name: getattr(preset, name) for name in ("name", "kind", "base_url", "requests_per_minute", "status_page")}
    return known | {"preset": preset.name, "models": list(preset.models)}


def _changes(draft: Draft) -> dict[str, Any]:
    """The columns that the draft names, checked."""
    _preset(draft.preset)
    changes: dict[str, Any] = {name: value for name in FIELDS if (value := getattr(draft, name)) is not None}
    if draft.name is not None:
        check_name(draft.name)
    if draft.models is not None:
        changes["models"] = check_models(draft.models)
    emptied = {name: changes[name] or None for name in OPTIONAL_FIELDS if name in changes}
    unpriced = {name: None for name in PRICE_FIELDS if changes.get(name) == NO_PRICE}
    return changes | emptied | unpriced


def _preset(name: str | None) -> Preset | None:
    if name is None:
        return None
    if name not in PRESETS:
        raise Invalid(f"There is no preset “{name}”. There are {', '.join(PRESETS)}.", code="no_such_preset")
    return PRESETS[name]


def _check_price(row: Provider) -> None:
    if (row.input_price_micro is None) != (row.output_price_micro is None):
        raise Invalid("State both prices, of question and of answer; 0 is one, too.", code="bad_price")
    if any(not 0 <= (getattr(row, name) or 0) <= MOST_PRICE_MICRO for name in PRICE_FIELDS):
        raise Invalid(
            f"A price is 0 to {MOST_PRICE_MICRO // 1_000_000} dollars for a million tokens.", code="bad_price"
        )


async def _refuse_taken(session: AsyncSession, row: Provider) -> None:
    taken = select(Provider.id).where(Provider.name == row.name, Provider.id != row.id)
    if (await session.execute(taken)).first() is not None:
        raise Conflict(f"There is a provider “{row.name}” already. Choose another name.", code="provider_exists")


async def _present_key(runtime: Runtime, row: Provider) -> str | None:
    mine = select(Secret.id).where(Secret.kind == KEY_KIND, Secret.name == str(row.id), Secret.is_enabled)
    async with runtime.db.transaction(TenantId(row.tenant_id)) as session:
        secret_id = (await session.execute(mine)).scalar_one_or_none()
        if secret_id is None:
            return None
        return await runtime.vault.open(session, tenant_id=TenantId(row.tenant_id), secret_id=secret_id)


async def _keep_key(session: AsyncSession, vault: Vault, principal: Principal, row: Provider, key: str | None) -> None:
    """Store a new key, or drop the one there is; its beginning and length lie beside it."""
    if key is None:
        await _drop_key(session, row.id)
    else:
        await vault.seal(
            session, tenant_id=principal.tenant_id, kind=KEY_KIND, name=str(row.id), text=key, shows_prefix=True
        )
        await record_security_event(
            session,
            principal.tenant_id,
            event_type="secret_saved",
            severity="medium",
            user_id=principal.user_id,
            subject=f"provider:{row.name}",
        )
    shown = {"key_prefix": key_prefix(key), "key_length": len(key or "")}
    await session.execute(update(Provider).where(Provider.id == row.id).values(**shown))


async def _drop_key(session: AsyncSession, provider_id: UUID) -> None:
    await session.execute(delete(Secret).where(Secret.kind == KEY_KIND, Secret.name == str(provider_id)))


async def _has_default(session: AsyncSession, *, is_shared: bool) -> bool:
    found = select(func.count()).where(Provider.is_default, Provider.is_shared == is_shared)
    return bool((await session.execute(found)).scalar_one())


async def _make_default(session: AsyncSession, row: Provider) -> None:
    """In its own scope: what others share or keep is not this one's to change."""
    before = update(Provider).where(Provider.is_default, Provider.is_shared == row.is_shared, Provider.id != row.id)
    await session.execute(before.values(is_default=False))
    await session.execute(update(Provider).where(Provider.id == row.id).values(is_default=True))


async def _update_unmoved(session: AsyncSession, row: Provider, old: Provider, changes: dict[str, Any]) -> None:
    """Write the changes, if the address is still the one that was looked at; holds the row until the end."""
    there = update(Provider).where(Provider.id == row.id, Provider.base_url == old.base_url)
    written = there.values(**changes | {"models": row.models, "updated_at": func.now()}).returning(Provider.id)
    if (await session.execute(written)).first() is None:
        raise Conflict(
            f"{old.name} was changed or removed meanwhile. Look at it again, then save.", code="provider_changed"
        )


async def _record(session: AsyncSession, principal: Principal, row: Provider, what: str, **detail: object) -> None:
    subject = f"provider:{row.name}"
    await record_audit(session, principal, action=f"provider.{what}", subject=subject, **detail)


def _not_yours() -> NotAllowed:
    return NotAllowed(
        "A tenant's providers are for its administrators, the installation's for its engineers.", code="not_an_admin"
    )
