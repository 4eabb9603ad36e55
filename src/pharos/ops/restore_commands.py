"""`pharos restore`: bring back a backup, a table or the uploads; see what it would do; swap back."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.processes import ended_by_signals
from pharos.infra.settings import Settings
from pharos.infra.terminal import AsJson, DryRun, count_text, echo_json, echo_line, size_text
from pharos.ops.backup.check import check_manifest
from pharos.ops.backup.escrow import read_identities
from pharos.ops.backup.faults import remember_faults
from pharos.ops.backup.manifest import MANIFEST
from pharos.ops.backup.restore import (
    Restored,
    Undone,
    look_for_rollback_point,
    restore,
    undo_restore,
)
from pharos.ops.backup.restore_blobs import BlobChanges
from pharos.ops.backup.restore_keys import KeyStep
from pharos.ops.backup.restore_plan import Tell, prepare, refuse_no_identity
from pharos.ops.backup.restore_start import as_started
from pharos.ops.backup.restore_table import RestoredTable, restore_one_table
from pharos.ops.backup.restore_unfinished import Aborted, Finished, abort_restore, resume_restore
from pharos.ops.backup.restore_uploads import restore_uploads
from pharos.ops.backup.rollback_points import database_name, find_kept, forget_kept, has_no_database, server_at_hand
from pharos.ops.backup.store import Found, find_backup
from pharos.ops.restore_shown import echo_list, echo_plan, echo_price, moment

app = typer.Typer()

What = Annotated[str | None, typer.Argument(help="latest, a date, a moment in UTC, a name, an id or a path.")]
Merge = Annotated[bool, typer.Option("--merge", help="Add the rows that the live table lacks; with --table.")]
Undo = Annotated[bool, typer.Option("--undo", help="Swap back to the newest rollback point, or to the one named.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a restore that was broken off.")]
Abort = Annotated[bool, typer.Option("--abort", help="Go back to what was live before a restore that was broken off.")]
Forget = Annotated[
    str | None, typer.Option("--forget", help="Remove a rollback point, or what a restore that failed has left.")
]
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
    forget: Forget = None,
    identity: IdentityFile = None,
    signed_by: SignedBy = None,
    keep_sessions: KeepSessions = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the database's name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring back a backup: loaded beside the live database, compared, then swapped in; the old one is kept a while."""
    what, identity = _absolute(what), identity.absolute() if identity else None
    _refuse_no_trial(dry_run=dry_run, others=undo or resume or abort)
    settings = _settings(context, changes=not (dry_run or show_list or forget is not None), ends=resume or abort)
    tell = _quiet if as_json else _say
    if show_list:
        echo_list(settings, as_json=as_json)
    elif forget is not None:
        _forget(settings, forget, yes=yes, as_json=as_json)
    elif resume or abort:
        _end_unfinished(settings, resume=resume, tell=tell, as_json=as_json)
    elif undo:
        _undo(settings, what, yes=yes, keep_sessions=keep_sessions, tell=tell, as_json=as_json)
    else:
        _refuse_half_said(what, table=table, into=into, merge=merge)
        if identity is not None:
            read_identities(identity)
        found = find_backup(settings, str(what), usable=True)
        _remark(found, as_json=as_json)
        if not uploads_only:
            refuse_no_identity(settings, identity)
        asks = sys.stdin.isatty() and not (yes or as_json)
        signer = trusted_signer(settings, found.folder, signed_by, asks=asks)
        trust: Trust = {"identity": identity, "signed_by": signer}
        if dry_run:
            echo_plan(settings, prepare(settings, found.folder, **trust, tell=tell, compares=True), as_json=as_json)
        elif table is not None and into is not None:
            one = restore_one_table(settings, found.folder, table=table, into=into, tell=tell, merges=merge, **trust)
            _echo_table(one, as_json=as_json)
        elif uploads_only:
            _echo_uploads(
                found, restore_uploads(settings, found.folder, tell=tell, signed_by=trust["signed_by"]), as_json=as_json
            )
        else:
            _confirm(settings, found, yes=yes, as_json=as_json)
            done = restore(settings, found.folder, tell=tell, keep_sessions=keep_sessions, **trust)
            _echo_restored(settings, done, as_json=as_json)


