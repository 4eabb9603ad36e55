"""Logs are JSON and hold no addresses, secrets or content."""

from __future__ import annotations

import json
import logging

import pytest

from pharos.infra.logs import anonymise_ip, configure_logs, get_logger


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("2001:db8:1234:5678::9", "2001:db8:1234::"),
        ("::1", "::"),
        ("not an address", "unknown"),
    ],
)
@pytest.mark.contract("LO-02", part="the function; the request log has its own test")
def test_an_address_is_shortened(address: str, shown: str) -> None:
    assert anonymise_ip(address) == shown


def test_a_record_is_one_json_object_with_secrets_taken_out(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure_logs("INFO")
        get_logger("test").info("session.opened", token="t0p-s3cret", tenant="a")
        logging.getLogger("library").warning("from a library")
    finally:
        root.handlers[:], root.level = handlers, level
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["session.opened", "from a library"]
    assert lines[0]["token"] == "[redacted]"
    assert {"level", "time"} <= lines[0].keys()
