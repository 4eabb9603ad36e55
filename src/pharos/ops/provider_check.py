"""What the last calls of each provider came to, for `pharos doctor`; nobody is called for it."""

from __future__ import annotations

from dataclasses import dataclass

from pharos.identity.tenants import DEFAULT_SLUG, list_tenants
from pharos.infra.errors import Unavailable
from pharos.infra.ids import TenantId
from pharos.providers.breaker import list_standings
from pharos.providers.choice import ENVIRONMENT, Known
from pharos.providers.spend import LastCall, list_last_calls
from pharos.runtime import Runtime


@dataclass(frozen=True)
class ProviderReport:
    """How many providers may be asked, and of each that does not answer a sentence with the next command."""

    number: int
    troubles: list[str]


async def check_providers(runtime: Runtime) -> ProviderReport:
    """All tenants' providers by their last call of the last days and by their breakers."""
    states = {one.key: one.state for one in await list_standings(runtime.db)}
    keys: set[str] = set()
    troubles: dict[str, str] = {}
    for tenant in await list_tenants(runtime):
        try:
            known = [one for one in await runtime.models.known(TenantId(tenant.id)) if one.is_usable]
        except Unavailable as off:
            if off.code != "llm_disabled":
                raise
            continue
        async with runtime.db.transaction(TenantId(tenant.id)) as session:
            last = {(call.provider, call.is_shared): call for call in await list_last_calls(session)}
        for one in known:
            keys.add(one.state_key)
            said = _trouble(one, tenant.slug, states.get(one.state_key), last.get((one.name, one.is_shared)))
            if said is not None:
                troubles.setdefault(one.state_key, said)
    return ProviderReport(len(keys), list(troubles.values()))


def _trouble(one: Known, slug: str, state: str | None, last: LastCall | None) -> str | None:
    home = DEFAULT_SLUG if one.is_shared else slug
    if state == "open":
        what = "failed too often and is left alone"
    elif last is not None and last.status != "ok":
        what = f"ended its last call with {last.status} ({last.at:%Y-%m-%d %H:%M} UTC)"
    else:
        return None
    if one.name == ENVIRONMENT:
        return f"The provider of PHAROS_LLM_URL {what}. Check PHAROS_LLM_URL, PHAROS_LLM_KEY and PHAROS_LLM_MODEL."
    return f"{one.name} {what}. Ask it: pharos provider test {one.name}" + (
        f" --tenant {home}" if home != DEFAULT_SLUG else ""
    )