def _settings(context: typer.Context, *, changes: bool, ends: bool) -> Settings:
    """What changes the live data is done as by the Pharos that runs, or by the restore that `ends` now."""
    own = Settings()
    return context.with_resource(as_started(own, ends=ends)) if changes else own


def _undo(settings: Settings, what: str | None, *, yes: bool, keep_sessions: bool, tell: Tell, as_json: bool) -> None:
    point = look_for_rollback_point(settings, what)
    if not yes:
        _refuse_question(as_json=as_json)
        echo_line("It takes as long as stopping and starting Pharos, and needs no room on the disk.")
    _ask(settings, f"Swap back to {point.database}, which was live until {moment(point.since)}?", yes=yes)
    undone = undo_restore(settings, tell=tell, keep_sessions=keep_sessions, wanted=point.database)
    _echo_undone(undone, as_json=as_json)


def _refuse_no_trial(*, dry_run: bool, others: bool) -> None:
    if dry_run and others:
        raise Invalid(
            "--dry-run shows what bringing back a backup would do: it does not go with --undo, --resume or --abort. "
            "`pharos restore --list` shows what can be swapped back to.",
            code="no_dry_run",
        )


def _refuse_half_said(what: str | None, *, table: str | None, into: str | None, merge: bool) -> None:
    """Raise `Invalid` with the whole command where words are missing in it."""
    if what is None:
        raise Invalid(
            "Say which backup: `latest`, a date, a moment, a name or a path. `pharos restore --list` shows them.",
            code="no_backup_named",
        )
    if (table is None) != (into is None) or (merge and table is None):
        add = " --merge" if merge else ""
        raise Invalid(
            "One table is put into a new schema beside the live tables, so --table and --into belong together, and "
            f"--merge adds from there the rows that are missing: `pharos restore {what} --table {table or 'documents'} "
            f"--into {into or 'scratch'}{add}`.",
            code="table_without_schema",
        )


def _confirm(settings: Settings, found: Found, *, yes: bool, as_json: bool) -> None:
    """What it costs, then the question. Raises `StorageFull` where there is no room."""
    if not yes:
        _refuse_question(as_json=as_json)
        echo_price(settings, found.folder)
    _ask(settings, f"Replace the live database by {found.backup.name}? What came since then goes.", yes=yes)


def _forget(settings: Settings, name: str, *, yes: bool, as_json: bool) -> None:
    """Here the name of what goes is typed: the live database's has no part in it."""
    if has_no_database(settings):
        raise NotFound(f"There is no database here, so there is no {name} either.", code="no_rollback_point")
    with server_at_hand(settings):
        kept = find_kept(settings, name)
        size = size_text(kept.bytes)
        if not yes:
            _refuse_question(as_json=as_json)
            question = f"Remove {name} ({size}) for good? Nobody can swap back to it then.\nType its name to go on"
            if typer.prompt(question) != name:
                raise Invalid(f"That was not {name}, so nothing was changed.", code="not_confirmed")
        forget_kept(settings, name)
    if as_json:
        echo_json({"removed": name, "bytes": kept.bytes})
    else:
        echo_line(f"Removed {name}: {size} are free again.")


def _refuse_question(*, as_json: bool) -> None:
    """Raise `Invalid` (`nobody_to_ask`) where a program reads what we say: a question is no JSON."""
    if as_json:
        raise Invalid(
            "With --json nobody is asked, so nothing was changed. See what it would do with --dry-run or --list, then "
            "add --yes.",
            code="nobody_to_ask",
        )


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
        with remember_faults(settings, folder):
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
    """A pipe that is closed ends other commands; a restore goes on unheard, for else it might leave Pharos stopped."""
    with suppress(SystemExit):
        echo_line(f"{sentence} ...")


def _quiet(step: str, sentence: str) -> None:
    return


def _remark(found: Found, *, as_json: bool) -> None:
    if found.remark and not as_json:
        echo_line(found.remark)


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
        f"Added {count_text(len(blobs.missing), 'missing file')} and replaced "
        f"{count_text(len(blobs.damaged), 'damaged one')} from {found.backup.name}; {blobs.present} were whole."
    )
    if blobs.damaged:
        echo_line("The damaged ones lie in aside-… beside the others and are removed after a day.")
