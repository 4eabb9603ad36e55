"""JSON lines: past-tense `noun.verb` events with fields; never content, secrets or full addresses."""

from __future__ import annotations

import ipaddress
import logging
import sys

import structlog

REDACTED_FIELDS = frozenset({"password", "token", "secret", "key", "authorization", "cookie", "api_key", "setup_link"})


def configure_logs(level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to stderr, one JSON object a line."""
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


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that may be made at import; it is configured when the process starts."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def anonymise_ip(address: str) -> str:
    """An IPv4 address with its last octet 0, an IPv6 address cut to /48; anything else becomes "unknown".

    >>> anonymise_ip("192.168.17.45")
    '192.168.17.0'
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    bits = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network((ip, bits), strict=False).network_address)


def _redact(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    for field in event.keys() & REDACTED_FIELDS:
        event[field] = "[redacted]"
    return event
