"""`pharos backup list | show | verify | prune`: which backups there are, whether they are good, and which may go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pharos.infra.errors import Invalid, NotFound
from pharos.infra.settings import Settings
from pharos.infra.terminal import (
    AsJson,
    DryRun,
    console,
    count_text,
    echo_json,
    echo_line,
    echo_table,
    error_console,
    size_text,
    time_text,
)
from pharos.ops.backup.check import check_backup
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.manifest import Manifest, read_manifest
from pharos.ops.backup.own import own_backups
from pharos.ops.backup.retention import Retention, plan_retention, remove_backups
from pharos.ops.backup.sealing import opens_offline, recipient_warning
from pharos.ops.backup.store import (
    FAILED,
    Found,
    StoredBackup,
    find_backup,
    list_backups,
    newest_good,
)
from pharos.ops.backup.verification import Verified, verify_backup
from pharos.ops.operation_lock import hold_operation_lock
from pharos.runtime import open_runtime

app = typer.Typer()
backup_app = typer.Typer(help="Backups: make, list, check, copy elsewhere.", no_args_is_help=True)
app.add_typer(backup_app, name="backup")

What = Annotated[str, typer.Argument(help="latest, a date, a moment in UTC, a name, an id or a path.")]
SignedBy = Annotated[
    str | None, typer.Option("--signed-by", help="Trust this signing key too: of another installation's backup.")
]
IdentityFile = Annotated[
    Path | None, typer.Option("--identity", help="The age identity that opens its secrets, if not this machine's.")
]


NOT_SEALED = "it was made while PHAROS_BACKUP_RECIPIENT was not set"


@backup_app.command("list")
def list_command(
    *,
    log: Annotated[bool, typer.Option("--log", help="Every backup ever made, removed and failed ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """The backups there are, newest first: state, age and size; failed attempts with their reason."""
    settings = Settings()
    backups = list_backups(settings, removed=log)
    if as_json:
        echo_json([_as_object(settings, backup) for backup in backups])
        return
    now = datetime.now(UTC)
    rows = [
        [
            backup.name,
            backup.state if backup.folder or backup.state == FAILED else "removed",
            f"{backup.made_at.astimezone(UTC):%Y-%m-%d %H:%M}",
            _age(backup, now),
            size_text(backup.bytes),
            backup.documents,
            f"{backup.seconds:.1f} s",
            _remark(settings, backup),
        ]
        for backup in backups
    ]
    headings = ["name", "state", "made (UTC)", "age", "size", "documents", "took", "remark"]
    echo_table(headings, rows, empty="There is no backup yet. Make one with `pharos backup now`.")
    echo_line(f"They lie in {settings.backup_root}.")
    warn_about_recipient(settings, backups)


@backup_app.command()
def show(what: What = "latest", as_json: AsJson = False) -> None:
    """What one backup holds, what it does not hold, and how it stands."""
    settings = Settings()
    found = find_backup(settings, what)
    manifest = read_manifest(found.folder)
    if as_json:
        echo_json(
            {**_as_object(settings, found.backup), "manifest": {**asdict(manifest), "files": len(manifest.files)}}
        )
        return
    echo_remark(found)
    for name, value in _facts(settings, found.backup, manifest):
        console.print(f"{name:<12} {value}", markup=False)
    tables = sorted(manifest.tables.items(), key=lambda table: -table[1].rows)
    echo_table(["table", "rows"], [[name, state.rows] for name, state in tables if state.rows], empty="It is empty.")
    warn_about_recipient(settings, list_backups(settings))


@backup_app.command()
def verify(
    what: What = "latest",
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Check the files only; restore nothing.")] = False,
    signed_by: SignedBy = None,
    identity: IdentityFile = None,
    as_json: AsJson = False,
) -> None:
    """Check a backup: its signature, every file, the dump, the secrets; then restore it beside the live system."""
    settings, started = Settings(), monotonic()
    found = find_backup(settings, what)
    if not as_json:
        echo_remark(found)
    if quick:
        checked: Manifest | Verified = check_quickly(settings, found.folder, identity=identity, signed_by=signed_by)
    else:
        with error_console.status("Checking") as line:
            checked = verify_backup(
                settings, found.folder, tell=lambda _, said: line.update(said), identity=identity, signed_by=signed_by
            )
    seconds = round(monotonic() - started, 3)
    if as_json:
        echo_json({"name": found.backup.name, "passed": True, "quick": quick, "seconds": seconds})
    elif isinstance(checked, Verified):
        tables = f"{count_text(checked.tables, 'table')} with {count_text(checked.rows, 'row')}"
        others = f"{count_text(checked.blobs, 'uploaded file')} and {count_text(checked.secrets, 'secret')}"
        echo_line(
            f"{checked.backup} is good: restored beside the live system, {tables}, {others} are as they were "
            f"({time_text(seconds)})."
        )
    else:
        files = f"{count_text(len(checked.files), 'file')}, {size_text(checked.bytes)}"
        echo_line(f"{checked.name}: signature, {files}, dump and keys are as they were made ({time_text(seconds)}).")
        echo_line("It was not restored; without --quick it is, and only that makes it verified.")


@backup_app.command()
def prune(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove backups older than PHAROS_BACKUP_KEEP_DAYS; none while the newest is not a good one."""
    settings = Settings()
    with hold_operation_lock(settings, "backup prune"):
        backups = list_backups(settings, removed=True)
        own = own_backups(settings, backups)
        plan = plan_retention(own, keep_days=settings.backup_keep_days, now=datetime.now(UTC))
        if not dry_run:
            remove_backups(settings, plan)
    if as_json:
        names = [backup.name for backup in plan.remove]
        echo_json({"removed": names, "bytes": plan.bytes, "kept_because": plan.kept_because, "dry_run": dry_run})
        return
    _say_pruned(settings, plan, dry_run=dry_run)
    if others := len(backups) - len(own):
        of_others = count_text(others, "backup")
        echo_line(f"Left alone: {of_others} of another installation. Whoever put that here removes its folder.")


