"""The API's description is a promise: a change to it is seen in a review, never by accident.

`UPDATE=1 make test T=tests/test_openapi.py` writes it anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx

from pharos.app import create_app
from pharos.infra.settings import Settings

SNAPSHOT = Path(__file__).parent / "openapi.json"
OPEN_TO_ALL = {
    "/health", "/health/live", "/health/ready", "/health/detailed", "/health/stream", "/api/health", "/api/v1/health",
    "/bootstrap/status", "/bootstrap/init", "/auth/login", "/auth/token", "/auth/refresh",
    "/api/auth/magic-link/request", "/api/auth/magic-link/verify", "/api/auth/session", "/auth/password/forgot",
    "/auth/password/reset", "/auth/email/confirm", "/invitations/accept",
    "/api/v1/share/{token}", "/api/v1/share/{token}/questions", "/api/v1/share/{token}/stream",
    "/api/v1/share/{token}/turns/{turn_id}/events", "/api/v1/share/{token}/turns/{turn_id}/stop",
}  # fmt: skip


def described() -> dict[str, Any]:
    app = create_app(Settings(_env_file=None))
    description = app.openapi()
    description["info"]["version"] = "any"
    return description


def test_the_api_is_what_was_promised() -> None:
    found = json.dumps(described(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE"):
        SNAPSHOT.write_text(found)
    assert found == SNAPSHOT.read_text(), "UPDATE=1 writes tests/openapi.json anew; read the difference"


async def test_every_other_route_knows_who_asks(client: httpx.AsyncClient) -> None:
    nowhere = "018f0000-0000-7000-8000-000000000000"
    for path, methods in described()["paths"].items():
        if path in OPEN_TO_ALL:
            continue
        for method in methods:
            url = re.sub(r"\{[^}]+\}", nowhere, path)
            answer = await client.request(method.upper(), url)
            assert answer.status_code == 401, (method, path, answer.status_code)
