"""`pharos up`, `down`, `status`, `restart`: the installation as a whole."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import Annotated

import psutil
import typer

from pharos.identity.signing_keys import refuse_bad_signing_secrets
from pharos.infra.errors import Conflict, Invalid, NotFound, Unavailable
from pharos.infra.logs import configure_logs
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, echo_json, echo_line, echo_table, error_console, run_async
from pharos.ops.backup.restore_journal import is_stopped_by_restore, read_unfinished
from pharos.ops.listen import refuse_busy_port
from pharos.ops.running import PARTS, READY_SECONDS, State, part_process, read_state, supervisor_lock
from pharos.ops.start_stop import start_detached, stop_running

app = typer.Typer()

ALIASES = {"api": "web", "app": "web"}


def part_name(name: str) -> str:
    """A part by its name or by what the older systems called it. Raises `Invalid` listing the names."""
    name = ALIASES.get(name, name)
    parts = (*PARTS, "supervisor")
    if name not in parts:
        raise Invalid(f"There is no part {name}. The parts are {', '.join(parts)}.", code="no_such_part")
    return name


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is ready; it goes on running.")] = False,
    only: Annotated[str | None, typer.Option("--only", help="Start this part alone: postgres.")] = None,
) -> None:
    """Start Pharos and keep it running; Ctrl-C stops it."""
    settings = Settings()
    names = PARTS if only is None else (part_name(only),)
    if names not in (PARTS, ("postgres",)):
        raise Invalid("Only Postgres can run alone: pharos up --only postgres", code="not_alone")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _warn_of_unfinished(settings)
    with supervisor_lock(settings):
        if "web" in names:
            refuse_bad_signing_secrets(settings)  # before anything is made or started
            refuse_busy_port(settings)
        if not detach:
            from pharos.ops.supervisor import Supervisor  # with all that runs below it; only here it is needed

            configure_logs("WARNING")
            is_terminal = sys.stdout.isatty()
            supervisor = Supervisor(settings, names=names, say=echo_line, shows_setup_link=is_terminal)
            run_async(supervisor.run())
            if is_stopped_by_restore(settings):
                with contextlib.suppress(OSError):  # a terminal that is gone
                    echo_line(
                        "A restore has stopped Pharos here. It starts it again in the background once the data is in "
                        "place: `pharos status` shows it, `pharos down` stops it."
                    )
            return
    _start_detached(settings, only=only)


def _warn_of_unfinished(settings: Settings) -> None:
    """It starts all the same: what is live is the old data or the new."""
    if (left := read_unfinished(settings)) is not None:
        error_console.print(left.words, markup=False)


def _start_detached(settings: Settings, *, only: str | None) -> None:
    state = start_detached(settings, only=only)
    if only is not None:
        echo_line(f"{only} is running (process {state.pid}).")
        return
    echo_line(f"Pharos is ready at {state.url}")
    if not state.says_more:
        return
    from pharos.ops.supervisor import models_lines, setup_lines  # as above

    for line in (*run_async(models_lines(settings)), *run_async(setup_lines(settings, link=True))):
        echo_line(line)


@app.command()
def down(
    delete_data: Annotated[
        bool, typer.Option("--delete-data", help="Remove the data directory too; backups are kept.")
    ] = False,
    delete_backups: Annotated[
        bool, typer.Option("--delete-backups", help="Remove the backups too, wherever they lie; with --delete-data.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop Pharos: requests and jobs in flight are finished first, nothing that was accepted is lost."""
    settings = Settings()
    if delete_backups and not delete_data:
        raise Invalid("--delete-backups belongs to --delete-data. Nothing was changed.", code="not_alone")
    if delete_data:
        _ask_to_delete(settings, with_backups=delete_backups, yes=yes)
    state = stop_running(settings)
    echo_line("Pharos is stopped." if state else "Pharos was not running.")
    if delete_data:
        _delete(settings, with_backups=delete_backups)


