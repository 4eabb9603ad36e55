"""The supervisor's watching: it outlives a full disk, slows down for what keeps dying, and never ends unnoticed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pharos.infra.settings import Settings
from pharos.ops.supervisor import Part, Supervisor


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """One without parts of its own; what it starts ends at once."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (tmp_path / "run").mkdir()
    settings = Settings(_env_file=None, data_dir=tmp_path, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    return Supervisor(settings, names=("postgres",), say=lambda _: None, shows_setup_link=False)


def ended_part(*, seconds_ago: float = 0) -> Part:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return Part("web", process, started=time.monotonic() - seconds_ago)


@asynccontextmanager
async def watched(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
    watcher = asyncio.create_task(supervisor._keep("web"))
    yield watcher
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    supervisor.parts["web"].process.wait()


async def until(what: Callable[[], bool], watcher: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        while not what() and not watcher.done():  # noqa: ASYNC110 - it asks about processes and logs
            await asyncio.sleep(0.01)


async def test_a_state_that_cannot_be_written_does_not_end_the_watching(supervisor: Supervisor) -> None:
    (supervisor.settings.data_dir / "run" / "supervisor.new").mkdir()  # no room for the file
    supervisor.parts["web"] = ended_part()
    async with watched(supervisor) as watcher:
        await until(lambda: supervisor.parts["web"].restarts == 2, watcher)
        assert not watcher.done()
    assert supervisor.parts["web"].restarts == 2


async def test_starts_that_fail_early_come_later_and_later(supervisor: Supervisor) -> None:
    (supervisor.settings.data_dir / "logs" / "web.log").mkdir(parents=True)  # it cannot be opened
    supervisor.parts["web"] = ended_part(seconds_ago=1000)
    with capture_logs() as events:

        def waits() -> list[float]:
            return [event["restart_in_seconds"] for event in events if event["event"] == "part.ended"]

        async with watched(supervisor) as watcher:
            await until(lambda: len(waits()) == 3, watcher)
    assert waits() == [0.25, 0.5, 1.0]
    assert {event["event"] for event in events} == {"part.ended", "part.not_started"}


async def test_logs_that_cannot_be_rotated_do_not_end_the_tidying(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharos.ops.supervisor.TIDY_SECONDS", 0.0)
    monkeypatch.setattr("pharos.ops.log_files.ROTATE_BYTES", 0)
    (supervisor.settings.data_dir / "logs" / "web.log").mkdir(parents=True)  # cannot be copied
    with capture_logs() as events:
        tidying = asyncio.create_task(supervisor._tidy())
        await until(lambda: len(events) > 2, tidying)
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
    assert {event["event"] for event in events} == {"logs.not_rotated"}


async def test_a_watcher_that_ends_ends_the_supervisor_with_its_reason(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/\0")  # what nobody foresaw: a start that raises a ValueError
    supervisor.parts["web"] = ended_part()
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="null byte"):
            await supervisor.run()
