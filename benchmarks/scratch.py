"""A whole installation for a measurement: `pharos up --detach` in a directory and on a port of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from benchmarks.memory import PARTS, memory_figures

from pharos.infra.embedded_postgres import free_port
from pharos.infra.settings import Settings
from pharos.ops.running import read_state

COMMAND_SECONDS = 900

NOTHING_BY_ITSELF = {"PHAROS_BACKUP_AT": "", "PHAROS_DRILL_EVERY_DAYS": "0"}
"""The worker makes up for the backup of the past night and restores it in a drill, beside what is measured."""


@dataclass(frozen=True)
class Scratch:
    """`settings` let this process open the installation's runtime; `variables` are set for its commands."""

    folder: Path
    settings: Settings
    variables: dict[str, str]

    def run(self, *arguments: str) -> tuple[float, str]:
        """A `pharos` command: the seconds it took from start to exit, and its stdout. Raises when it fails."""
        command = [str(Path(sys.executable).with_name("pharos")), *arguments]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise RuntimeError(f"pharos {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return seconds, done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **NOTHING_BY_ITSELF,
            **self.variables,
            "PHAROS_DATA_DIR": str(self.settings.data_dir),
            "PHAROS_PORT": str(self.settings.port),
        }

    def seconds_until_ready(self) -> float:
        """`pharos up` in the foreground, as `make up` runs it: seconds until it says that it is ready; then stopped."""
        started = time.perf_counter()
        with subprocess.Popen(
            [str(Path(sys.executable).with_name("pharos")), "up"],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = next((line for line in process.stdout if "is ready at" in line), None)
            seconds = time.perf_counter() - started
            process.terminate()
            process.communicate(timeout=COMMAND_SECONDS)
        if said is None:
            raise RuntimeError("pharos up ended before it was ready")
        return seconds

    def processor_seconds(self, part: str | None = None) -> float:
        """Processor time used so far by a part, or by all parts with what they started (CLI commands not counted)."""
        state = read_state(self.settings)
        assert state is not None, "the installation has stopped"
        top = psutil.Process(state.parts[part]["pid"] if part else state.pid)
        return sum(_processor_seconds(process) for process in (top, *top.children(recursive=True)))

    def memory(self) -> dict[str, Any]:
        """`memory_figures` of the running parts."""
        state = read_state(self.settings)
        assert state is not None, "the installation has stopped"
        return memory_figures({part: state.parts[part]["pid"] for part in PARTS})


def _processor_seconds(process: psutil.Process) -> float:
    """Its own, and that of children which have ended: living ones are counted for themselves."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0  # it ended this moment, and its parent counts it from now on


@contextmanager
def scratch_installation(**variables: str) -> Iterator[Scratch]:
    """Started and ready; stopped and removed at the end. It says nothing of how long the start took."""
    folder = Path(tempfile.mkdtemp(prefix="pharos-bench-"))
    scratch = Scratch(folder, Settings(_env_file=None, data_dir=folder / "data", port=free_port()), variables)
    try:
        scratch.run("up", "--detach")
        yield scratch
    finally:
        try:
            scratch.run("down", "--delete-data", "--yes")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
