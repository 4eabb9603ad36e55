"""`pharos logs`: what the parts wrote."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable
from typing import Annotated

import typer

from pharos.infra.durations import moment
from pharos.infra.errors import Invalid, NotFound
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson
from pharos.ops.commands import part_name
from pharos.ops.log_files import COMMANDS_LOG, log_file
from pharos.ops.read_logs import LEVELS, LogLine, Wanted, ends_of, follow_lines, read_lines
from pharos.ops.running import PARTS

app = typer.Typer()

LEVEL_NAMES = {"warn": "warning", "fatal": "critical", **{level: level for level in LEVELS}}
TAIL = 50


@app.command()
def logs(
    part: Annotated[
        str | None, typer.Argument(help="postgres, embedder, worker, web, supervisor or commands; all if left out.")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="So many lines; 50, or all of --since and --request.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only newer lines: 720h, 15m or a date.")] = None,
    level: Annotated[str | None, typer.Option("--level", help="At least debug, info, warn, error or critical.")] = None,
    request: Annotated[str | None, typer.Option("--request", help="Only lines of the request with this id.")] = None,
    as_json: AsJson = False,
) -> None:
    """The last lines of a part's log, or of all parts in the order of time."""
    data_dir = Settings().data_dir
    parts = [_part(part)] if part else [*PARTS, "supervisor", COMMANDS_LOG]
    if not any(log_file(data_dir, name).exists() for name in parts):
        whose = part or "Pharos"
        raise NotFound(f"{whose} has not written a log in {data_dir / 'logs'} yet. Start it with `pharos up`.")
    wanted = Wanted(moment(since) if since else None, _level(level), request)
    count = TAIL if tail is None and since is None and request is None else tail
    ends = ends_of(data_dir, parts)  # before reading: what is written meanwhile may come twice, but is not lost
    found = read_lines(data_dir, parts, wanted)
    _print(found if count is None else deque(found, maxlen=count), names=part is None, as_json=as_json)
    if follow:
        _print(follow_lines(data_dir, ends, wanted), names=part is None, as_json=as_json)


def _part(name: str) -> str:
    return name if name == COMMANDS_LOG else part_name(name)


def _print(lines: Iterable[LogLine], *, names: bool, as_json: bool) -> None:
    """Raw lines, so that those of one part can go on to another program; of several parts each says whose it is."""
    for line in lines:
        if as_json:
            sys.stdout.write(json.dumps(_as_object(line), ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(f"{line.part:<10} {line.text}\n" if names else f"{line.text}\n")
        sys.stdout.flush()


def _as_object(line: LogLine) -> dict[str, object]:
    said = json.loads(line.text) if line.text.startswith("{") else {"event": line.text}
    return {"part": line.part, "time": line.time.isoformat(), "level": line.level, **said}


def _level(name: str | None) -> str | None:
    if name is None:
        return None
    if name.lower() not in LEVEL_NAMES:
        raise Invalid(f"There is no level {name}. There are {', '.join(LEVELS)}.", code="no_such_level")
    return LEVEL_NAMES[name.lower()]
