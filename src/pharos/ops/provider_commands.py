"""`pharos provider` and `pharos breaker`: which models may be asked, from the machine."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from pharos.identity.principal import Principal
from pharos.identity.tenants import DEFAULT_SLUG, as_operator
from pharos.infra.errors import Invalid, NotFound
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, TenantSlug, echo_json, echo_line, echo_table, run_async
from pharos.ops import provider_changes
from pharos.ops.provider_changes import NO_PRICE, Draft, Saved
from pharos.ops.provider_report import (
    ManagedProvider,
    Offer,
    list_offers,
    managed_providers,
    read_tenant_spend,
    uncounted_models,
)
from pharos.providers.breaker import Standing, list_standings, reset_breakers
from pharos.providers.contract import Call
from pharos.providers.presets import PRESETS
from pharos.providers.spend import Spend, SpendLine, dollars
from pharos.runtime import Runtime, open_runtime

app = typer.Typer()
provider_app = typer.Typer(help="Where the models are that answer.", no_args_is_help=True)
breaker_app = typer.Typer(help="Providers that are left alone because they failed.", no_args_is_help=True)
app.add_typer(provider_app, name="provider")
app.add_typer(breaker_app, name="breaker")

Name = Annotated[str, typer.Argument(help="The provider's name.", show_default=False)]
MOST_DOLLARS = 10**9
NoPing = Annotated[bool, typer.Option("--no-ping", help="Save it without asking it for a word first.")]


@provider_app.command("add")
def add(
    name: Annotated[str | None, typer.Argument(help="Its name; the preset's own if left out.")] = None,
    *,
    preset: Annotated[str | None, typer.Option(help=f"What is known already: {', '.join(PRESETS)}.")] = None,
    url: Annotated[str | None, typer.Option(help="Base URL, such as http://127.0.0.1:11434/v1.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="openai (also of others), anthropic, or local: without a key.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it offers, the default first; may be repeated.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="The file its key lies in; `-` reads it from the input.")
    ] = None,
    per_minute: Annotated[int | None, typer.Option(min=0, help="Requests it takes in a minute; 0: no limit.")] = None,
    status_page: Annotated[str | None, typer.Option(help="Where outages are told; empty: nowhere.")] = None,
    input_price: Annotated[float | None, typer.Option(min=0, help="Dollars a million tokens of question.")] = None,
    output_price: Annotated[float | None, typer.Option(min=0, help="Dollars a million tokens of answer.")] = None,
    no_price: Annotated[bool, typer.Option("--no-price", help="Take stated prices away: the list's count.")] = False,
    shared: Annotated[bool, typer.Option("--shared", help="For all tenants of this installation.")] = False,
    enabled: Annotated[
        bool | None, typer.Option("--on/--off", help="Switched off it is kept with its key and not asked.")
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="It answers where none is named.")] = False,
    no_ping: NoPing = False,
    tenant: TenantSlug = DEFAULT_SLUG,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Add a provider, or change the one of this name; it is asked for one word before anything is saved.

    The key is asked for on a terminal. To change a provider, leave the key empty: it stays.
    """
    name = _name_or_preset(name, preset)
    if kind not in (None, "openai", "anthropic", "local"):
        raise Invalid(f"There is no kind “{kind}”. There are openai, anthropic and local.", code="bad_kind")
    prices = _prices(input_price, output_price, no_price=no_price)
    draft = Draft(
        name=name,
        preset=preset or (name if name in PRESETS else None),
        kind=kind,  # type: ignore[arg-type]  # checked above
        base_url=url,
        models=tuple(model) if model else None,
        requests_per_minute=per_minute,
        status_page=status_page,
        input_price_micro=prices[0],
        output_price_micro=prices[1],
        is_shared=shared or None,
        is_default=default or None,
        is_enabled=enabled,
        key=_read_key(key_file, needs_one=kind != "local" and _needs_key(preset or name)),
    )

    saved = run_async(_save(tenant, draft, ping=not no_ping, dry_run=dry_run))
    if saved is None:
        _tell("Nothing was changed.", as_json=as_json, name=name, dry_run=True)
        return
    ping = saved.ping
    words = f" It answered in {ping.seconds:.1f} s with {ping.model}." if ping is not None else " It was not asked."
    _tell(f"{name} is saved.{words}", as_json=as_json, name=name, pinged=ping is not None, models=saved.provider.models)


