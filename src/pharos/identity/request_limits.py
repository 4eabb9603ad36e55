"""How often a caller may ask over HTTP: by person, else by API key, else by address (RL-01).

Counted are the routes of the API. Not counted are pages and what they poll, static files, health and metrics, and the
upload of documents, which come in batches and are bounded by their size and by the queue (C-34).
"""

from __future__ import annotations

import re

from fastapi import Request

from pharos.identity.principal import Principal
from pharos.infra.http import client_ip
from pharos.infra.limits import GENERAL, Policy, ip_subject
from pharos.runtime import Runtime

UPLOAD_ROUTE = re.compile(r"/projects/\{[^}]+\}/documents")


async def count_request(request: Request, runtime: Runtime, principal: Principal | None) -> None:
    """Count one request of an API route under the general limit. Raises `LimitReached`."""
    route = request.scope.get("route")
    is_upload = request.method == "POST" and UPLOAD_ROUTE.fullmatch(getattr(route, "path", "")) is not None
    if getattr(route, "include_in_schema", True) and not is_upload:
        await count_try(request, runtime, GENERAL, principal)


async def count_try(request: Request, runtime: Runtime, policy: Policy, principal: Principal | None) -> None:
    """Count one try of whoever asks under `policy`. Raises `LimitReached`."""
    await runtime.limits.hit(policy, limit_subject(principal) or ip_subject(client_ip(request, runtime.settings)))


def limit_subject(principal: Principal | None) -> str | None:
    """Whose hits these are, whatever the tenant; None for a guest or nobody, who are only an address."""
    if principal is None:
        return None
    if principal.user_id is not None:
        return f"user:{principal.user_id}"
    return f"{principal.tenant_id}:{principal.name}" if principal.kind == "program" else None
