"""Logs are JSON and hold no addresses, secrets or content."""

from __future__ import annotations

import io
import json
import logging
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pharos.infra.logs import configure_logs, get_logger
from pharos.infra.redact import HIDDEN, anonymise_ip, redact

# the same in every process, so that all collect the same tests
RANDOM = "O1USdPvYawBN2VN1Vh-tC7bXHZaeMfGqxDKe8cfEoK8"
TENANT = uuid.UUID("018f0000-0000-7000-8000-000000000000")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the configured logs write."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    handlers, level, configured = list(root.handlers), root.level, structlog.get_config()
    configure_logs("INFO")
    structlog.configure(cache_logger_on_first_use=False)  # a logger that stays bound to this is heard by no later test
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.configure(**configured)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("2001:db8:1234:5678::9", "2001:db8:1234::"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
        ("::1", "::"),
        ("not an address", "unknown"),
    ],
)
@pytest.mark.contract("LO-02")
def test_an_address_is_shortened(address: str, shown: str) -> None:
    assert anonymise_ip(address) == shown


def test_a_record_is_one_json_object_with_secrets_taken_out(written: io.StringIO) -> None:
    get_logger("test").info("session.opened", token="t0p-s3cret", tenant="a")
    logging.getLogger("library").warning("from a library")
    said = lines(written)
    assert [line["event"] for line in said] == ["session.opened", "from a library"]
    assert said[0]["token"] == HIDDEN
    assert {"level", "time"} <= said[0].keys()


@pytest.mark.contract("LO-07", part="by shape, wherever in a line a secret stands")
@pytest.mark.parametrize(
    "secret",
    [
        *(f"ph{kind}_{TENANT.hex}_{RANDOM}" for kind in "saorl"),
        "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiIxMjMifQ.c2lnbmF0dXJlLWlzLWhlcmU",
        "sk-proj-0123456789abcdefABCDEF",
        "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQ",
        "aB3" + RANDOM,
        "somebody.else+tag@mail.example.org",
        "203.0.113.77",
        "2001:db8:1234:5678::9",
    ],
)
def test_a_secret_is_found_by_its_shape_in_fields_sentences_and_tracebacks(written: io.StringIO, secret: str) -> None:
    log = get_logger("test")
    log.warning("thing.refused", reason=f"it was '{secret}'.", nested={"list": [secret, 1]})
    logging.getLogger("library").warning("got %s from there", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("thing.failed")
    assert secret not in written.getvalue()
    assert len(lines(written)) == 3


@pytest.mark.contract("LO-07", part="credentials inside addresses and headers, and rows that Postgres quotes")
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {HIDDEN}"),
        ("postgresql://app:s3cret@db.internal/pharos", f"postgresql://app:{HIDDEN}@db.internal/pharos"),
        ("GET /onboarding/first-login?token=abc&x=1", f"GET /onboarding/first-login?token={HIDDEN}&x=1"),
        (
            "ERROR: duplicate key\nDETAIL:  Key (name)=(Salaries 2026) already exists.",
            f"ERROR: duplicate key\nDETAIL: {HIDDEN}",
        ),
        ("[type=int, input_value='my words', input_type=str]", f"[type=int, input_value={HIDDEN}, input_type=str]"),
    ],
)
def test_what_surrounds_a_secret_stays_readable(said: str, kept: str) -> None:
    assert redact(said) == kept


@pytest.mark.parametrize(
    "harmless",
    [
        "2026-11-21T07:23:34.123456+00:00",
        str(TENANT),
        "a9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "connection to 127.0.0.1:5432 refused, [::1]:5432 too",
        "/usr/lib/python3.11/site-packages/pharos/identity/sign_in.py",
        "pharos.identity.sign_in::open_session at 07:23:34",
        "version 18.4, 1.2.3",
        "texts[3:5] of {a: b}",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(harmless: str) -> None:
    assert redact(harmless) == harmless