def check_quickly(settings: Settings, folder: Path, *, identity: Path | None, signed_by: str | None) -> Manifest:
    """Check the files alone. A backup that fails is remembered as failed: retention relies on it no more."""
    with remember_faults(settings, folder), hash_progress() as progress:
        return check_backup(settings, folder, signed_by=signed_by, identity=identity, progress=progress)


@backup_app.command()
def link(
    what: What = "latest",
    *,
    hours: Annotated[int, typer.Option("--hours", min=1, max=48, help="How long the address holds.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print an address from which any machine can fetch a backup as a tar archive, until it ends."""
    from pharos.ops.backup.download import LINK_MADE, make_link, record_way_out, refuse_damaged

    async def record(name: str) -> None:
        async with open_runtime(settings) as runtime:
            await record_way_out(runtime, LINK_MADE, name)

    settings = Settings()
    found = _find_good(settings) if what == "latest" else find_backup(settings, what)
    if found.folder.parent != settings.backup_root:
        raise Invalid(f"Only backups in {settings.backup_root} can be fetched. Copy {found.folder} there.")
    refuse_damaged(found.backup)
    address = make_link(settings, found.folder, lives=timedelta(hours=hours))
    asyncio.run(record(found.backup.name))
    if as_json:
        echo_json({"name": found.backup.name, "url": address, "hours": hours})
        return
    if found.remark:
        error_console.print(found.remark, markup=False)  # the address alone goes on to the next program
    if settings.public_url is None:
        error_console.print("From another machine, put this machine's name in place of the host.", markup=False)
    echo_line(address)


def _find_good(settings: Settings) -> Found:
    """What `latest` is where a backup leaves the machine: the newest that was restored and compared."""
    good = newest_good(list_backups(settings))
    if good is None:
        raise NotFound(
            "No backup has been restored and compared yet. Run `pharos backup verify`, or name one of `pharos backup "
            "list`.",
            code="no_such_backup",
        )
    return Found(good)


@contextmanager
def hash_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal, nothing elsewhere; gives a function that is told how many of how many are done."""
    columns = (TextColumn("Reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console, disable=not error_console.is_terminal, transient=True) as bar:
        task = bar.add_task("Reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def echo_remark(found: Found) -> None:
    """Which of several backups was taken."""
    if found.remark:
        echo_line(found.remark)


def warn_about_recipient(settings: Settings, backups: Sequence[StoredBackup]) -> None:
    """Say on stderr that nobody could use the backups without this machine, while that is so."""
    if warning := recipient_warning(settings, backups):
        error_console.print("[bold yellow]Warning[/]: ", end="")
        error_console.print(warning, markup=False)


def _facts(settings: Settings, backup: StoredBackup, manifest: Manifest) -> list[tuple[str, object]]:
    state = backup.state + (f" ({backup.error_code}: {backup.error})" if backup.error_code else "")
    facts: list[tuple[str, object]] = [
        ("name", backup.name),
        ("state", state),
        ("made", f"{manifest.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, in {manifest.seconds:.1f} s"),
        ("verified", _moment(backup.verified_at)),
        ("offsite", _moment(backup.offsite_at)),
        ("folder", backup.folder),
        ("size", f"{size_text(manifest.bytes)} in {count_text(len(manifest.files), 'file')}"),
        ("uploads", f"{count_text(manifest.blobs.count, 'file')}, {size_text(manifest.blobs.bytes)}"),
        ("made by", f"Pharos {manifest.version}, schema {manifest.schema}, PostgreSQL {manifest.server_version}"),
        ("vectors", f"pgvector {manifest.vector_version}"),
        ("keys", ", ".join(manifest.keys) or "none"),
        ("opened by", _opened_by(settings, backup)),
        ("signed by", manifest.signed_by),
    ]
    return facts + [("not inside", text) for text in manifest.not_inside]


def _opened_by(settings: Settings, backup: StoredBackup) -> str:
    offline = f"this machine, and offline by the identity of {', '.join(backup.sealed_to)}"
    if not backup.sealed_to:
        return f"this machine alone: {NOT_SEALED}"
    return offline if opens_offline(settings, backup) else f"{offline}, which is not PHAROS_BACKUP_RECIPIENT"


def _remark(settings: Settings, backup: StoredBackup) -> str:
    if backup.error_code:
        return f"{backup.error_code}: {backup.error}"
    if backup.folder is None or opens_offline(settings, backup):
        return ""
    return "another offline identity opens it" if backup.sealed_to else "this machine alone opens it"


def _say_pruned(settings: Settings, plan: Retention, *, dry_run: bool) -> None:
    for backup in plan.remove:
        echo_line(f"{'Would remove' if dry_run else 'Removed'} {backup.name} ({size_text(backup.bytes)}).")
    if plan.kept_because:
        echo_line(f"Nothing is removed: {plan.kept_because}. Look at it with `pharos backup list`.")
    elif not plan.remove:
        echo_line(f"No backup is older than {count_text(settings.backup_keep_days, 'day')}.")


def _as_object(settings: Settings, backup: StoredBackup) -> dict[str, object]:
    times = {name: at.isoformat() if at else None for name, at in _times(backup)}
    folder = str(backup.folder) if backup.folder else None
    return {**asdict(backup), **times, "folder": folder, "opens_offline": opens_offline(settings, backup)}


def _times(backup: StoredBackup) -> list[tuple[str, datetime | None]]:
    return [
        ("made_at", backup.made_at),
        ("verified_at", backup.verified_at),
        ("offsite_at", backup.offsite_at),
        ("pulled_at", backup.pulled_at),
    ]


def _age(backup: StoredBackup, now: datetime) -> str:
    hours = (now - backup.made_at).total_seconds() / 3600
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else "no"
