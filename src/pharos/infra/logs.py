"""JSON lines: past-tense `noun.verb` events with fields; never content, secrets or full addresses."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from pharos.infra.redact import redact

if TYPE_CHECKING:  # loaded with the first event: most commands log nothing, and it is a tenth of their start
    import structlog

KEPT = frozenset({"time", "level", "_record", "_from_structlog"})
"""What the logger itself puts into an event."""

_at_first_event: Callable[[], None] | None = None


def configure_at_first_event(configure: Callable[[], None]) -> None:
    """How a process that has not called `configure_logs` does it once it has something to log; most have nothing."""
    global _at_first_event  # noqa: PLW0603 - one process has one place for its logs
    _at_first_event = configure


def configure_logs(level: str = "INFO", *, stream: IO[str] | None = None) -> None:
    """Send structlog's and the standard library's records to stderr, or to `stream`, one JSON object a line."""
    import structlog

    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("uvicorn.access", "httpx", "procrastinate", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Logger:
    """A logger that may be made at import; it is configured when the process starts and bound by its first event."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return getattr(self._bound, method)

    @cached_property
    def _bound(self) -> structlog.stdlib.BoundLogger:
        import structlog

        if _at_first_event is not None and not structlog.is_configured():
            _at_first_event()
        logger: structlog.stdlib.BoundLogger = structlog.get_logger(self._name)
        return logger


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Events go to it as `log.info("noun.verbed", field=value)`."""
    return Logger(name)  # type: ignore[return-value]  # it passes everything on to one


def current_request_id() -> str:
    """The id of the request this is done for, or "" outside any: it goes along with jobs and to the embedder."""
    import structlog

    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def _redact(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    kept = {field: event[field] for field in KEPT & event.keys()}
    cleaned: structlog.types.EventDict = {**redact(dict(event)), **kept}
    return cleaned
