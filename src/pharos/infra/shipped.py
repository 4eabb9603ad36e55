"""Folders that ship with the product: beside the sources in a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def shipped_folder(name: str) -> Path:
    """The folder `docs/guide` for instance; pyproject's `force-include` puts it into the wheel as `_shipped/…`."""
    packed = PACKAGE / "_shipped" / name
    return packed if packed.exists() else PACKAGE.parent.parent / name
