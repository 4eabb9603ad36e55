"""`pharos restore`: bring back a backup, a table or the uploads; see what it would do; swap back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from pharos.infra.errors import Conflict, Invalid
from pharos.infra.processes import ended_by_signals
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, echo_json, echo_line, echo_table, size_text
from pharos.ops.backup.check import check_manifest
from pharos.ops.backup.manifest import MANIFEST
from pharos.ops.backup.restore import Restored, Undone, restore, restore_uploads, undo_restore
from pharos.ops.backup.restore_blobs import BlobChanges
from pharos.ops.backup.restore_keys import KeyStep
from pharos.ops.backup.restore_plan import Prepared, Tell, prepare, server_differences
from pharos.ops.backup.restore_start import as_started
from pharos.ops.backup.restore_table import RestoredTable, restore_one_table
from pharos.ops.backup.restore_time import estimate_restore
from pharos.ops.backup.restore_unfinished import Aborted, Finished, abort_restore, resume_restore
from pharos.ops.backup.rollback_points import database_name, rollback_points_here
from pharos.ops.backup.store import Found, StoredBackup, find_backup, list_backups

app = typer.Typer()

What = Annotated[str | None, typer.Argument(help="latest, a date, a moment in UTC, a name, an id or a path.")]
Merge = Annotated[bool, typer.Option("--merge", help="Add the rows that the live table lacks; with --table.")]
Undo = Annotated[bool, typer.Option("--undo", help="Swap back to the newest rollback point, or to the one named.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a restore that was broken off.")]
Abort = Annotated[bool, typer.Option("--abort", help="Go back to what was live before a restore that was broken off.")]
KeepSessions = Annotated[bool, typer.Option("--keep-sessions", help="Whoever was signed in then stays signed in.")]
IdentityFile = Annotated[
    Path | None, typer.Option("--identity", help="The age identity that opens its secrets, if not this machine's.")
]
SignedBy = Annotated[
    str | None, typer.Option("--signed-by", help="Trust this signing key too: of another installation's backup.")
]


class Trust(TypedDict):
    """Whose signature is believed besides the known ones, and what opens the escrow."""

    identity: Path | None
    signed_by: str | None


KEYS = {
    KeyStep.KEEP: "today's encryption key opens its secrets",
    KeyStep.REWRAP: "its data keys are from before a rotation: they were wrapped anew with today's key",
    KeyStep.INSTALL: "its encryption key came from the backup's escrow",
}


@app.command("restore")
@ended_by_signals()
def restore_command(
    context: typer.Context,
    what: What = None,
    *,
    show_list: Annotated[bool, typer.Option("--list", help="List what can be restored and swapped back to.")] = False,
    dry_run: DryRun = False,
    table: Annotated[str | None, typer.Option("--table", help="Only this table, into a schema of its own.")] = None,
    into: Annotated[str | None, typer.Option("--into", help="Name of that schema.")] = None,
    merge: Merge = False,
    uploads_only: Annotated[bool, typer.Option("--uploads-only", help="Only missing and damaged files.")] = False,
    undo: Undo = False,
    resume: Resume = False,
    abort: Abort = False,
    identity: IdentityFile = None,
    signed_by: SignedBy = None,
    keep_sessions: KeepSessions = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the database's name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring back a backup: loaded beside the live database, compared, then swapped in; the old one is kept a while."""
    what, identity = _absolute(what), identity.absolute() if identity else None
    settings = context.with_resource(as_started(Settings()))
    tell = _quiet if as_json else _say
    if show_list:
        _list(settings, as_json=as_json)
        return
    if resume or abort:
        _end_unfinished(settings, resume=resume, tell=tell, as_json=as_json)
        return
    if undo:
        _ask(settings, f"Swap back to {what or 'the database from before the last restore'}?", yes=yes)
        _echo_undone(undo_restore(settings, tell=tell, keep_sessions=keep_sessions, wanted=what), as_json=as_json)
        return
    if what is None:
        raise Invalid(
            "Say which backup: `latest`, a date, a moment, a name or a path. `pharos restore --list` shows them.",
            code="no_backup_named",
        )
    found = find_backup(settings, what, usable=True)
    _remark(found, as_json=as_json)
    if (table is None) != (into is None):
        raise Invalid("--table and --into belong together: --table users --into scratch", code="table_without_schema")
    asks = sys.stdin.isatty() and not (yes or as_json)
    trust: Trust = {"identity": identity, "signed_by": trusted_signer(settings, found.folder, signed_by, asks=asks)}
    if dry_run:
        plan = prepare(settings, found.folder, **trust, tell=tell, counts_rows=True)
        seconds = estimate_restore(settings, found.folder, plan.manifest.bytes)
        _echo_plan(plan, seconds, as_json=as_json)
    elif table is not None and into is not None:
        one = restore_one_table(settings, found.folder, table=table, into=into, tell=tell, merges=merge, **trust)
        _echo_table(one, as_json=as_json)
    elif uploads_only:
        _echo_uploads(found, restore_uploads(settings, found.folder, tell=tell, **trust), as_json=as_json)
    else:
        _ask(settings, f"Replace the live database by {found.backup.name}? What came since then goes.", yes=yes)
        done = restore(settings, found.folder, tell=tell, keep_sessions=keep_sessions, **trust)
        _echo_restored(settings, done, as_json=as_json)


