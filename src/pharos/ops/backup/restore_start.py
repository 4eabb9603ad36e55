"""Restore as the one that was started: what a restore stops and starts again runs with what it ran with before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pharos.infra.settings import Settings, settings_in, variables_given
from pharos.infra.terminal import error_console
from pharos.ops.backup.restore_journal import Unfinished, read_unfinished
from pharos.ops.running import start_of_running
from pharos.ops.start_stop import what_runs

Start = tuple[Path, Mapping[str, str] | None]
"""The directory and the environment of a start; None for that of this process."""


@contextmanager
def as_started(own: Settings) -> Iterator[Settings]:
    """The settings that the running Pharos was started with; for the block this process has its directory and its
    environment, which whatever it starts inherits. `own` are those of whoever restores: they say which data directory.

    The environment is read from the process, since secrets in it are not to be written to a disk. Where a restore was
    killed once it had stopped Pharos it is gone: then the directory is known, and it is said which variables are not
    the same. Raises `Conflict` when Pharos belongs to another user.
    """
    left, now = read_unfinished(own), what_runs(own)
    if now is not None and (left is None or now in ("everything", left.ran)):
        started: Start | None = start_of_running(own)
    else:
        started = _start_before(left) if left is not None else None
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
            error_console.print(
                f"Pharos was started with another {names} than is set here: its own count.", markup=False
            )
        yield meant


def _start_before(left: Unfinished) -> Start | None:
    """Where what a killed restore had stopped was started; says what it starts with now."""
    if not left.directory:
        return None
    if left.ran is not None:
        here = variables_given()
        missing = [name for name in left.variables if name not in here and name != "PHAROS_DATA_DIR"]
        words = (
            f"Pharos starts with {Path(left.directory) / 'pharos.env'} and the variables of this shell "
            f"({', '.join(here) or 'none is set'})."
        )
        if missing:
            words += (
                f" It ran with {', '.join(missing)} too: afterwards set them, then run `pharos down` and `pharos up`."
            )
        error_console.print(words, markup=False)
    return Path(left.directory), None
