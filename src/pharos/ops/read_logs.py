"""Reading the parts' logs: the current file and those set aside, as lines with a time and a level."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from heapq import merge
from pathlib import Path
from typing import IO

from pharos.ops.log_files import log_file

LEVELS = ("debug", "info", "warning", "error", "critical")
POSTGRES_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) UTC .*?\b([A-Z]+[0-9]?): ")
POSTGRES_LEVELS = {"WARNING": "warning", "ERROR": "error", "FATAL": "critical", "PANIC": "critical"}
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class LogLine:
    """`time` and `level` of a line that says neither, such as a traceback's, are those of the line before."""

    part: str
    time: datetime
    level: str
    request_id: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """Which lines: not older than `since`, at least of `level`, of one request; None asks for no such thing."""

    since: datetime | None = None
    level: str | None = None
    request_id: str | None = None

    def __contains__(self, line: LogLine) -> bool:
        is_recent = self.since is None or line.time >= self.since
        is_grave = self.level is None or LEVELS.index(line.level) >= LEVELS.index(self.level)
        return is_recent and is_grave and self.request_id in {None, line.request_id}


def read_lines(data_dir: Path, parts: Sequence[str], wanted: Wanted) -> Iterator[LogLine]:
    """The wanted lines of these parts in the order of their times, from the oldest file kept."""
    return merge(*(_read_part(data_dir, part, wanted) for part in parts), key=lambda line: line.time)


def ends_of(data_dir: Path, parts: Sequence[str]) -> dict[str, int]:
    """Where each part's current file ends now, in bytes; a part that has none begins at 0."""
    paths = {part: log_file(data_dir, part) for part in parts}
    return {part: path.stat().st_size if path.exists() else 0 for part, path in paths.items()}


def follow_lines(data_dir: Path, starts: Mapping[str, int], wanted: Wanted) -> Iterator[LogLine]:
    """The wanted lines behind these places, without end; a file that is emptied is read from its beginning."""
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        last = {part: _blank(part) for part in starts}
        while True:
            idle = True
            for part, start in starts.items():
                path = log_file(data_dir, part)
                if part not in files and path.exists():
                    files[part] = stack.enter_context(path.open(errors="replace"))
                    files[part].seek(start)
                for text in _added(files.get(part), path):
                    idle = False
                    last[part] = read_line(text, last[part])
                    if last[part] in wanted:
                        yield last[part]
            if idle:
                time.sleep(POLL_SECONDS)


def read_line(text: str, before: LogLine) -> LogLine:
    """One line as JSON, as Postgres writes it, or as a continuation of the line before."""
    if text.startswith("{"):
        try:
            said = json.loads(text)
            return LogLine(
                part=before.part,
                time=datetime.fromisoformat(said["time"]),
                level=said["level"] if said["level"] in LEVELS else "info",
                request_id=str(said.get("request_id", "")),
                text=text,
            )
        except (ValueError, KeyError, TypeError):
            return replace(before, text=text)
    found = POSTGRES_LINE.match(text)
    if found is None:
        return replace(before, text=text)
    at = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    return LogLine(before.part, at, POSTGRES_LEVELS.get(found[2], "info"), "", text)


def _read_part(data_dir: Path, part: str, wanted: Wanted) -> Iterator[LogLine]:
    current = log_file(data_dir, part)
    line = _blank(part)
    for path in [*sorted(current.parent.glob(f"{part}-[0-9]*.log")), current]:
        # what was last written before then holds nothing newer
        is_old = wanted.since is not None and path.exists() and path.stat().st_mtime < wanted.since.timestamp()
        if is_old or not path.exists():
            continue
        with path.open(errors="replace") as file:
            for text in file:
                line = read_line(text.rstrip("\n"), line)
                if line in wanted:
                    yield line


def _added(file: IO[str] | None, path: Path) -> Iterator[str]:
    """Whole lines that were added; the beginning of one is left for the next time."""
    if file is None:
        return
    if path.stat().st_size < file.tell():
        file.seek(0)
    while True:
        place = file.tell()
        text = file.readline()
        if not text.endswith("\n"):
            file.seek(place)
            return
        yield text.rstrip("\n")


def _blank(part: str) -> LogLine:
    return LogLine(part=part, time=datetime.min.replace(tzinfo=UTC), level="info", request_id="", text="")
