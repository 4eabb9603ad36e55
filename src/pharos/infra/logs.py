"""JSON lines: past-tense `noun.verb` events with fields; never content, secrets or full addresses."""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pharos.infra.redact import redact

if TYPE_CHECKING:  # loaded with the first event: most commands log nothing, and it is a tenth of their start
    import structlog

KEPT = frozenset({"time", "level", "_record", "_from_structlog"})
"""What the logger itself puts into an event."""


def configure_logs(level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to stderr, one JSON object a line."""
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
    handler = logging.StreamHandler(sys.stderr)
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
