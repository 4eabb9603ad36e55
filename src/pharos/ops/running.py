"""Who runs the installation of a data directory: a lock that only its supervisor holds, and what it says of itself.

The kernel drops the lock when its holder dies and names the holder to whoever asks, so a process id is never believed
because a file left by a killed supervisor says so. It is a POSIX lock: asking takes nothing, so nobody who looks can
keep somebody else from starting. Its price: closing any other handle of the file would drop it, so the holder opens
the file once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pharos.infra.errors import Conflict
from pharos.infra.settings import Settings

PARTS = ("postgres", "embedder", "worker", "web")
"""In the order of starting; they are stopped the other way round."""
READY_SECONDS = 120.0
"""A start that takes longer has failed."""

STRUCT_FLOCK = "hhqqi0q"  # fcntl(2) on 64-bit Linux: type, whence, start, length, process


@dataclass(frozen=True)
class State:
    """What the supervisor says of itself in `run/supervisor.json`; `parts`: name -> `pid`, `restarts`.

    `says_more`: when it was ready the models were not, or there was no account yet. Who started it tells that too, and
    the link for the first account, which is a secret, is not written down.
    """

    pid: int
    port: int
    url: str
    is_ready: bool
    parts: Mapping[str, Mapping[str, int]]
    says_more: bool = True


@contextlib.contextmanager
def supervisor_lock(settings: Settings) -> Iterator[None]:
    """Only one supervisor to a data directory. Raises `Conflict` naming the one that is there."""
    file = _lock_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a+") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows either
            pid, state = _holder_of(handle.fileno()), read_state(settings)
            who = f" (process {pid}{f', {state.url}' if state else ''})" if pid else ""
            raise Conflict(
                f"Pharos already runs on {settings.data_dir}{who}. `pharos status` shows it, `pharos down` stops it.",
                code="already_running",
            ) from error
        yield


def supervisor_pid(settings: Settings) -> int | None:
    """The process that holds the data directory, as the kernel says; None when there is none."""
    try:
        handle = os.open(_lock_file(settings), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _holder_of(handle)
    finally:
        os.close(handle)


def start_of_running(settings: Settings) -> tuple[Path, Mapping[str, str]] | None:
    """In which directory and with what environment the running supervisor was started; None when none runs. Asked of
    the kernel, since secrets in it are not to be written to a disk. Raises `Conflict` when it is another user's: root
    may read those, but would run that user's code by them."""
    pid = supervisor_pid(settings)
    if pid is None:
        return None
    with contextlib.suppress(psutil.AccessDenied):  # another user's too
        try:
            process = psutil.Process(pid)
            if process.uids().effective == os.geteuid():
                return Path(process.cwd()), process.environ()
        except psutil.NoSuchProcess:
            return None
    raise Conflict(
        f"Pharos (process {pid}) belongs to another user, who has to start it again. Run this as that user.",
        code="other_user",
    )


def read_state(settings: Settings) -> State | None:
    """What the running supervisor last wrote; None when none runs or it has not written anything yet."""
    holder = supervisor_pid(settings)
    try:
        state = State(**json.loads(_state_file(settings).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return state if holder is not None and state.pid == holder else None


def write_state(settings: Settings, state: State) -> None:
    """Appears whole or not at all. Raises `OSError` when the disk is full."""
    file = _state_file(settings)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state)))
    fresh.replace(file)


def forget_state(settings: Settings) -> None:
    _state_file(settings).unlink(missing_ok=True)


def part_process(state: State, name: str) -> psutil.Process | None:
    """The living process of a part; None while it is down. A stranger who got its number is no child of ours."""
    try:
        process = psutil.Process(state.parts[name]["pid"])
        is_ours = process.ppid() == state.pid
        return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _holder_of(handle: int) -> int | None:
    """Whom the lock would have to wait for."""
    wanted = struct.pack(STRUCT_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(STRUCT_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _lock_file(settings: Settings) -> Path:
    return settings.data_dir / "run" / "supervisor.lock"


def _state_file(settings: Settings) -> Path:
    return settings.data_dir / "run" / "supervisor.json"
