"""A tenant's keys and tokens over HTTP, for its administrators (C-35); a value goes in and never comes out."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pharos.identity import tenant_secrets
from pharos.identity.current import CurrentAdmin, CurrentRuntime
from pharos.infra.errors import Invalid

router = APIRouter(tags=["secrets"])


class TenantSecret(BaseModel):
    """A stored key: enough to tell it from another, not enough to use it."""

    model_config = ConfigDict(from_attributes=True)

    kind: str
    name: str
    prefix: str = Field(description="Its first characters, 10 at most.")
    length: int = Field(description="Its length in characters.")
    is_enabled: bool
    created_at: datetime
    rotated_at: datetime = Field(description="When its value was last entered.")
    last_used_at: datetime | None = Field(description="To the minute.")


class TenantSecrets(BaseModel):
    """All of a tenant's."""

    secrets: list[TenantSecret]


class SecretChange(BaseModel):
    """A new value, a switch, or both; a new value alone enables it."""

    model_config = ConfigDict(extra="forbid")

    value: SecretStr | None = None
    is_enabled: bool | None = None


@router.get("/secrets")
async def list_secrets(principal: CurrentAdmin, runtime: CurrentRuntime) -> TenantSecrets:
    """The tenant's keys with age and last use, without their values."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        found = await tenant_secrets.list_tenant_secrets(session, principal.tenant_id)
    return TenantSecrets(secrets=[TenantSecret.model_validate(secret) for secret in found])


@router.put("/secrets/{kind}/{name}")
async def put_secret(
    kind: str, name: str, body: SecretChange, principal: CurrentAdmin, runtime: CurrentRuntime
) -> TenantSecret:
    """Enter a key or its successor, or switch one off and on while it is kept.

    The kind is `github`; keys of models lie with their providers (`/providers/admin`).
    """
    if body.value is None and body.is_enabled is None:
        raise Invalid("Send `value`, `is_enabled` or both.", code="nothing_to_change")
    async with runtime.db.transaction(principal.tenant_id) as session:
        if body.value is not None:
            saved = await tenant_secrets.save_tenant_secret(
                session, runtime.vault, principal, kind=kind, name=name, value=body.value.get_secret_value()
            )
        if body.value is None or body.is_enabled is False:
            saved = await tenant_secrets.enable_tenant_secret(
                session, principal, kind=kind, name=name, is_enabled=bool(body.is_enabled)
            )
        return TenantSecret.model_validate(saved)


@router.delete("/secrets/{kind}/{name}", status_code=204)
async def delete_secret(kind: str, name: str, principal: CurrentAdmin, runtime: CurrentRuntime) -> None:
    """Delete a key; what needs it says so from the next request on."""
    async with runtime.db.transaction(principal.tenant_id) as session:
        await tenant_secrets.remove_tenant_secret(session, principal, kind=kind, name=name)
