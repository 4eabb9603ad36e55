"""How far a restore has come, in a file: one that was killed is gone on with or undone by what it says.

`run/restore.json` is there from before the first database is made until what ran runs again. It only says what was
meant. What has happened is asked of the server: a swap is one transaction, so the database that was live has its new
name or it has not.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from pharos.infra.errors import Conflict, NotFound
from pharos.infra.settings import Settings, variables_given
from pharos.ops.backup.manifest import write_private
from pharos.ops.start_stop import Ran, what_runs

CLOCK_SECONDS = 2.0
"""When a process began is counted from the boot, whose time moves a little when the clock is set."""

STOPPING = ("stop", "start", "again")
"""Steps at which what runs is stopped, to be started again."""

Tell = Callable[[str, str], None]
"""Told each step as it begins: its name and a sentence."""


@dataclass(frozen=True)
class Unfinished:
    """A restore or an undo under way. `database` is to become the live one; `before` is what the live one is called
    from the swap on: None until then, and always where `replaces` says that there was none. `folder` is the backup's,
    empty for an undo; `ran` is what is to run at the end. `began` is when the process `pid` did, in seconds.
    `directory` is where what ran was started, `variables` names those of its environment that are settings. `owner` is
    the number of the user whose file it was read from, whatever stands in it."""

    what: Literal["restore", "undo"]
    folder: str
    database: str
    replaces: bool
    ran: Ran | None
    identity: str | None = None
    signed_by: str | None = None
    keep_sessions: bool = False
    step: str = ""
    before: str | None = None
    pid: int = 0
    began: float = 0.0
    since: str = ""
    directory: str = ""
    variables: Sequence[str] = ()
    owner: int = -1

    def with_ran(self, ran: Ran | None) -> Unfinished:
        """The same, with something else to run at the end."""
        return replace(self, ran=ran)

    @property
    def words(self) -> str:
        of = f" of {Path(self.folder).name}" if self.folder else ""
        what = f"The restore{of}" if self.what == "restore" else "Undoing a restore"
        return (
            f"{what} was broken off at the step {self.step} ({self.since}). `pharos restore --resume` goes on with "
            "it, `pharos restore --abort` goes back to what was live before."
        )


@dataclass
class Journal:
    """The file of the restore that this process is at. `is_swapped` while the live database is the one it brought."""

    file: Path
    state: Unfinished
    tell: Tell
    is_swapped: bool = False

    @staticmethod
    def of(settings: Settings, state: Unfinished, tell: Tell) -> Journal:
        """That of this process, which is where and has what Pharos was started with."""
        pid = os.getpid()
        began, directory = psutil.Process(pid).create_time(), str(Path.cwd())
        mine = replace(state, pid=pid, began=began, directory=directory, variables=variables_given())
        return Journal(_file(settings), mine, tell)

    def step(self, name: str, sentence: str, *, before: str | None = None) -> None:
        """A step begins; `before` is written with that of the swap."""
        self.state = replace(self.state, step=name, before=before or self.state.before)
        fresh = self.file.with_suffix(".new")
        write_private(fresh, json.dumps(asdict(self.state)).encode())
        fresh.replace(self.file)
        self.tell(name, sentence)


@contextmanager
def keep_journal(settings: Settings, begun: Unfinished, *, tell: Tell) -> Iterator[Journal]:
    """Write down what is under way, from its first step on. At the end the file goes, unless an error has left
    something to be gone on with or undone: what ran does not, or what does not work is live."""
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    journal = Journal.of(settings, replace(begun, since=since), tell)
    try:
        yield journal
    except BaseException:
        if not journal.is_swapped and what_runs(settings) == begun.ran:
            forget(settings)
        raise
    forget(settings)


def read_unfinished(settings: Settings) -> Unfinished | None:
    """What a restore has left that was killed; None when there is none, or it is still at work."""
    found = read_journal(settings)
    return None if found is None or _is_at_work(found) else found


def read_journal(settings: Settings) -> Unfinished | None:
    """What a restore that is at work or was killed has in mind; None when there is none.

    A symbolic link is none: what it leads to may be anybody's.
    """
    try:
        descriptor = os.open(_file(settings), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    with os.fdopen(descriptor, "rb") as stream:  # the owner is that of what is read, even if the file is replaced now
        owner, content = os.fstat(descriptor).st_uid, stream.read()
    try:
        return replace(Unfinished(**json.loads(content)), owner=owner)
    except (ValueError, TypeError):
        return None  # another version's: whoever restores again does not need it, and Pharos must start


def refuse_anothers_journal(settings: Settings, found: Unfinished) -> None:
    """Raise `Conflict` (`other_user`) unless this user's restore wrote what was `found`: it names the directory whose
    settings count and the files that are read, and root would do as that user wrote there."""
    if found.owner != os.geteuid():
        raise Conflict(
            f"The restore that was broken off was another user's (number {found.owner}). Run this as that user; or, "
            f"where what it meant does not matter any more, remove {_file(settings)} and restore anew.",
            code="other_user",
        )


def is_stopped_by_restore(settings: Settings) -> bool:
    """Whether a restore at work is just stopping what runs."""
    found = read_journal(settings)
    return found is not None and _is_at_work(found) and found.step in STOPPING


def require_unfinished(settings: Settings) -> Unfinished:
    """The same. Raises `NotFound` when there is none, `Conflict` when it is another user's."""
    found = read_unfinished(settings)
    if found is None:
        raise NotFound(
            "No restore was broken off. `pharos restore --list` shows what can be restored.",
            code="no_unfinished_restore",
        )
    refuse_anothers_journal(settings, found)
    return found


def forget(settings: Settings) -> None:
    """There is nothing to go on with or to undo any more."""
    _file(settings).unlink(missing_ok=True)


def _is_at_work(found: Unfinished) -> bool:
    """Whether its process lives: one of that number that began then."""
    try:
        process = psutil.Process(found.pid)
        is_same: bool = abs(process.create_time() - found.began) < CLOCK_SECONDS
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _file(settings: Settings) -> Path:
    return settings.data_dir / "run" / "restore.json"
