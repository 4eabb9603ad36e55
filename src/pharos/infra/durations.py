"""Spans of time as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from pharos.infra.errors import Invalid

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
SPAN = re.compile(r"(\d{1,6})([smhd])")


def moment(text: str, *, now: datetime | None = None) -> datetime:
    """The moment that `90d`, `720h`, `15m`, `30s` ago or an ISO date or time names. Raises `Invalid`.

    >>> moment("1h", now=datetime(2026, 1, 1, 12, tzinfo=UTC)).isoformat()
    '2026-01-01T11:00:00+00:00'
    """
    span = SPAN.fullmatch(text)
    if span is not None:
        return (now or datetime.now(UTC)) - timedelta(**{UNITS[span[2]]: int(span[1])})
    try:
        named = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid(f"{text} is no time. Say 720h, 30d, 15m or 2026-01-31.", code="no_such_time") from error
    return named if named.tzinfo is not None else named.replace(tzinfo=UTC)
