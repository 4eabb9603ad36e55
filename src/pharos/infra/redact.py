"""What is taken out of every log line before it is written: secrets by field and by shape, addresses of all kinds."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

SECRET_FIELDS = frozenset(
    {
        "access_token", "api_key", "authorization", "ciphertext", "cookie", "credentials", "csrf_token",
        "dsn", "encryption_key", "key", "new_password", "password", "private_key", "refresh_token", "secret",
        "secret_key", "session_token", "set-cookie", "setup_link", "signing_key", "token",
    }
)  # fmt: skip
PERSONAL_FIELDS = frozenset({"answer", "body", "content", "email", "e_mail", "input", "prompt", "question", "text"})
"""People's words and names: no line needs them."""
HIDDEN = "[redacted]"

Replace = Callable[[re.Match[str]], str]


def anonymise_ip(address: str) -> str:
    """An IPv4 address with its last octet 0, an IPv6 address cut to /48; anything else becomes "unknown".

    >>> anonymise_ip("192.168.17.45")
    '192.168.17.0'
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    ip = getattr(ip, "ipv4_mapped", None) or ip
    bits = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network((ip, bits), strict=False).network_address)


def redact(value: Any) -> Any:
    """The same value with what nobody should read in a log taken out, in texts at any depth."""
    if isinstance(value, str):
        for pattern, replacement in PATTERNS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {key: _redact_field(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(inner) for inner in value]
    return value if value is None or isinstance(value, int | float) else redact(str(value))


def _redact_field(name: object, value: Any) -> Any:
    field = str(name).lower()
    return HIDDEN if field in SECRET_FIELDS or field in PERSONAL_FIELDS else redact(value)


def _short_address(match: re.Match[str]) -> str:
    """Loopback stays: it names nobody, and "127.0.0.1 refused" is what an operator looks for."""
    try:
        ip = ipaddress.ip_address(match[0])
    except ValueError:
        return match[0]  # a time, a slice of code
    return match[0] if ip.is_loopback or ip.is_unspecified else anonymise_ip(match[0])


PATTERNS: tuple[tuple[re.Pattern[str], str | Replace], ...] = (
    # tokens of ours: sessions, refresh, API keys, one-time links, shares
    (re.compile(r"\bph[a-z]_[0-9a-f]{32}_[\w-]+"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?"), HIDDEN),  # JWT
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:sk|pk|rk)-[\w-]{16,}"), HIDDEN),  # keys of model providers
    (re.compile(r"\bAGE-SECRET-KEY-1[0-9A-Z]+"), HIDDEN),
    (re.compile(r"(?i)([?&](?:token|key|code|secret|password|sig|signature)=)[^&\s\"'<>]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(\w+://[^:/?#@\s]*):[^@/\s]+@"), rf"\1:{HIDDEN}@"),  # a password within an address
    # 43 characters are what 256 random bits are written in; hashes in hexadecimal have one case only
    (re.compile(r"(?<![\w/+-])(?=[\w-]*[a-z])(?=[\w-]*[A-Z])(?=[\w-]*\d)[\w-]{40,}"), HIDDEN),
    # Postgres and pydantic quote the row or the value they refuse
    (re.compile(r"(?m)(DETAIL|CONTEXT):\s.*$"), rf"\1: {HIDDEN}"),
    (re.compile(r"(input_value|input)=.*?(?=, input_type=|$)", re.MULTILINE), rf"\1={HIDDEN}"),
    (re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    (re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])"), _short_address),
    (re.compile(r"(?<![\w:.])[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*(?![\w:])"), _short_address),
)