def _absolute(what: str | None) -> str | None:
    """What means a path as one from the root: we go to the directory that Pharos was started in."""
    if what is None or not ("/" in what or (Path(what) / MANIFEST).exists()):
        return what
    return str(Path(what).expanduser().absolute())


def _ask(settings: Settings, question: str, *, yes: bool) -> None:
    """Let the operator type the database's name. Raises `Invalid` when it is another."""
    if yes:
        return
    name = database_name(settings)
    if typer.prompt(f"{question}\nType the name of the database, {name}, to go on") != name:
        raise Invalid(f"That was not {name}, so nothing was changed.", code="not_confirmed")


def trusted_signer(settings: Settings, folder: Path, named: str | None, *, asks: bool) -> str | None:
    """Whom to believe besides the known keys: the key that was named, or one that somebody on a terminal types after
    comparing it. Raises `Conflict` (`unknown_signer`) where nobody is asked, and as `check_manifest` does."""
    try:
        check_manifest(settings, folder, signed_by=named)
    except Conflict as error:
        if error.code != "unknown_signer" or not asks:
            raise
        signer = str(error.details["signed_by"])
        echo_line(f"{folder.name} was signed by a key that this installation does not know:\n{signer}")
        question = "Compare it with the one kept with the offline identity, and type it to go on"
        if typer.prompt(question).strip() != signer:
            raise Invalid("That is not the key, so nothing was changed.", code="not_confirmed") from error
        return signer
    return named


def _say(step: str, sentence: str) -> None:
    echo_line(f"{sentence} ...")


def _quiet(step: str, sentence: str) -> None:
    return


def _remark(found: Found, *, as_json: bool) -> None:
    if found.remark and not as_json:
        echo_line(found.remark)


def _list(settings: Settings, *, as_json: bool) -> None:
    backups = [backup for backup in list_backups(settings) if backup.folder is not None]
    points = rollback_points_here(settings)
    if as_json:
        echo_json({"backups": [_as_object(backup) for backup in backups], "rollback_points": points})
        return
    echo_table(
        ["backup", "made (UTC)", "state", "documents", "size"],
        [
            [
                backup.name,
                f"{backup.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
                backup.state,
                backup.documents,
                size_text(backup.bytes),
            ]
            for backup in backups
        ],
        empty=f"There is no backup in {settings.backup_root}. Name the folder of a copy by its path.",
    )
    if points is None:
        echo_line("Rollback points cannot be listed: the database does not answer.")
        return
    for number, point in enumerate(points):
        which = f" {point.database}" if number else ""
        echo_line(
            f"Rollback point {point.database} ({size_text(point.bytes)}), kept until {point.until:%Y-%m-%d %H:%M} UTC. "
            f"Swap back with `pharos restore --undo{which}`."
        )


def _echo_plan(plan: Prepared, seconds: float | None, *, as_json: bool) -> None:
    if as_json:
        echo_json({**_plan_object(plan), "seconds_expected": seconds})
        return
    manifest = plan.manifest
    echo_line(
        f"{manifest.name}, made {manifest.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC by Pharos {manifest.version}, "
        f"is whole: {len(manifest.files)} files, {size_text(manifest.bytes)}, checked in {plan.seconds_to_check:.1f} s."
    )
    now = plan.rows_now
    names = [name for name in sorted(manifest.tables) if manifest.tables[name].rows or (now and now.get(name))]
    rows = [[name, manifest.tables[name].rows, now.get(name, 0) if now is not None else None] for name in names]
    echo_table(["table", "rows then", "rows now"], rows, empty="It holds no row.")
    if now is None:
        echo_line("No database answers here, so nothing is compared with today's rows.")
    else:
        lost = ", ".join(f"{more} {name}" for name, more in sorted(plan.lost_rows.items()))
        echo_line(f"Would be lost, because they came since then: {lost or 'nothing that is counted'}.")
    echo_line(
        f"Uploaded files: {plan.blobs.present} are here, {len(plan.blobs.missing)} would be added, "
        f"{len(plan.blobs.damaged)} damaged ones replaced ({size_text(plan.blobs.bytes)})."
    )
    for sentence in server_differences(manifest, plan.server_now) if plan.server_now is not None else ():
        echo_line(sentence)
    echo_line(f"Migrations that would follow: {', '.join(plan.migrations) or 'none'}.")
    if seconds is None:
        echo_line("How long it would take is not known: `pharos backup verify` measures it.")
    else:
        echo_line(f"It would take about {seconds:.0f} s, by its size and what the last verification took.")
    echo_line(f"It needs about {size_text(plan.bytes_needed)} on the disk, and there is room. Nothing was changed.")


