"""`pharos backup now | nightly`: make one, or do all that a night does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, count_text, echo_json, echo_line, error_console, size_text, time_text
from pharos.ops.backup.commands import backup_app, warn_about_recipient
from pharos.ops.backup.manifest import read_manifest
from pharos.ops.backup.nightly import run_night
from pharos.ops.backup.priority import give_way
from pharos.ops.backup.snapshot import Progress, make_backup, plan_backup
from pharos.ops.backup.store import list_backups

Plain = Annotated[bool, typer.Option("--plain", help="Do not compress: larger, and text that any program reads.")]


@backup_app.command()
def now(plain: Plain = False, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Make a backup while people work: database, every file, secrets. It is good once `verify` has restored it."""
    settings = Settings()
    if dry_run:
        plan = plan_backup(settings)
        if as_json:
            echo_json(plan)
            return
        echo_line(
            f"Would write {count_text(plan.documents, 'document')} in {count_text(plan.blobs, 'file')} into "
            f"{settings.backup_root}: at most {size_text(plan.needed_bytes)}, {size_text(plan.free_bytes)} are free."
        )
        return
    give_way()
    with _bars() as progress:
        folder = make_backup(settings, progress=progress, plain=plain)
    manifest = read_manifest(folder)
    if as_json:
        echo_json(
            {
                "name": manifest.name,
                "folder": folder,
                "made_at": manifest.made_at.isoformat(),
                "bytes": manifest.bytes,
                "files": len(manifest.files),
                "documents": manifest.documents,
                "seconds": manifest.seconds,
                "state": "written",
            }
        )
    else:
        echo_line(
            f"Wrote {folder}: {count_text(manifest.documents, 'document')}, {size_text(manifest.bytes)}, "
            f"{manifest.made_at:%Y-%m-%d %H:%M:%S} UTC, in {time_text(manifest.seconds)}."
        )
        echo_line(f"It counts once it was restored: `pharos backup verify {manifest.name}`.")
    warn_about_recipient(settings, list_backups(settings))


@backup_app.command()
def nightly(as_json: AsJson = False) -> None:
    """What runs every day at PHAROS_BACKUP_AT: make, verify, remove what is too old. `push` has its own hour."""
    settings = Settings()
    give_way()
    with error_console.status("Making the daily backup") as line:
        night = run_night(settings, now=datetime.now().astimezone(), tell=lambda _, said: line.update(said))
    if as_json:
        echo_json(night)
    else:
        echo_line(f"{night.backup} was made, restored and compared in {time_text(night.seconds_to_verify)}.")
        echo_line(_copied_when(settings))
        kept = f" ({night.kept_because})" if night.kept_because else ""
        echo_line(f"Removed {count_text(len(night.removed), 'older one')}{kept}.")
    warn_about_recipient(settings, list_backups(settings))


def _copied_when(settings: Settings) -> str:
    if not settings.offsite:
        return "Copied nowhere: PHAROS_OFFSITE is not set."
    at = f"at {settings.offsite_at}; now with" if settings.offsite_at else "by"
    return f"Copied to {settings.offsite} {at} `pharos backup push`."


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each part on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=error_console, disable=not error_console.is_terminal, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield tell
