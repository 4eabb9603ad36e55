"""`pharos backup push | pull`: copies of backups elsewhere, and back again on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pharos.infra.errors import Conflict, PharosError
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, echo_json, echo_line, error_console, size_text
from pharos.ops.backup.commands import What, backup_app, echo_remark, warn_about_recipient
from pharos.ops.backup.offsite import (
    Pushed,
    list_offsite,
    pull_backup,
    push_backup,
    require_target,
    say_where_password_lies,
)
from pharos.ops.backup.own import own_backups
from pharos.ops.backup.store import (
    Found,
    find_backup,
    list_backups,
    newest_good,
    record_offsite,
    record_offsite_failure,
)
from pharos.ops.operation_lock import hold_operation_lock


@backup_app.command()
def push(what: What = "latest", as_json: AsJson = False) -> None:
    """Copy a verified backup to PHAROS_OFFSITE and read it back; `latest` is the newest verified one."""
    settings = Settings()
    require_target(settings)
    found = _verified(settings, what)
    with hold_operation_lock(settings, "backup push"), error_console.status(f"Copying {found.backup.name}"):
        try:
            pushed = push_backup(settings, found.folder)
        except PharosError as error:
            if found.folder.parent == settings.backup_root:
                record_offsite_failure(settings, found.folder, error)
            raise
        record_offsite(settings, found.folder)
    if as_json:
        echo_json(pushed)
    else:
        echo_remark(found)
        _say(settings, pushed)
    warn_about_recipient(settings, [found.backup])


@backup_app.command()
def pull(
    what: Annotated[str, typer.Argument(help="latest, a date, the beginning of a moment in UTC, a name.")] = "latest",
    *,
    into: Annotated[Path | None, typer.Option(help="A folder; where backups lie here if left out.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only show what lies there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a backup from PHAROS_OFFSITE and compare every file; works on a machine that has nothing else."""
    settings = Settings()
    if show:
        copies = list_offsite(settings)
        if as_json:
            echo_json(copies)
            return
        for copy in copies:
            echo_line(copy.name)
        echo_line(f"{len(copies)} backups at {settings.offsite}.")
        return
    with error_console.status("Fetching"):
        folder = pull_backup(settings, what, into=(into or settings.backup_root).absolute())
    if as_json:
        echo_json({"name": folder.name, "folder": folder})
        return
    echo_line(f"{folder.name} lies in {folder.parent}, every file as its manifest names it.")
    echo_line(f"Next: `pharos backup verify {folder}`, or `pharos restore {folder}`.")


def _verified(settings: Settings, what: str) -> Found:
    """What is to be copied. Raises `Conflict` for one that nobody has restored and compared yet."""
    if what == "latest":
        newest = newest_good(own_backups(settings, list_backups(settings)))
        if newest is not None:
            return Found(newest)
    found = find_backup(settings, what)
    if not found.backup.is_good:
        raise Conflict(
            f"{found.backup.name} is {found.backup.state}, and only verified backups are copied. Run `pharos backup "
            f"verify {found.backup.name}` first.",
            code="not_verified",
        )
    return found


def _say(settings: Settings, pushed: Pushed) -> None:
    echo_line(
        f"{pushed.name}: {pushed.files} files copied to {pushed.target} and read back, {size_text(pushed.added_bytes)} "
        f"new ({pushed.seconds:.1f} s)."
        if pushed.snapshot
        else f"{pushed.name}: {pushed.files} files copied to {pushed.target} and compared ({pushed.seconds:.1f} s)."
    )
    if pushed.snapshot:
        echo_line(f"Part {pushed.checked} of the repository was read and is whole.")
        echo_line(say_where_password_lies(settings))
