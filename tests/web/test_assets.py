"""What the pages load from npm is pinned by hash, names no registry, and is there after `make setup`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pharos.web.html import STATIC

ROOT = Path(__file__).parents[2]


def test_every_package_is_pinned_by_hash_and_names_no_registry() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name


def test_exact_versions_are_asked_for() -> None:
    asked = json.loads((ROOT / "package.json").read_text())["dependencies"]
    assert [version for version in asked.values() if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []


def test_the_vendored_files_are_those_of_the_lock() -> None:
    stamp = (STATIC / "vendor" / "lock.sha256").read_text()
    assert stamp == hashlib.sha256((ROOT / "package-lock.json").read_bytes()).hexdigest()
    assert (STATIC / "vendor" / "htmx.min.js").stat().st_size > 10_000


def test_no_source_file_of_the_pages_is_long() -> None:
    for path in [*STATIC.glob("*.css"), *STATIC.glob("*.js")]:
        assert len(path.read_text("utf-8").splitlines()) <= 600, path
