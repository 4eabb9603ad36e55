"""What every request gets: an id, a log line, safe headers, a limit, and errors in one shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import structlog
from pydantic import ValidationError
from starlette.requests import Request
from structlog.testing import capture_logs
from tests.conftest import open_client

from pharos.app import create_app
from pharos.identity.principal import Principal
from pharos.infra.db import create_database
from pharos.infra.http import MAX_BODY_BYTES, client_ip
from pharos.infra.settings import Settings
from pharos.runtime import Runtime


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The events as they are logged, with what is bound to the request."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        yield events


@pytest.mark.contract("LO-01")
async def test_one_line_a_request_names_its_route_and_never_its_address(
    as_member: httpx.AsyncClient, member: Principal, logged: list[Any]
) -> None:
    path = "/documents/018f0000-0000-7000-8000-000000000000?token=secret"
    answer = await as_member.get(path, headers={"X-Request-Id": "from-the-proxy"})
    (line,) = [event for event in logged if event["event"] == "request.answered"]
    assert (line["log_level"], line["status"], line["method"]) == ("info", 404, "GET")
    assert line["path"] == "/documents/{document_id}"
    assert 0 <= line["duration"] < 30
    assert (line["request_id"], line["tenant_id"]) == ("from-the-proxy", str(member.tenant_id))
    assert answer.headers["x-request-id"] == answer.json()["requestId"] == "from-the-proxy"
    assert "secret" not in str(logged)


@pytest.mark.contract("LO-02")
async def test_the_line_of_a_request_has_a_shortened_address(runtime: Runtime, logged: list[Any]) -> None:
    trusting = runtime.settings.model_copy(update={"trusted_proxies": "10.0.0.0/8"})
    async with open_client(replace(runtime, settings=trusting)) as client:
        for address in ("203.0.113.77", "2001:db8:1234:5678::9"):
            await client.get("/bootstrap/status", headers={"X-Forwarded-For": address})
    assert [event["ip"] for event in logged if event["event"] == "request.answered"] == [
        "203.0.113.0",
        "2001:db8:1234::",
    ]


@pytest.mark.contract("LO-03")
async def test_health_is_dropped_from_the_log_unless_it_is_ill(
    client: httpx.AsyncClient, runtime: Runtime, logged: list[Any]
) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/detailed", "/api/health", "/api/v1/health"):
        await client.get(path)
    assert [event for event in logged if event["event"] == "request.answered"] == []
    nowhere = create_database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1)
    async with open_client(replace(runtime, db=nowhere)) as ill:
        await ill.get("/health")
    assert [event["status"] for event in logged if event["event"] == "request.answered"] == [503]


@pytest.mark.parametrize("offered", ["", "short", "x" * 65, "with space 1234", "line\tbreak1234"])
async def test_an_id_of_doubtful_form_is_replaced(client: httpx.AsyncClient, offered: str) -> None:
    answer = await client.get("/health/live", headers={"X-Request-Id": offered})
    assert len(answer.headers["x-request-id"]) == 24


async def test_every_answer_has_safe_headers(client: httpx.AsyncClient, as_member: httpx.AsyncClient) -> None:
    for answer in (await client.get("/health"), await as_member.get("/projects"), await client.get("/nowhere")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_long_body_is_refused_before_anybody_reads_it(client: httpx.AsyncClient, is_declared: bool) -> None:
    body = b'{"email": "' + b"x" * MAX_BODY_BYTES + b'", "password": ""}'

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    headers = {"Content-Type": "application/json"}
    answer = await client.post("/auth/login", content=body if is_declared else pieces(), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "not_found"),
        ("PATCH", "/auth/login", None, 405, "method_not_allowed"),
        ("POST", "/auth/login", b"{", 422, "invalid"),
        ("POST", "/auth/login", b"{}", 422, "invalid"),
        ("GET", "/documents/not-an-id", None, 401, "not_signed_in"),
    ],
)
async def test_errors_have_one_shape(
    client: httpx.AsyncClient, *, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answer = await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json().keys() == {"error", "message", "requestId"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"email": oops', "The body is not JSON: it cannot be read from character 10 on."),
        (b"email=a@b.org", "The body is not JSON: it cannot be read from character 0 on."),
        (b'"a text"', "The body is no JSON object. Send one, with the header `Content-Type: application/json`."),
        (b"{}", "email: Field required."),
    ],
)
async def test_what_is_wrong_with_a_body_is_said_in_a_sentence(
    client: httpx.AsyncClient, body: bytes, words: str
) -> None:
    answer = await client.post("/auth/login", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["message"]) == (422, words)


async def test_an_id_in_no_form_of_ours_is_as_unknown_as_any_other(as_member: httpx.AsyncClient) -> None:
    for path in ("/projects/x", "/documents/x", "/users/x"):
        answer = await as_member.get(path)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert "UUID" not in answer.text
    made = await as_member.post("/groups", json={"name": "Crew", "departmentId": "x"})
    assert (made.status_code, made.json()["message"]) == (422, "departmentId: This is not an id.")


async def test_what_was_sent_is_not_echoed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/auth/login", json={"email": "a@b.org", "password": ["my secret password"]})
    assert answer.status_code == 422
    assert "my secret password" not in answer.text


async def test_a_database_that_is_gone_is_503_with_when_to_try_again(runtime: Runtime) -> None:
    nowhere = create_database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1)
    async with open_client(replace(runtime, db=nowhere)) as client:
        login = {"email": "a@b.org", "password": "whatever it is"}
        answer = await client.post("/auth/login", json=login)
        page = await client.get("/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.json()["error"]) == (503, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert "127.0.0.1" not in answer.text
    assert page.status_code in {303, 503}


async def test_a_defect_is_an_id_outside_and_a_traceback_inside(runtime: Runtime, logged: list[Any]) -> None:
    app = create_app(runtime.settings, runtime=runtime)

    @app.get("/defect")
    async def defect() -> None:
        msg = "the inner reason"
        raise RuntimeError(msg)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client:
        answer = await client.get("/defect")
    assert (answer.status_code, answer.json()["error"]) == (500, "internal")
    assert "the inner reason" not in answer.text
    (failed,) = [event for event in logged if event["event"] == "request.failed"]
    assert failed["request_id"] == answer.json()["requestId"]


@pytest.mark.contract("RL-10", part="a forwarded address counts from a trusted proxy only, read from the right")
@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "counted"),
    [
        ("", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.0/8", "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.0/8", "10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.0/8", "10.0.0.2", "192.0.2.8, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.0/8", "10.0.0.2", "198.51.100.1, 10.0.0.7", "198.51.100.1"),
        ("10.0.0.0/8", "10.0.0.2", "10.0.0.9", "10.0.0.9"),
        ("10.0.0.0/8", "10.0.0.2", "nonsense", "10.0.0.2"),
        ("10.0.0.0/8", "10.0.0.2", "", "10.0.0.2"),
        ("10.0.0.0/8, ::1/128", "::1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.0/8", "::ffff:10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("", "", "198.51.100.1", "unknown"),
    ],
)
def test_a_forwarded_address_is_believed_from_a_trusted_proxy_only(
    trusted: str, peer: str, forwarded: str, counted: str
) -> None:
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    request = Request({"type": "http", "client": (peer, 40000) if peer else None, "headers": headers})
    assert client_ip(request, Settings(_env_file=None, trusted_proxies=trusted)) == counted


def test_networks_of_proxies_that_are_none_stop_the_start() -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, trusted_proxies="10.0.0.0/8, the office")


async def test_a_text_that_the_database_cannot_hold_is_the_senders_and_not_logged(
    client: httpx.AsyncClient, as_admin: httpx.AsyncClient, logged: list[Any]
) -> None:
    sent = {"email": "canary\u0000@example.org", "password": "canary-password"}
    for answer in (
        await client.post("/auth/login", json=sent),
        await as_admin.post("/projects", json={"name": "canary\u0000"}),
    ):
        assert (answer.status_code, answer.json()["error"]) == (422, "bad_value")
        assert "canary" not in answer.text
    assert "canary" not in str(logged)