def _ask_to_delete(settings: Settings, *, with_backups: bool, yes: bool) -> None:
    """Before anything is stopped: who says no has it running."""
    from pharos.ops import delete_data as data  # with all that reads backups; only here it is needed

    found = data.backups_here(settings, with_backups=with_backups)
    data.refuse_backups_inside(settings, found)
    for sentence in data.fate_of_backups(settings, found):
        echo_line(sentence)
    if not yes:
        them = ", and the backups" if found.goes else ""
        typer.confirm(f"Delete {settings.data_dir} with all documents, accounts and secrets{them}?", abort=True)


def _delete(settings: Settings, *, with_backups: bool) -> None:
    from pharos.ops import delete_data as data  # as above

    kept = data.backups_here(settings, with_backups=with_backups).stays
    with supervisor_lock(settings):
        left = data.delete_data(settings, with_backups=with_backups)
    echo_line(f"Deleted {settings.data_dir}{' but for the backups' if kept else ''}.")
    if left:
        echo_line(f"Not ours and still there: {', '.join(left)}.")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Which parts run, since when, and how often they had to be started again. Ends with 7 when nothing runs."""
    settings = Settings()
    state, left = read_state(settings), read_unfinished(settings)
    unfinished = {"unfinished_restore": left.words} if left is not None else {}
    if left is not None and not as_json:
        echo_line(left.words)
    if state is None:
        if as_json:
            echo_json({"running": False, "data_dir": str(settings.data_dir), **unfinished})
        else:
            echo_line(f"Pharos is not running on {settings.data_dir}. Start it with `pharos up`.")
        raise typer.Exit(Unavailable.exit_code)
    parts = [_describe(state, name) for name in PARTS if name in state.parts]
    if as_json:
        said = {"running": True, "ready": state.is_ready, "url": state.url, "pid": state.pid, "parts": parts}
        echo_json({**said, **unfinished})
        return
    echo_line(f"Pharos {'is ready' if state.is_ready else 'is starting'} at {state.url} (process {state.pid})")
    keys = ("part", "state", "pid", "restarts", "memory_mb", "running_seconds")
    echo_table(
        ["part", "state", "process", "restarts", "memory (MB)", "running (s)"],
        [[part[key] for key in keys] for part in parts],
        empty="No part is running.",
    )


def _describe(state: State, name: str) -> dict[str, object]:
    row: dict[str, object] = {"part": name, "state": "down", **state.parts[name], "memory_mb": None}
    try:
        if (process := part_process(state, name)) is not None:
            row["memory_mb"] = process.memory_info().rss // 2**20
            row["running_seconds"] = int(time.time() - process.create_time())
            row["state"] = "up"
    except psutil.NoSuchProcess:
        pass  # it ended while we looked
    return {"running_seconds": None} | row


@app.command()
def restart(
    part: Annotated[
        str | None, typer.Argument(help="postgres, embedder, worker or web; all but Postgres if left out.")
    ] = None,
) -> None:
    """Stop a part gently and start it again; the others go on."""
    settings = Settings()
    names = [part_name(part)] if part else ["embedder", "worker", "web"]
    for name in names:
        process = _process_of(settings, name)
        if process is None or not _signalled(process, signal.SIGINT if name == "postgres" else signal.SIGTERM):
            raise Unavailable(
                f"{name} is down just now and is started again by itself. `pharos logs {name}` says why it ended.",
                code="part_down",
            )
        deadline = time.monotonic() + READY_SECONDS
        while (now := _process_of(settings, name)) is None or now.pid == process.pid:
            if time.monotonic() > deadline:
                raise Unavailable(f"{name} has not come back. `pharos logs {name}` says why.", code="not_restarted")
            time.sleep(0.05)
        echo_line(f"{name} runs again (process {now.pid}).")


def _signalled(process: psutil.Process, number: signal.Signals) -> bool:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _process_of(settings: Settings, name: str) -> psutil.Process | None:
    """The living process of a part. Raises `Conflict` when nothing runs, `NotFound` for a part not run here."""
    state = read_state(settings)
    if state is None:
        raise Conflict("Pharos is not running. Start it with `pharos up`.", code="not_running")
    if name not in state.parts:
        raise NotFound(f"{name} is not one of the parts running here: {', '.join(state.parts)}.", code="not_here")
    return part_process(state, name)
