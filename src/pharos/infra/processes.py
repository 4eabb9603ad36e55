"""Child processes that cannot outlive their parent, and waiting for one without polling."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)  # loaded now: between fork and exec nothing may be imported


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """What a child runs before its program: the kernel sends it `death_signal` when its parent is gone.

    The kernel watches the *thread* that spawned, so spawn from one that lives as long as the process does. It also
    forgets the wish when the child changes user, which is why this runs after that (`Popen` keeps that order).
    """
    parent = os.getpid()

    def run() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return run


def spawn(
    argv: Sequence[str | Path],
    *,
    death_signal: signal.Signals,
    output: int | IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, stdout and stderr joined into `output`, dying with this process."""
    return subprocess.Popen(  # noqa: S603 - our own programs, never a shell
        [str(part) for part in argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd=cwd,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
        start_new_session=True,
        preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509 - one system call, no locks, nothing imported
    )


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is gone, end the block as Ctrl-C does: what it made is removed and what it
    stopped is started on the way out, which no second one cuts short. Whoever is deaf to one, under nohup, stays so.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def end(*_: object) -> None:
        for number in heard:
            signal.signal(number, lambda *_: None)  # not SIG_IGN: what is started now would inherit that
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


async def exited(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a child; its exit code, negative for a signal."""
    if (code := process.poll()) is not None:
        return code
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        if not over.done():
            over.set_result(None)

    loop.add_reader(descriptor, ended)
    try:
        await over
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
