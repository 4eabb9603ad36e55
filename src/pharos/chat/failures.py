"""What ails a turn, on its way from the process that answers to whoever listens: an error as told data, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pharos.identity.model_managers import ENGINEER_ROLES
from pharos.identity.principal import Principal
from pharos.infra.errors import Conflict, Invalid, LimitReached, NotAllowed, NotFound, PharosError, Unavailable

KINDS: dict[int, type[PharosError]] = {
    kind.http_status: kind for kind in (Invalid, NotFound, NotAllowed, Conflict, LimitReached, Unavailable)
}


def told_failure(error: PharosError, principal: Principal, *, message: str | None = None) -> dict[str, object]:
    """The data of the event `error`; where a provider tells about its outages is for engineers (LP-19)."""
    told: dict[str, object] = {"error": error.code, "message": message or error.message, "status": error.http_status}
    if error.retry_after_seconds is not None:
        told["retry_after_seconds"] = math.ceil(error.retry_after_seconds)
    if principal.platform_role in ENGINEER_ROLES and (page := error.details.get("status_page")):
        told["status_page"] = page
    return told


def failure_of(told: Mapping[str, Any]) -> PharosError:
    """The error that such data stands for."""
    kind = KINDS.get(told.get("status", Unavailable.http_status), Unavailable)
    details = {"statusPage": told["status_page"]} if "status_page" in told else {}
    return kind(
        str(told["message"]), code=str(told["error"]), retry_after_seconds=told.get("retry_after_seconds"), **details
    )
