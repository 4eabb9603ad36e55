"""What every command shares: options, output for a person or as JSON, and running its coroutine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pharos.infra.errors import Invalid

console = Console(highlight=False, soft_wrap=True)
error_console = Console(stderr=True, highlight=False, soft_wrap=True)

ID_WIDTH = 36
TEXT_WIDTH = 8
"""Of a column in a narrow terminal, below which a text cannot be read."""
PIPED_WIDTH = 10_000
"""What reads a pipe has no edge at which a line would have to end."""

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
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    least = 0
    for heading, cells in zip(headings, zip(*texts, strict=True), strict=True):
        # The next command wants an id whole and in one piece; a text can go on below.
        holds_ids = any(len(cell) == ID_WIDTH and _id_in(cell) for cell in cells)
        least += ID_WIDTH + 1 if holds_ids else TEXT_WIDTH + 1
        table.add_column(heading, no_wrap=holds_ids, min_width=ID_WIDTH if holds_ids else None, overflow="fold")
    for row_texts in texts:
        table.add_row(*(Text(cell) for cell in row_texts))
    width = max(console.width, least) if console.is_terminal else PIPED_WIDTH
    wide = Console(file=console.file, force_terminal=console.is_terminal, width=width, highlight=False, soft_wrap=True)
    with wide.capture() as drawn:
        wide.print(table)
    # In a log or a mail, each row would be as long as the longest.
    console.file.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def size_text(size_bytes: int) -> str:
    """A size for a person, in decimal units as disks are sold.

    >>> size_text(999), size_text(12_345_678)
    ('999 B', '12.3 MB')
    """
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def count_text(number: int, noun: str) -> str:
    """So many of something whose plural ends with an s.

    >>> count_text(1, "file"), count_text(0, "file")
    ('1 file', '0 files')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def time_text(seconds: float) -> str:
    """A duration for a person, in the two largest units.

    >>> time_text(41.64), time_text(245.3), time_text(7384)
    ('41.6 s', '4 min 5 s', '2 h 3 min')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def id_shown_by(command: str) -> Callable[[str], UUID]:
    """How an argument that is an id is read; whoever types something else is led to the command that shows ids."""

    def read(text: str) -> UUID:
        if (found := _id_in(text)) is None:
            raise Invalid(f"“{text}” is no id. `{command}` shows them; an id is typed whole.", code="bad_id")
        return found

    return read


def _id_in(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
