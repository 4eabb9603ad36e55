"""Providers as rows, and a world whose models may be on this machine and wait without waiting."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from pharos.infra.ids import TenantId, new_id
from pharos.providers.calls import Models
from pharos.providers.choice import KEY_KIND
from pharos.providers.models import Provider
from pharos.runtime import Runtime

KEY = "sk-lamp-0123456789abcdef"


@dataclass
class Waits:
    """What would have been slept, in seconds."""

    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def patient(runtime: Runtime, waits: Waits | None = None, **settings: Any) -> Runtime:
    """The same world in which tenants may name this machine; it notes its waits instead of waiting."""
    changed = runtime.settings.model_copy(update={"allow_private_providers": True, **settings})
    models = Models(changed, runtime.db, runtime.vault, sleep=waits or Waits())
    return replace(runtime, settings=changed, models=models)


async def make_provider(
    runtime: Runtime, tenant_id: TenantId, base_url: str, *, key: str | None = KEY, **columns: Any
) -> UUID:
    """A provider with its key in the vault; without a name of its own it gets a new one."""
    values: dict[str, Any] = {
        "name": f"lamp-{secrets.token_hex(3)}",
        "kind": "openai",
        "models": ["gpt-4o-mini"],
        "preset": "openai",
    }
    row = Provider(tenant_id=tenant_id, id=new_id(), base_url=base_url, **(values | columns))
    async with runtime.db.transaction(tenant_id) as session:
        session.add(row)
        if key is not None:
            await runtime.vault.seal(
                session, tenant_id=tenant_id, kind=KEY_KIND, name=str(row.id), text=key, shows_prefix=True
            )
    return row.id
