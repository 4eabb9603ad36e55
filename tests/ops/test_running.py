"""Who is believed to run an installation: the holder of the lock, never a process whose number is in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Thread

import psutil
import pytest
from typer.testing import CliRunner

from pharos.cli import app
from pharos.infra.errors import Conflict, Invalid, Unavailable
from pharos.infra.settings import Settings
from pharos.ops import commands
from pharos.ops.running import (
    State,
    part_process,
    read_state,
    start_of_running,
    supervisor_lock,
    supervisor_pid,
    write_state,
)
from pharos.ops.start_stop import wait_until_down

HOLDER = """
import sys
from pathlib import Path
from threading import Thread
from pharos.infra.settings import Settings
from pharos.ops.running import supervisor_lock
with supervisor_lock(Settings(_env_file=None, data_dir=Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return Settings(_env_file=None, data_dir=tmp_path)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any installation."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


@contextmanager
def lock_held(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, str(settings.data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def state_of(pid: int, **parts: int) -> State:
    about = {name: {"pid": part, "restarts": 0} for name, part in parts.items()}
    return State(pid=pid, port=8000, url="http://localhost:8000", is_ready=True, parts=about)


@pytest.mark.contract("DE-14", part="down ends nobody else's process")
def test_a_stranger_who_got_the_dead_supervisors_number_is_neither_believed_nor_ended(
    settings: Settings, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(settings.data_dir))
    write_state(settings, state_of(stranger.pid))
    assert read_state(settings) is None
    commands.down(delete_data=False, yes=False)
    assert stranger.poll() is None
    with lock_held(settings) as holder:
        assert supervisor_pid(settings) == holder.pid
        assert read_state(settings) is None  # the new supervisor has not written yet; the old file is not its word
        write_state(settings, state_of(holder.pid))
        assert read_state(settings) == state_of(holder.pid)
    assert (supervisor_pid(settings), read_state(settings)) == (None, None)


@pytest.mark.parametrize("words", [["status"], ["status", "--json"]])
def test_status_fails_for_a_script_when_nothing_runs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(settings.data_dir))
    ended = CliRunner().invoke(app, words)
    assert (ended.exit_code, "pharos up" in ended.stdout or '"running": false' in ended.stdout) == (7, True)


def test_looking_at_the_lock_never_takes_it(settings: Settings) -> None:
    looking = "while True: supervisor_pid(settings)"
    script = HOLDER.partition("with")[0] + (
        "from pharos.ops.running import supervisor_pid\n"
        "settings = Settings(_env_file=None, data_dir=Path(sys.argv[1]))\n"
        f"print('looking', flush=True)\n{looking}\n"
    )
    with supervisor_lock(settings):
        pass  # the file is there
    command = [sys.executable, "-c", script, str(settings.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looker:
        assert looker.stdout is not None
        assert looker.stdout.readline() == b"looking\n"
        for _ in range(2000):
            with supervisor_lock(settings):
                pass
        looker.kill()


def test_a_supervisor_that_was_never_told_to_stop_is_told_by_whoever_waits_for_its_end(settings: Settings) -> None:
    """A signal can come before the one that asks it to."""
    with lock_held(settings) as holder:
        waiting = Thread(target=wait_until_down, args=(settings,), daemon=True)
        waiting.start()
        assert holder.wait(20) == -signal.SIGTERM
        waiting.join(20)
        assert not waiting.is_alive()


def test_root_takes_neither_directory_nor_environment_of_another_users_pharos(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_held(settings):
        start = start_of_running(settings)
        assert start is not None
        assert (start[0], start[1]["PYTEST_CURRENT_TEST"]) == (Path.cwd(), os.environ["PYTEST_CURRENT_TEST"])
        somebody = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
        with pytest.raises(Conflict, match="belongs to another user"):
            start_of_running(settings)
    assert start_of_running(settings) is None


def test_a_second_supervisor_is_refused_with_the_number_of_the_first(settings: Settings) -> None:
    with (
        lock_held(settings) as holder,
        pytest.raises(Conflict, match=rf"process {holder.pid}"),
        supervisor_lock(settings),
    ):
        pass


def test_a_bad_secret_stops_the_start_before_anything_is_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("JWT_SECRET", "too short")
    for detach in (True, False):
        with pytest.raises(Invalid, match="JWT_SECRET must be at least 32 bytes"):
            commands.up(detach=detach)
    assert not (settings.data_dir / "postgres").exists()
    assert not (settings.data_dir / "logs").exists()


def test_a_part_is_a_child_of_its_supervisor_and_alive(stranger: subprocess.Popen[bytes]) -> None:
    state = state_of(os.getpid(), web=stranger.pid, worker=os.getppid())
    assert part_process(state, "web") == psutil.Process(stranger.pid)
    assert part_process(state, "worker") is None
    stranger.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
    assert part_process(state, "web") is None
    assert asdict(state)["parts"]["web"]["pid"] == stranger.pid


@pytest.mark.contract("DE-12", part="restart of a part that is down just now")
def test_restarting_a_part_that_is_down_says_that_it_comes_back_by_itself(
    settings: Settings, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(settings.data_dir))
    with lock_held(settings) as holder:
        write_state(settings, state_of(holder.pid, web=stranger.pid))
        with pytest.raises(Unavailable, match="down just now and is started again by itself"):
            commands.restart("web")
    assert stranger.poll() is None