@provider_app.command("list")
def list_command(tenant: TenantSlug = DEFAULT_SLUG, as_json: AsJson = False) -> None:
    """What a tenant may ask, and of its own providers the beginning and the length of the key, never the key."""

    async def work() -> tuple[list[Offer], list[ManagedProvider]]:
        async with as_operator(tenant) as (runtime, me):
            return await list_offers(runtime, me), await managed_providers(runtime, me)

    offers, managed = run_async(work())
    rows = {one.provider.id: one.provider for one in managed}
    lines = []
    for offer in offers:
        row = rows.get(offer.id)
        lines.append(
            {
                "name": offer.name,
                "kind": offer.kind,
                "models": list(offer.models),
                "base_url": row.base_url if row is not None else None,
                "key_prefix": row.key_prefix if row is not None else None,
                "key_length": row.key_length if row is not None else None,
                "default": offer.is_chosen,
                "shared": offer.is_shared,
                "usable": offer.is_usable,
                "off": row is not None and not row.is_enabled,
                "breaker": offer.state,
                "input_price_micro": row.input_price_micro if row is not None else None,
                "output_price_micro": row.output_price_micro if row is not None else None,
                "unpriced": list(offer.unpriced),
            }
        )
    if as_json:
        echo_json({"providers": lines})
        return
    headings = ["provider", "models", "address", "key begins", "key length", "breaker", "", "$ a million tokens"]
    table = [
        [
            line["name"],
            ", ".join(line["models"]),
            line["base_url"],
            line["key_prefix"],
            line["key_length"],
            line["breaker"],
            " ".join(word for word in ("default", "shared", "off") if line[word]) + _lacks_key(line),
            _price(line),
        ]
        for line in lines
    ]
    echo_table(headings, table, empty="No provider yet: answers are quotations. `pharos provider add` adds one.")


@provider_app.command("test")
def ping_command(
    name: Name,
    model: Annotated[str | None, typer.Option(help="Another model than its default.")] = None,
    tenant: TenantSlug = DEFAULT_SLUG,
    as_json: AsJson = False,
) -> None:
    """Ask a provider for one word, past its breaker, and say what it answers."""

    async def work() -> Call:
        async with as_operator(tenant) as (runtime, me):
            found = await _named(runtime, me, name)
            return await provider_changes.ping_provider(runtime, me, found, model=model)

    call = run_async(work())
    seconds = round(call.seconds, 2)
    _tell(f"{name} answers: {call.model} in {seconds} s.", as_json=as_json, model=call.model, seconds=seconds)


@provider_app.command("remove")
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    tenant: TenantSlug = DEFAULT_SLUG,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove a provider and its key; nobody is called there from the next question on."""
    if not (yes or dry_run):
        typer.confirm(f"Remove {name} and its key?", abort=True)

    async def work() -> None:
        async with as_operator(tenant) as (runtime, me):
            found = await _named(runtime, me, name)
            if not dry_run:
                await provider_changes.remove_provider(runtime, me, found)

    run_async(work())
    words = "Nothing was changed." if dry_run else f"{name} is removed, with its key."
    _tell(words, as_json=as_json, name=name, dry_run=dry_run)


@provider_app.command("default")
def default_command(
    name: Name, tenant: TenantSlug = DEFAULT_SLUG, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Let a provider answer wherever none is named."""

    async def work() -> None:
        async with as_operator(tenant) as (runtime, me):
            found = await _named(runtime, me, name)
            if not dry_run:
                await provider_changes.make_default(runtime, me, found)

    run_async(work())
    words = "Nothing was changed." if dry_run else f"{name} is the default."
    _tell(words, as_json=as_json, name=name, dry_run=dry_run)


