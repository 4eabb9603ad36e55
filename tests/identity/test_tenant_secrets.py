"""A tenant's keys: entered by administrators, shown by their first characters, gone at once when removed."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import select
from tests.make import MadeTenant

from pharos.identity.models import AuditEntry, SecurityEvent
from pharos.identity.tenant_secrets import open_tenant_secret
from pharos.infra.errors import Conflict
from pharos.runtime import Runtime

KEY = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyz"


async def opened(runtime: Runtime, tenant: MadeTenant, *, kind: str = "github", name: str = "openai") -> str:
    async with runtime.db.transaction(tenant.id) as session:
        return await open_tenant_secret(session, runtime.vault, tenant.id, kind=kind, name=name)


@pytest.mark.contract("LP-10", "SE-05")
async def test_an_administrator_enters_a_key_and_sees_only_its_beginning(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    answer = await as_admin.put("/secrets/github/openai", json={"value": f" {KEY}\n"})
    assert answer.status_code == 200
    (listed,) = (await as_admin.get("/secrets")).json()["secrets"]
    assert listed == answer.json()
    assert (listed["prefix"], listed["length"], listed["is_enabled"]) == (KEY[:10], len(KEY), True)
    assert (listed["last_used_at"], KEY in answer.text) == (None, False)
    assert await opened(runtime, tenant) == KEY
    used = (await as_admin.get("/secrets")).json()["secrets"][0]
    assert used["last_used_at"] is not None
    assert used["rotated_at"] == listed["rotated_at"]
    await as_admin.put("/secrets/github/openai", json={"value": KEY + "-2"})
    renewed = (await as_admin.get("/secrets")).json()["secrets"][0]
    assert renewed["rotated_at"] > listed["rotated_at"]


async def test_a_key_switched_off_is_kept_and_a_removed_one_is_gone(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    await as_admin.put("/secrets/github/openai", json={"value": KEY})
    assert (await as_admin.put("/secrets/github/openai", json={"is_enabled": False})).json()["prefix"] == KEY[:10]
    with pytest.raises(Conflict) as off:
        await opened(runtime, tenant)
    assert off.value.code == "no_github_token"
    await as_admin.put("/secrets/github/openai", json={"is_enabled": True})
    assert await opened(runtime, tenant) == KEY
    assert (await as_admin.delete("/secrets/github/openai")).status_code == 204
    with pytest.raises(Conflict):
        await opened(runtime, tenant)
    assert (await as_admin.delete("/secrets/github/openai")).status_code == 404


@pytest.mark.contract("SE-07")
@pytest.mark.contract("LP-13", part="stored for each tenant, and the words where it is missing")
async def test_without_a_github_token_features_say_so(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    with pytest.raises(Conflict, match="No GitHub token configured"):
        await opened(runtime, tenant, kind="github", name="default")
    await as_admin.put("/secrets/github/default", json={"value": "ghp_" + "a1" * 18})
    assert (await opened(runtime, tenant, kind="github", name="default")).startswith("ghp_")
    await as_admin.put("/secrets/github/default", json={"value": "ghp_" + "b2" * 18})
    assert "b2" in await opened(runtime, tenant, kind="github", name="default")


async def test_each_change_is_audited_without_the_value(
    as_admin: httpx.AsyncClient, runtime: Runtime, tenant: MadeTenant
) -> None:
    await as_admin.put("/secrets/github/openai", json={"value": KEY, "is_enabled": False})
    await as_admin.delete("/secrets/github/openai")
    async with runtime.db.transaction(tenant.id) as session:
        entries = (await session.execute(select(AuditEntry).order_by(AuditEntry.id))).scalars().all()
        events = (await session.execute(select(SecurityEvent))).scalars().all()
    actions = [entry.action for entry in entries if entry.action.startswith("secret.")]
    assert actions == ["secret.saved", "secret.disabled", "secret.removed"]
    assert {event.event_type for event in events} >= {"secret_saved", "secret_disabled", "secret_removed"}
    assert not any(KEY in str(entry.detail) + entry.subject for entry in entries)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/secrets/mail/x", {"value": KEY}, 404),
        ("/secrets/llm/openai", {"value": KEY}, 404),  # it lies with its provider, or nobody would use it
        ("/secrets/github/Open AI", {"value": KEY}, 422),
        ("/secrets/github/openai", {"value": "short"}, 422),
        ("/secrets/github/openai", {"value": "two words of a key"}, 422),
        ("/secrets/github/openai", {"value": "x" * 9000}, 422),
        ("/secrets/github/openai", {}, 422),
        ("/secrets/github/openai", {"is_enabled": True}, 404),
    ],
)
async def test_what_cannot_be_a_key_is_refused_and_not_repeated(
    as_admin: httpx.AsyncClient, path: str, body: dict[str, object], code: int
) -> None:
    answer = await as_admin.put(path, json=body)
    assert answer.status_code == code
    assert not any(str(value) in answer.text for value in body.values() if isinstance(value, str))
    assert (await as_admin.get("/secrets")).json() == {"secrets": []}


async def test_nobody_but_administrators_of_the_tenant_reaches_them(
    as_admin: httpx.AsyncClient, as_member: httpx.AsyncClient, as_stranger: httpx.AsyncClient
) -> None:
    await as_admin.put("/secrets/github/openai", json={"value": KEY})
    for method, path in (("GET", "/secrets"), ("PUT", "/secrets/github/openai"), ("DELETE", "/secrets/github/openai")):
        body = {"value": KEY} if method == "PUT" else None
        assert (await as_member.request(method, path, json=body)).status_code == 403
    assert (await as_stranger.get("/secrets")).json() == {"secrets": []}
    assert (await as_stranger.delete("/secrets/github/openai")).status_code == 404
