"""Restore as the one that was started: what a restore stops and starts again runs with what it ran with before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings, settings_in, variables_given
from pharos.infra.terminal import error_console
from pharos.ops.backup.restore_journal import Unfinished, read_unfinished, refuse_anothers_journal
from pharos.ops.running import start_of_running
from pharos.ops.start_stop import what_runs

OF_WHOEVER_RESTORES = ("PHAROS_DATA_DIR", "PHAROS_DATABASE_ADMIN_URL")
"""Variables that count as they are given to the restore."""

Start = tuple[Path, Mapping[str, str] | None]
"""The directory and the environment of a start; None for that of this process."""


@contextmanager
def as_started(own: Settings, *, ends: bool = False) -> Iterator[Settings]:
    """The settings that the running Pharos was started with; for the block this process has its directory and its
    environment, which whatever it starts inherits. `own` are those of whoever restores: they say which data directory.
    `ends` where a restore that was killed is to be gone on with or undone.

    The environment is read from the process, since secrets in it are not to be written to a disk. Where a restore was
    killed once it had stopped Pharos it is gone: then the directory is known, and which variables there were. Raises
    `Conflict` when Pharos or that restore belongs to another user (`other_user`), or when one of those variables is not
    set now (`settings_missing`): without it another database server would be taken for the one that the restore was at.
    """
    left, now = read_unfinished(own), what_runs(own)
    started: Start | None = None
    runs = now is not None and (left is None or now == "everything" or left.ran != "everything")
    counts = left is not None and (ends or (not runs and left.ran is not None))
    if left is not None and counts:
        refuse_anothers_journal(own, left)
    if runs:
        started = start_of_running(own)
    elif left is not None and left.directory and counts:
        started = Path(left.directory), None
    if left is not None and (ends or (started is not None and started[1] is None)):
        _refuse_missing(left, started[1] if started is not None else None)
    if started is None:
        yield own
        return
    directory, environment = started
    # where it has gone, no `pharos.env` of somebody else is to be read instead
    with settings_in(directory if directory.is_dir() else own.data_dir, environment) as settings:
        fixed: dict[str, object] = {"data_dir": own.data_dir}
        if settings.database_admin_url is None:  # the one setting that may be given to a restore alone
            fixed["database_admin_url"] = own.database_admin_url
        meant = settings.model_copy(update=fixed)
        differing = [name for name in Settings.model_fields if getattr(meant, name) != getattr(own, name)]
        if differing:
            names = ", ".join(f"PHAROS_{name.upper()}" for name in differing)
            who = "What was broken off had" if environment is None else "Pharos was started with"
            error_console.print(f"{who} another {names} than is set here: its own count.", markup=False)
        yield meant


def _refuse_missing(left: Unfinished, environment: Mapping[str, str] | None) -> None:
    here = variables_given(environment=environment)
    missing = [name for name in left.variables if name not in here and name not in OF_WHOEVER_RESTORES]
    if missing:
        raise Conflict(
            f"The restore that was broken off ran with {', '.join(missing)}, which is not set now: it might go on in "
            "another database. Set the same here, stop Pharos if it runs (`pharos down`), and run this again.",
            code="settings_missing",
        )
