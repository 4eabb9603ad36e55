"""Go on with a restore that was killed, or undo it: what the journal meant, and what the server says has happened."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pharos.infra.database_roles import Administration, read_administration
from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings
from pharos.ops.backup.restore import Restored, Undone, restore, undo_restore
from pharos.ops.backup.restore_journal import Journal, Tell, Unfinished, forget, keep_journal, require_unfinished
from pharos.ops.backup.restore_swap import postgres_running, stopped, swap_back, try_out
from pharos.ops.backup.rollback_points import BEFORE, free_name, has_database
from pharos.ops.backup.scratch import drop_database
from pharos.ops.operation_lock import hold_operation_lock
from pharos.ops.smoke import Check
from pharos.ops.start_stop import Ran, run_again, what_runs


@dataclass(frozen=True)
class Finished:
    """What was left to do once the databases had been swapped. `rollback_point` is None where there was none before."""

    rollback_point: str | None
    is_running: bool
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Aborted:
    """`swapped_back`: what had been restored was live; it is called `kept` now. Else nothing had been changed."""

    swapped_back: bool
    kept: str | None
    is_running: bool


def resume_restore(settings: Settings, *, tell: Tell) -> Restored | Undone | Finished:
    """Start what ran and see whether it works where the databases were swapped; else do the same anew from the start.

    Raises `NotFound` when no restore was broken off, and as `restore` and `undo_restore` do.
    """
    left = require_unfinished(settings)
    with ExitStack() as held:
        ran = held.enter_context(postgres_running(settings))
        known = read_administration(settings)
        if is_swapped(known, left):
            held.enter_context(hold_operation_lock(settings, "restore"))
            return _finish(settings, left, ran, tell=tell)
    if left.what == "undo":
        return undo_restore(settings, tell=tell, keep_sessions=left.keep_sessions, wanted=left.database)
    return restore(
        settings,
        Path(left.folder),
        tell=tell,
        identity=Path(left.identity) if left.identity else None,
        signed_by=left.signed_by,
        keep_sessions=left.keep_sessions,
    )


def abort_restore(settings: Settings, *, tell: Tell) -> Aborted:
    """Remove what is half made, swap back where the databases were swapped, start what ran.

    What had been live meanwhile becomes a rollback point: people may have worked with it. Raises `NotFound` when no
    restore was broken off, `Conflict` when there was no database before it.
    """
    left = require_unfinished(settings)
    with ExitStack() as held:
        ran = held.enter_context(postgres_running(settings))
        known = read_administration(settings)
        is_served = has_database(known, known.database)
        held.enter_context(hold_operation_lock(settings, "aborting a restore", with_database=is_served))
        swapped = is_swapped(known, left)
        kept = _swap_back(settings, known, left, ran, tell=tell) if swapped else None
        if left.what == "restore" and not swapped:
            tell("drop", "Removing what is half made")
            drop_database(known.admin_url, left.database)
    tell("again", "Starting what ran")
    run_again(settings, ran)
    forget(settings)
    return Aborted(swapped, kept, ran is not None)


def is_swapped(known: Administration, left: Unfinished) -> bool:
    """Whether what it brought is the live database."""
    if not left.replaces:  # a live one may have been made since: only what was loaded is gone once it has its name
        return left.step in ("swap", "swapped") and not has_database(known, left.database)
    return left.before is not None and has_database(known, left.before)


def _finish(settings: Settings, left: Unfinished, ran: Ran | None, *, tell: Tell) -> Finished:
    with keep_journal(settings, left.with_ran(ran), tell=tell) as journal:
        journal.is_swapped = True
        checks = try_out(settings, journal) if ran is not None else ()
    return Finished(left.before, ran is not None, checks)


def _swap_back(settings: Settings, known: Administration, left: Unfinished, ran: Ran | None, *, tell: Tell) -> str:
    """Under which name the restored database is kept."""
    if left.before is None:
        raise Conflict(
            "There was no database before this restore, so there is nothing to go back to. `pharos restore --resume` "
            "ends it; `pharos down --delete-data` removes all of it.",
            code="nothing_before",
        )
    # of an undo it was a rollback point, and becomes that again
    kept = left.database if left.what == "undo" else free_name(known, BEFORE)
    with ExitStack() as held:
        journal = Journal.of(settings, left.with_ran(ran), tell)
        if what_runs(settings) is not None:
            held.enter_context(stopped(settings, journal))
        tell("back", "Swapping back")
        swap_back(read_administration(settings), journal, kept=kept)
    return kept
