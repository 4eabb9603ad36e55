"""`GET /metrics`: what Prometheus collects. Not for the world: volumes and error rates tell about an organisation.

A program on this machine is let in without a word, which is how Prometheus asks; a request that a proxy has passed on
is not from this machine, whatever its peer's address is.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from pharos.identity.current import COOKIE, current_admin, current_visitor
from pharos.infra.errors import NotAllowed
from pharos.infra.metrics import CONTENT_TYPE, render_metrics

router = APIRouter(include_in_schema=False)

FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")


async def may_read_metrics(request: Request) -> None:
    """Let in this machine and administrators. Raises `NotAllowed` for anybody else, `NotSignedIn` for a bad token."""
    if is_of_this_machine(request):
        return
    if not ("authorization" in request.headers or COOKIE in request.cookies):
        raise NotAllowed(
            "Metrics are for this machine and for administrators. Ask from the machine itself and past the proxy, or "
            "send an administrator's token.",
            code="not_an_admin",
        )
    await current_admin((await current_visitor(request)).principal)


def is_of_this_machine(request: Request) -> bool:
    """Whether a program on this machine asks, directly and not through a proxy."""
    try:
        peer = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    peer = getattr(peer, "ipv4_mapped", None) or peer
    return peer.is_loopback and not any(name in request.headers for name in FORWARDED)


@router.get("/metrics")
@router.get("/api/v1/metrics")
async def metrics(_: Annotated[None, Depends(may_read_metrics)]) -> Response:
    """The series of this web process since its start, in Prometheus' text format."""
    return Response(render_metrics(), media_type=CONTENT_TYPE)
