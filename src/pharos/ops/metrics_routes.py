"""`GET /metrics`: what Prometheus collects. Not for the world: volumes and error rates tell about an organisation.

A program on this machine is let in without a word, which is how Prometheus asks; a request that a proxy has passed on
is not from this machine, whatever its peer's address is.
"""

from __future__ import annotations

import ipaddress
import math
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from pharos.identity.current import COOKIE, CurrentRuntime, current_admin, current_visitor
from pharos.infra.errors import NotAllowed, PharosError
from pharos.infra.limits import POLICIES
from pharos.infra.logs import get_logger
from pharos.infra.metrics import (
    BACKUP_AGE,
    BACKUP_NOTICES,
    CONTENT_TYPE,
    DISK_FREE,
    DISK_TOTAL,
    DRILL_AGE,
    LIMIT_HITS,
    LIMITS_FAILED_OPEN,
    OFFSITE_AGE,
    RESTORE_SECONDS,
    render_metrics,
    show_from_start,
)
from pharos.ops.standing import CODES, Standing, read_standing
from pharos.providers.breaker import note_standings

log = get_logger(__name__)

router = APIRouter(include_in_schema=False)

show_from_start(LIMIT_HITS, (policy.name for policy in POLICIES))
show_from_start(LIMITS_FAILED_OPEN, (policy.name for policy in POLICIES if policy.when_store_is_gone == "open"))

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
async def metrics(_: Annotated[None, Depends(may_read_metrics)], runtime: CurrentRuntime) -> Response:
    """The series of this web process since its start, how backups and providers stand, in Prometheus' text format."""
    try:
        note_standing(await read_standing(runtime))
        await note_standings(runtime.db)
    except (SQLAlchemyError, PharosError, OSError) as error:
        # Whoever collects must get the other series just then; the age goes on from its last value.
        log.warning("metrics.no_standing", error=type(error).__name__)
    return Response(render_metrics(runtime.settings.metric_prefixes), media_type=CONTENT_TYPE)


def note_standing(standing: Standing) -> None:
    """Put how backups and disks stand into the series that alerts read (AL-10)."""
    good, elsewhere = standing.good, standing.elsewhere
    passed = max((drill.started_at for drill in standing.drills if drill.passed), default=None)
    for gauge, moment in (
        (BACKUP_AGE, good.made_at if good is not None else None),
        (OFFSITE_AGE, elsewhere.made_at if elsewhere is not None else None),
        (DRILL_AGE, passed),
    ):
        gauge.set((standing.at - moment).total_seconds() if moment is not None else math.nan)
    RESTORE_SECONDS.set(math.nan if standing.restore_seconds is None else standing.restore_seconds)
    for disk in standing.disks:
        for name in disk.holds:
            DISK_FREE.labels(name).set(disk.free_bytes)
            DISK_TOTAL.labels(name).set(disk.total_bytes)
    present = {notice.code for notice in standing.notices}
    for code in CODES:
        BACKUP_NOTICES.labels(code).set(code in present)
