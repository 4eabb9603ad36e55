"""What every command shares: options, output for a person or as JSON, and running its coroutine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)
error_console = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")]
TenantSlug = Annotated[str, typer.Option("--tenant", help="Slug of the tenant.")]
ProjectName = Annotated[str, typer.Option("--project", help="Name of the project.")]


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine to its end."""
    return asyncio.run(work)


def echo_json(value: object) -> None:
    """One JSON document on stdout; dataclasses become objects, ids and times strings."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False, indent=2) + "\n")


def echo_line(text: str) -> None:
    """A line for a person."""
    console.print(text, markup=False)


def echo_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Rows under headings, or the sentence `empty`."""
    if not rows:
        echo_line(empty)
        return
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(table)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
