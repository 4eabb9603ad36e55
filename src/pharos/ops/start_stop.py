"""Start and stop the installation of a data directory from another process, and have its Postgres for oneself."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Literal

import psutil

from pharos.infra import embedded_postgres
from pharos.infra.errors import Unavailable
from pharos.infra.settings import Settings, child_environment
from pharos.ops.log_files import log_file, open_log
from pharos.ops.running import READY_SECONDS, State, read_state, supervisor_lock, supervisor_pid

DOWN_SECONDS = 120.0

Ran = Literal["everything", "postgres"]
"""What an installation runs: all its parts, or Postgres alone."""


def start_detached(settings: Settings, *, only: str | None = None) -> State:
    """Start a supervisor that goes on running, and wait until it is ready. Raises `Unavailable` with its last words."""
    arguments = [sys.executable, "-m", "pharos", "up", *(["--only", only] if only else [])]
    with open_log(settings.data_dir, "supervisor") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(settings),
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_SECONDS
    while (state := read_state(settings)) is None or not state.is_ready:
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log_file(settings.data_dir, "supervisor").read_text(errors="replace").splitlines()[-5:]
            raise Unavailable("Pharos did not start. Its last words:\n" + "\n".join(tail), code="not_started")
        time.sleep(0.05)
    return state


def what_runs(settings: Settings) -> Ran | None:
    """What runs now; None when nothing does."""
    state = read_state(settings)
    if state is None:
        return None
    return "everything" if "web" in state.parts else "postgres"


def run_again(settings: Settings, ran: Ran | None) -> None:
    """See that what once ran does so now, and nothing but it; None asks for nothing. Raises as `start_detached`."""
    if ran is None or what_runs(settings) == ran:
        return
    stop_running(settings)
    start_detached(settings, only=None if ran == "everything" else ran)


def stop_running(settings: Settings) -> State | None:
    """Stop what runs, gently: requests and jobs in flight are finished. What it was; None when nothing ran.

    Raises `Unavailable` when it has not ended after two minutes.
    """
    state = read_state(settings)
    if state is None:
        return None
    deadline = time.monotonic() + DOWN_SECONDS
    try:
        process = psutil.Process(state.pid)
        process.send_signal(signal.SIGTERM)
        # a zombie has ended: whoever started it, and would have to ask for its code, may never do so
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                raise Unavailable(f"Process {state.pid} has not stopped after {DOWN_SECONDS:.0f} s.")
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass  # it ended by itself just now
    return state


def wait_until_down(settings: Settings) -> None:
    """Stop what runs, however long that takes: the supervisor ends each part that does not end. One that was told to
    stop before is not hurried by being told again."""
    if (pid := supervisor_pid(settings)) is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).send_signal(signal.SIGTERM)
    while supervisor_pid(settings) == pid:
        time.sleep(0.05)


@contextlib.contextmanager
def postgres_alone(settings: Settings) -> Iterator[None]:
    """The database server without the rest of Pharos, which cannot be started meanwhile; it dies with this process.

    A server given by URL is somebody else's and just used. Raises `Conflict` while Pharos runs.
    """
    with supervisor_lock(settings):
        if settings.database_url is not None:
            yield
            return
        cluster = embedded_postgres.initialise(settings.data_dir)
        embedded_postgres.stop(cluster)  # one left by a killed process is shutting down by itself
        with open_log(settings.data_dir, "postgres") as output:
            process = embedded_postgres.start(cluster, output=output)
        try:
            embedded_postgres.wait_until_ready(cluster, process)
            yield
        finally:
            embedded_postgres.stop(cluster)
            process.wait()
