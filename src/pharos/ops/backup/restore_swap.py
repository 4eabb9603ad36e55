"""The end of a restore: what runs is stopped, the names are swapped, it is started again and asked whether it works."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pharos.infra.database_roles import Administration, read_administration
from pharos.infra.errors import PharosError, Unavailable
from pharos.infra.settings import Settings
from pharos.ops.backup.restore_journal import Journal, read_unfinished
from pharos.ops.backup.rollback_points import BEFORE, FAILED, free_name, swap
from pharos.ops.backup.sample_question import ask_sample
from pharos.ops.listen import local_url
from pharos.ops.smoke import Check, run_smoke
from pharos.ops.start_stop import (
    Ran,
    postgres_alone,
    run_again,
    start_detached,
    stop_running,
    wait_until_down,
    what_runs,
)

PAUSE_SECONDS = 0.2
"""Of the smoke test's stream: no proxy stands between this machine and its own web process."""


@contextmanager
def postgres_running(settings: Settings) -> Iterator[Ran | None]:
    """A database server while the block runs. Gives what is to run when all is done: what runs now, or what a restore
    that was killed had stopped, if that was more; for that one Postgres goes on running alone."""
    left, now = read_unfinished(settings), what_runs(settings)
    ran = now if now == "everything" or left is None else left.ran or now
    if ran is None:
        with postgres_alone(settings):
            yield None
        return
    if now is None:
        start_detached(settings, only="postgres")
    yield ran


def put_in_place(settings: Settings, known: Administration, journal: Journal) -> tuple[Check, ...]:
    """Swap, with what runs stopped before and what ran started after; swap back when it does not work. Returns the
    checks of the smoke test."""
    if journal.state.ran is None:
        _swap(known, journal)
        return ()
    with stopped(settings, journal):
        _swap(read_administration(settings), journal)
    return try_out(settings, journal)


def try_out(settings: Settings, journal: Journal) -> tuple[Check, ...]:
    """Let run what ran and ask it what people ask. Raises `Unavailable` (`restore_not_healthy`) when it does not work:
    then what was live before is so again."""
    try:
        journal.step("start", "Starting Pharos")
        run_again(settings, journal.state.ran)
        if journal.state.ran != "everything":
            return ()
        journal.step("smoke", "Asking what people ask of it")
        report = asyncio.run(run_smoke(local_url(settings), pause_seconds=PAUSE_SECONDS))
        checks = (*report.checks, asyncio.run(ask_sample(settings))) if report.passed else report.checks
        failed = [check for check in checks if check.result == "FAIL"]
        if not failed:
            return checks
        said = "; ".join(f"{check.name}: {check.said}" for check in failed)
    except PharosError as error:
        said = error.message
    journal.step("back", f"Swapping back: {said}")
    with stopped(settings, journal):
        known = read_administration(settings)
        kept = free_name(known, FAILED)
        swap_back(known, journal, kept=kept)
    run_again(settings, journal.state.ran)
    raise Unavailable(
        f"What was restored does not work ({said}), so the old database is live again. The restored one is kept as "
        f"{kept}; `pharos logs web` and `pharos doctor` say more. To have it live all the same, to mend it there: "
        "`pharos down`, the same restore, `pharos up`.",
        code="restore_not_healthy",
    )


def swap_back(known: Administration, journal: Journal, *, kept: str) -> None:
    """Let what was live before be so again; what is live now is called `kept` from then on."""
    assert journal.state.before is not None, "what ran had a database"
    swap(known, fresh=journal.state.before, kept=kept)
    journal.is_swapped = False


@contextmanager
def stopped(settings: Settings, journal: Journal) -> Iterator[None]:
    """Everything but Postgres stopped. It is started again by the caller, or here when the block fails or the stopping
    takes too long: we wait until it has stopped, and a signal may have come before it was told to."""
    journal.step("stop", "Stopping Pharos")
    try:
        stop_running(settings)
        with postgres_alone(settings):
            yield
    except BaseException:
        with suppress(OSError):  # a full disk, or a terminal that is gone: neither may keep it stopped
            journal.step("again", "Starting what ran again, once it has stopped")
        wait_until_down(settings)
        run_again(settings, journal.state.ran)
        raise


def _swap(known: Administration, journal: Journal) -> None:
    before = free_name(known, BEFORE) if journal.state.replaces else None
    journal.step("swap", "Swapping the databases", before=before)
    swap(known, fresh=journal.state.database, kept=before)
    journal.is_swapped = True
    journal.step("swapped", f"The old database is now {before}" if before else "The database is in place")