def _plan_object(plan: Prepared) -> dict[str, object]:
    """Never the escrow: it holds keys."""
    now = plan.server_now
    return {
        "name": plan.manifest.name,
        "made_at": plan.manifest.made_at.isoformat(),
        "version": plan.manifest.version,
        "schema": plan.manifest.schema,
        "rows": {name: state.rows for name, state in plan.manifest.tables.items()},
        "rows_now": plan.rows_now,
        "lost_rows": plan.lost_rows,
        "blobs": asdict(plan.blobs),
        "migrations": plan.migrations,
        "server": {"then": plan.manifest.server_version, "now": now and now.version},
        "collation": {"then": plan.manifest.collation_version, "now": now and now.collation},
        "keys": plan.keys,
        "bytes_needed": plan.bytes_needed,
        "dry_run": True,
    }


def _echo_restored(settings: Settings, done: Restored, *, as_json: bool) -> None:
    if as_json:
        echo_json(done)
        return
    for check in done.checks:
        echo_line(f"{check.result} {check.name}: {check.said}")
    rows, files = done.rows, len(done.blobs.missing) + len(done.blobs.damaged)
    echo_line(
        f"Restored {done.backup}: {sum(rows.values())} rows in {len(rows)} tables, {rows.get('users', 0)} users, "
        f"{rows.get('documents', 0)} documents; {files} uploaded files added; {done.secrets} secrets opened, "
        f"{KEYS[done.keys]}."
    )
    if done.rollback_point is not None:
        echo_line(
            f"The database from before is kept for {settings.rollback_keep_days} days as {done.rollback_point}: "
            "`pharos restore --undo` swaps back."
        )
    if not done.is_running:
        echo_line("Pharos did not run and stays stopped. Start it with `pharos up`, then ask `pharos smoke`.")
    echo_line(f"It took {done.seconds:.1f} s.")


def _end_unfinished(settings: Settings, *, resume: bool, tell: Tell, as_json: bool) -> None:
    """Nobody types a name again: going on was confirmed then, and an abort loses nothing."""
    if not resume:
        _echo_aborted(abort_restore(settings, tell=tell), as_json=as_json)
        return
    done = resume_restore(settings, tell=tell)
    if isinstance(done, Restored):
        _echo_restored(settings, done, as_json=as_json)
    elif isinstance(done, Undone):
        _echo_undone(done, as_json=as_json)
    else:
        _echo_finished(done, as_json=as_json)


def _echo_finished(done: Finished, *, as_json: bool) -> None:
    if as_json:
        echo_json(done)
        return
    for check in done.checks:
        echo_line(f"{check.result} {check.name}: {check.said}")
    echo_line("What was restored was live already; the restore is finished.")
    if done.rollback_point is not None:
        echo_line(f"The database from before is {done.rollback_point}: `pharos restore --undo` swaps back.")
    if not done.is_running:
        echo_line("Pharos did not run and stays stopped. Start it with `pharos up`.")


def _echo_aborted(done: Aborted, *, as_json: bool) -> None:
    if as_json:
        echo_json(done)
        return
    if done.swapped_back:
        echo_line(
            f"What was live before the restore is live again; what was live until now is kept as {done.kept}: "
            f"`pharos restore --undo {done.kept}` brings it back."
        )
    else:
        echo_line("The live database is the one from before; what was half made is removed.")
    echo_line("What ran runs again." if done.is_running else "Pharos did not run and stays stopped.")


def _echo_undone(done: Undone, *, as_json: bool) -> None:
    point = done.point
    if as_json:
        other = {"rollback_point": done.other, "files": done.files}
        echo_json({"live_since": point.since, "was": point.database, **other})
        return
    echo_line(f"{point.database} is live again.")
    echo_line(f"What was live until now is kept as {done.other}: a second undo brings it back.")
    if done.files:
        echo_line(f"{len(done.files)} uploaded files that were set aside are in their place again.")


def _echo_table(one: RestoredTable, *, as_json: bool) -> None:
    if as_json:
        echo_json(one)
        return
    echo_line(
        f"{one.rows} rows of {one.table} as they were in {one.backup} are in {one.into}.{one.table}; {one.missing} of "
        f"them were missing in public.{one.table}. Pharos itself cannot see that schema."
    )
    if one.merged:
        echo_line(f"Added {one.merged} rows to public.{one.table}.")
    else:
        echo_line(f"To add the missing ones, name another schema with --merge, or run:  {one.merge}")
    echo_line(f"When you are done:  drop schema {one.into} cascade;")


def _echo_uploads(found: Found, blobs: BlobChanges, *, as_json: bool) -> None:
    if as_json:
        echo_json({"backup": found.backup.name, **asdict(blobs)})
        return
    echo_line(
        f"Added {len(blobs.missing)} missing files and replaced {len(blobs.damaged)} damaged ones from "
        f"{found.backup.name}; {blobs.present} were whole."
    )
    if blobs.damaged:
        echo_line("The damaged ones lie in aside-… beside the others and are removed after a day.")


def _as_object(backup: StoredBackup) -> dict[str, object]:
    return {**asdict(backup), "made_at": backup.made_at.isoformat(), "folder": str(backup.folder)}