@provider_app.command("budget")
def budget_command(
    *,
    warn: Annotated[float | None, typer.Option(min=0, help="Dollars a month from which the log warns.")] = None,
    stop: Annotated[
        float | None, typer.Option(min=0, help="Dollars a month at which nobody is called any more.")
    ] = None,
    no_warn: Annotated[bool, typer.Option("--no-warn", help="Take the warning away.")] = False,
    no_stop: Annotated[bool, typer.Option("--no-stop", help="Take the bound away.")] = False,
    models: Annotated[bool | None, typer.Option("--models/--no-models", help="Switch models on or off.")] = None,
    shared: Annotated[bool | None, typer.Option("--shared/--no-shared", help="Allow the installation's ones.")] = None,
    tenant: TenantSlug = DEFAULT_SLUG,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Show what models cost a tenant this month, and set its budget and switches."""
    given = {
        "budget_warn_micro": _micro(warn),
        "budget_stop_micro": _micro(stop),
        "llm_enabled": models,
        "use_shared_providers": shared,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    gone = {"budget_warn_micro": no_warn, "budget_stop_micro": no_stop}
    changes |= {name: None for name, is_gone in gone.items() if is_gone}

    async def work() -> tuple[dict[str, Any], list[str], Spend, list[SpendLine]]:
        async with as_operator(tenant) as (runtime, me):
            if changes and not dry_run:
                await provider_changes.change_model_settings(runtime, me, changes)
            allowed = await provider_changes.read_model_settings(runtime, me)
            uncounted = uncounted_models(await list_offers(runtime, me))
            return {name: getattr(allowed, name) for name in given}, uncounted, *(await read_tenant_spend(runtime, me))

    allowed, uncounted, spend, lines = run_async(work())
    if as_json:
        spent = asdict(spend) | {"is_anomalous": spend.is_anomalous, "lines": [asdict(line) for line in lines]}
        echo_json({**allowed, "uncounted": uncounted, "spend": spent})
        return
    table = [[line.provider, line.model, line.calls, line.failed, _cost(line)] for line in lines]
    echo_table(["provider", "model", "calls", "failed", "cost"], table, empty="No model was called this month.")
    stop_micro = allowed["budget_stop_micro"]
    bound = "no bound" if stop_micro is None else dollars(stop_micro)
    if not allowed["llm_enabled"]:
        echo_line("Models are switched off here: `--models` switches them on.")
    if not allowed["use_shared_providers"]:
        echo_line("The installation's providers are not used here: `--shared` allows them.")
    echo_line(f"This month: {dollars(spend.month_micro)} of {bound}.")
    if spend.unpriced:
        echo_line(f"{spend.unpriced} calls have no known price and are not in it.")
    if uncounted:
        echo_line(f"No price is known of {', '.join(uncounted)}: a budget neither counts nor stops them.")
    if spend.is_anomalous:
        echo_line(f"Today is unlike the week before: {dollars(spend.today_micro)}.")


@breaker_app.command("list")
def list_breakers(as_json: AsJson = False) -> None:
    """How each provider fares that was ever called, for all processes together."""

    async def work() -> list[Standing]:
        async with open_runtime(Settings()) as runtime:
            return await list_standings(runtime.db)

    found = run_async(work())
    if as_json:
        echo_json({"breakers": [asdict(one) for one in found]})
        return
    rows = [
        [one.label, one.state, one.failures, one.tried_again_in_seconds, one.paused_seconds or None, one.requests_left]
        for one in found
    ]
    headings = ["provider", "state", "failures", "tried again in s", "asked to wait s", "requests left"]
    echo_table(headings, rows, empty="No provider was called yet.")


@breaker_app.command("reset")
def reset(
    name: Annotated[str | None, typer.Argument(help="A provider as `list` names it; all if left out.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Close breakers at once and forget that a provider asked to wait."""

    async def work() -> int:
        async with open_runtime(Settings()) as runtime:
            found = [one for one in await list_standings(runtime.db) if name in (None, one.label)]
            if name is not None and not found:
                raise NotFound(f"No provider “{name}” was called yet. `pharos breaker list` names them.")
            if dry_run:
                return sum(one.state != "closed" for one in found)
            return await reset_breakers(runtime.db, [one.key for one in found])

    closed = run_async(work())
    words = f"{closed} would be closed; nothing was changed." if dry_run else f"Closed: {closed}."
    _tell(words, as_json=as_json, closed=closed, dry_run=dry_run)


async def _save(tenant: str, draft: Draft, *, ping: bool, dry_run: bool) -> Saved | None:
    """Change the provider of this name, or add it."""
    async with as_operator(tenant) as (runtime, me):
        old = next((row for row in await provider_changes.list_managed(runtime, me) if row.name == draft.name), None)
        if dry_run:
            return None
        if old is not None:
            return await provider_changes.change_provider(runtime, me, old.id, draft, ping=ping)
        return await provider_changes.add_provider(runtime, me, draft, ping=ping)


async def _named(runtime: Runtime, me: Principal, name: str) -> UUID:
    rows = await provider_changes.list_managed(runtime, me)
    found = next((row.id for row in rows if row.name == name), None)
    if found is None:
        raise NotFound(f"There is no provider “{name}”. `pharos provider list` shows them.", code="no_such_provider")
    return found


def _cost(line: SpendLine) -> str:
    return "unknown" if line.unpriced == line.calls else dollars(line.cost_micro)


def _prices(of_question: float | None, of_answer: float | None, *, no_price: bool) -> tuple[int | None, int | None]:
    """In micro-dollars a million tokens; None leaves what is stated."""
    if not no_price:
        return _micro(of_question), _micro(of_answer)
    if of_question is not None or of_answer is not None:
        raise Invalid("`--no-price` takes away what the other two state: leave out one or them.", code="bad_price")
    return NO_PRICE, NO_PRICE


def _micro(dollar_amount: float | None) -> int | None:
    if dollar_amount is None:
        return None
    if not 0 <= dollar_amount <= MOST_DOLLARS:
        raise Invalid(f"An amount is 0 to {MOST_DOLLARS} dollars.", code="bad_amount")
    return round(dollar_amount * 1_000_000)


def _price(line: dict[str, Any]) -> str:
    """What was stated; nothing where the list knows it."""
    if line["input_price_micro"] is not None:
        return f"{line['input_price_micro'] / 1_000_000:g} / {line['output_price_micro'] / 1_000_000:g}"
    return "unknown, not counted" if line["unpriced"] else ""


def _lacks_key(line: dict[str, Any]) -> str:
    return "" if line["usable"] or line["off"] else " no key"


def _name_or_preset(name: str | None, preset: str | None) -> str:
    if name or preset:
        return name or preset or ""
    raise Invalid("Name the provider, or a preset: `pharos provider add --preset openai`.", code="bad_name")


def _needs_key(preset: str) -> bool:
    return preset not in PRESETS or PRESETS[preset].needs_key


def _read_key(file: Path | None, *, needs_one: bool) -> str | None:
    """A key is never an argument: the list of processes and the shell's history would show it."""
    if file is not None:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    if needs_one and sys.stdin.isatty():
        return str(typer.prompt("Key (empty keeps the present one)", default="", hide_input=True, show_default=False))
    return None


def _tell(words: str, *, as_json: bool, **facts: object) -> None:
    if as_json:
        echo_json(facts)
    else:
        echo_line(words)
