"""No credential lies in the repository: every tracked file is looked through for the shapes they have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHAPES = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{100,}"
    rb"|\bAKIA[0-9A-Z]{16}\b"
    rb"|\b(?:ghp|gho|ghs|ghr|github_pat)_[A-Za-z0-9_]{36,}"
    rb"|\bxox[abprs]-[0-9A-Za-z-]{24,}"
    rb"|\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}"
    rb"|\b[rs]k_live_[0-9A-Za-z]{24,}"
    rb"|\bAGE-SECRET-KEY-1[0-9A-Z]{58}"
    rb"|\bph[akrs]_[0-9a-f]{32}_[\w-]{40,}"
    rb"|\beyJ[\w-]{16,}\.eyJ[\w-]{16,}\.[\w-]{20,}"
)
MADE_UP = re.compile(rb"0123456789|example|(.)\1{7}", re.IGNORECASE)
"""What no generator makes: a test's own value says by this that it opens nothing."""


def find_secrets(content: bytes) -> list[bytes]:
    """Credentials in the text of a file, cut short so that a report does not repeat them."""
    return [found[0][:12] for found in SHAPES.finditer(content) if not MADE_UP.search(found[0])]


@pytest.mark.contract("AU-05", part="none is in the repository")
def test_no_tracked_file_holds_a_credential() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)): secrets for file in files if (secrets := find_secrets(file.read_bytes()))}
    assert found == {}


@pytest.mark.parametrize(
    "planted",
    [
        "-----BEGIN " + "PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B" * 6,
        "AK" + "IAQZ7RTPLM4KXW9VBN",
        "gh" + "p_" + "aB3xY9kLmQ2wE7rT5uI1oP4sD6fG8hJ0zXcV",
        "s" + "k-proj-" + "aB3xY9kLmQ2wE7rT5uI1oP4sD6fG8hJ0zXcVbN",
    ],
)
def test_a_planted_credential_is_found(planted: str) -> None:
    assert find_secrets(f"key = '{planted}'".encode())
