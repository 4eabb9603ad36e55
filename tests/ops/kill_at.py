"""Kill -9 a process of ours at a named step, and look what is left of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from pharos.infra.postgres_place import places_outside
from pharos.infra.settings import Settings

FORK = multiprocessing.get_context("fork")  # a child that has everything imported already
LIMIT_SECONDS = 120.0


def kill_at(step: str, work: Callable[[], object]) -> None:
    """Run `work` in another process, which is killed as it reaches `step`.

    A step is `module.function` as it begins, `module.function:end` as it first returns (or yields). The module is the
    last part of its name; a method is `module.Class.method`.
    """
    child = FORK.Process(target=_watched, args=(step, work))
    child.start()
    child.join(LIMIT_SECONDS)
    assert child.exitcode == -signal.SIGKILL, f"{step}: it ended with {child.exitcode}"


def _watched(step: str, work: Callable[[], object]) -> None:
    name, _, when = step.partition(":")
    event = "return" if when == "end" else "call"

    def watch(frame: FrameType, happened: str, _: object) -> None:
        if happened == event and frame.f_code.co_qualname == name.partition(".")[2]:
            module = str(frame.f_globals.get("__name__", "")).rpartition(".")[2]
            if module == name.partition(".")[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(watch)
    sys.setprofile(watch)
    work()


def left_behind(settings: Settings) -> list[str]:
    """What there is of scratch servers: folders, clusters elsewhere, and processes, which are given time to end."""
    above = settings.data_dir / "tmp"
    folders = list(above.glob("*"))  # none where nothing was ever begun
    # a folder that is gone may have left a place that was named after it
    places = [place for folder in folders for place in places_outside(folder)] + clusters_of(settings)
    working = [process for process in psutil.process_iter() if _works_in(process, [above, *places])]
    _, alive = psutil.wait_procs(working, timeout=10.0)
    return [*(str(path) for path in (*folders, *places)), *(f"process {process.pid}" for process in alive)]


def clusters_of(settings: Settings) -> list[Path]:
    """Places outside the data directory that were made for something below it."""
    known = Path("/var/lib/pharos/clusters").glob("*/data_dir.txt")
    return [file.parent for file in known if file.read_text().startswith(f"{settings.data_dir}/tmp/")]


def _works_in(process: psutil.Process, places: list[Path]) -> bool:
    try:
        return any(Path(process.cwd()).is_relative_to(place) for place in places)
    except psutil.Error:
        return False
