"""Metrics: who may read them, what they count, and that no label learns anything about anybody."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from tests.conftest import open_client
from tests.make import MadeTenant, make_token

from pharos.app import create_app
from pharos.identity.principal import Principal
from pharos.infra.errors import LimitReached
from pharos.infra.limits import GENERAL, ip_subject
from pharos.infra.metrics import REGISTRY, render_metrics
from pharos.runtime import Runtime

PATHS = ("/metrics", "/api/v1/metrics")
ELSEWHERE = "203.0.113.7"


@asynccontextmanager
async def asking_from(runtime: Runtime, address: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(runtime.settings, runtime=runtime), client=(address, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


def series_of(text: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Every series with its labels, whatever it counts."""
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


def answered(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return REGISTRY.get_sample_value("http_requests_total", labels) or 0


def timed(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status_code": str(status)}
    return REGISTRY.get_sample_value("pharos_http_request_duration_seconds_count", labels) or 0


@pytest.mark.contract("ME-01")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_reads_the_same_series_at_both_addresses(runtime: Runtime, address: str) -> None:
    async with asking_from(runtime, address) as here:
        one, other = [await here.get(path) for path in PATHS]
    assert {one.status_code, other.status_code} == {200}
    assert one.headers["content-type"] == other.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = [{family.name for family in text_string_to_metric_families(reply.text)} for reply in (one, other)]
    assert families[0] == families[1]
    assert {"http_requests", "pharos_rate_limit_hits", "pharos_rate_limit_failed_open"} <= families[0]


@pytest.mark.contract("ME-03", part="the runbook's own prefix")
async def test_series_of_ours_are_there_under_another_prefix_where_one_is_named(runtime: Runtime) -> None:
    named = replace(runtime, settings=runtime.settings.model_copy(update={"metrics_aliases": "nyxcore"}))
    async with asking_from(named, "127.0.0.1") as here:
        text = (await here.get("/metrics")).text
    families = {family.name for family in text_string_to_metric_families(text)}
    ours = {name for name in families if name.startswith("pharos_")}
    assert {"pharos_llm_call_duration_seconds", "pharos_llm_calls", "pharos_llm_tokens", "pharos_llm_cost_usd"} <= ours
    assert {name.replace("pharos_", "nyxcore_", 1) for name in ours} <= families
    assert not any(name.startswith("nyxcore_rag") for name in families)


@pytest.mark.contract("ME-02", part="closed to all but this machine and administrators; Basic auth comes later")
@pytest.mark.parametrize("path", PATHS)
async def test_nobody_else_reads_them(
    runtime: Runtime, tenant: MadeTenant, member: Principal, as_member: httpx.AsyncClient, path: str
) -> None:
    async with asking_from(runtime, ELSEWHERE) as nobody:
        assert (await nobody.get(path)).status_code == 403
        wrong = await nobody.get(path, headers={"Authorization": "Bearer nonsense"})
        key = await nobody.get(path, headers={"X-API-Key": "pha_0_nonsense"})
        right = await nobody.get(path, headers={"Authorization": f"Bearer {await make_token(runtime, tenant.admin)}"})
    assert (wrong.status_code, key.status_code, right.status_code) == (401, 403, 200)
    refused = await as_member.get(path)
    assert (refused.status_code, refused.json()["error"]) == (403, "not_an_admin")
    assert "http_requests_total" not in refused.text


@pytest.mark.contract("ME-02", part="closed to all but this machine and administrators; Basic auth comes later")
@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Forwarded", "Via"]
)
@pytest.mark.parametrize("trusted", ["", "127.0.0.0/8"])
async def test_what_a_proxy_of_this_machine_passes_on_is_not_of_this_machine(
    runtime: Runtime, header: str, trusted: str
) -> None:
    settings = runtime.settings.model_copy(update={"trusted_proxies": trusted})
    async with asking_from(replace(runtime, settings=settings), "127.0.0.1") as proxy:
        assert (await proxy.get("/metrics", headers={header: "127.0.0.1"})).status_code == 403


@pytest.mark.contract("LO-03", part="metrics are read without a line in the log")
async def test_reading_them_is_neither_limited_nor_logged(runtime: Runtime) -> None:
    address = f"127.0.{secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"  # this machine, and no other test's
    for _ in range(GENERAL.hits):
        await runtime.limits.hit(GENERAL, ip_subject(address))
    with pytest.raises(LimitReached):
        await runtime.limits.hit(GENERAL, ip_subject(address))
    async with asking_from(runtime, address) as here:
        with capture_logs() as events:
            statuses = [(await here.get("/metrics")).status_code for _ in range(2)]
    assert statuses == [200, 200]
    assert [event for event in events if event["event"] == "request.answered"] == []


@pytest.mark.contract("ME-12")
@pytest.mark.contract("ME-11", part="the histogram; the route is the template, never the raw path")
async def test_every_answer_is_counted_and_timed_under_its_routes_template(as_member: httpx.AsyncClient) -> None:
    known = {
        ("GET", "/documents/{document_id}", 404): "/documents/018f0000-0000-7000-8000-000000000000?token=secret",
        ("GET", "/health/live", 200): "/health/live",
        ("GET", "unknown", 404): f"/{secrets.token_hex(8)}",
    }
    before = {key: (answered(*key), timed(*key)) for key in known}
    for (method, _, _), path in known.items():
        await as_member.request(method, path)
    assert {key: (answered(*key), timed(*key)) for key in known} == {
        key: (count + 1, times + 1) for key, (count, times) in before.items()
    }


@pytest.mark.contract("LO-07", part="no metric has a label that came from outside")
async def test_no_label_learns_anything_from_a_request(runtime: Runtime, tenant: MadeTenant) -> None:
    word = f"canary{secrets.token_hex(8)}"
    email, ident = f"{word}@example.org", "018f0000-0000-7000-8000-0123456789ab"
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/auth/login", {"json": {"email": email, "password": word}}),
        ("GET", f"/auth/session?token={word}", {"headers": {"Authorization": f"Bearer {word}"}}),
        ("GET", f"/documents/{ident}", {"headers": {"X-Forwarded-For": ELSEWHERE}}),
        ("GET", f"/api/v1/share/phl_{ident}_{word}", {}),
        ("GET", f"/{word}/static/{word}", {}),
        ("GET", f"/static/{word}.css", {}),
        (word.upper(), "/projects", {}),
        ("DELETE", f"/users/{email}", {"headers": {"Cookie": f"pharos_session={word}"}}),
    ]
    before, strange = series_of(render_metrics().decode()), answered("other", "/projects", 405)
    async with asking_from(runtime, ELSEWHERE) as client:
        for method, path, extra in asked:
            await client.request(method, path, **extra)
    async with open_client(runtime, tenant.admin) as admin:
        await admin.get(f"/projects/{ident}")
    text = render_metrics().decode()
    for secret in (word, word.upper(), ident, ELSEWHERE, str(tenant.id), str(tenant.admin.user_id)):
        assert secret not in text
    new = series_of(text) - before
    assert answered("other", "/projects", 405) > strange, "the canary lives: its request was counted"
    assert {name for _, labels in new for name, _ in labels} <= {"method", "route", "status", "status_code", "le"}
    routes = {dict(labels)["route"] for _, labels in new}
    assert routes <= {
        "/auth/login",
        "/auth/session",
        "/documents/{document_id}",
        "/api/v1/share/{token}",
        "/static",
        "/projects",
        "/users/{user_id}",
        "/projects/{project_id}",
    }
    assert {dict(labels)["method"] for _, labels in new} <= {"GET", "POST", "DELETE", "other"}
