"""One whole installation: started, watched, its parts killed and restarted, its supervisor killed, stopped, removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pharos.infra.embedded_postgres import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("supervisor")]

CONFLICT, UNAVAILABLE = 5, 7
PARTS = ("postgres", "embedder", "worker", "web")


@dataclass(frozen=True)
class Place:
    """A data directory and a port of its own."""

    root: Path
    port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def pharos(
        self, *words: str, port: int | None = None, data: str = "data", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PHAROS_DATA_DIR": str(self.root / data),
            "PHAROS_HOST": self.host,
            "PHAROS_PORT": str(port or self.port),
            **settings,
        }
        command = [sys.executable, "-m", "pharos", *words]
        return subprocess.run(
            command, env=environment, cwd=self.root, capture_output=True, text=True, timeout=180, check=False
        )

    def status(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.pharos("status", "--json").stdout)
        return state

    def state(self) -> dict[str, Any]:
        """What the supervisor has written; read without the second that a command takes."""
        state: dict[str, Any] = json.loads((self.root / "data" / "run" / "supervisor.json").read_text())
        return state

    def pid(self, part: str) -> int:
        return int(self.state()["parts"][part]["pid"])

    def processes(self) -> list[psutil.Process]:
        """But for one that just waits to be started again."""
        state, found = self.state(), []
        for pid in (state["pid"], *(part["pid"] for part in state["parts"].values())):
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found


def wait_for(what: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def place() -> Iterator[Place]:
    """Its parts start as quickly as a test wants where it asks for `warm_python`, too."""
    # not pytest's own directory: below it a socket's path grows longer than the 107 characters Linux allows
    root = Path(tempfile.mkdtemp(prefix="pharos-ops-"))
    root.chmod(0o755)
    place = Place(root, free_port())
    yield place
    place.pharos("down", "--delete-data", "--yes")
    shutil.rmtree(root)


def is_ready(place: Place) -> bool:
    try:
        return httpx.get(f"{place.url}/health/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def start(place: Place) -> None:
    done = place.pharos("up", "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Pharos is ready at http://localhost:{place.port}" in done.stdout
    assert "Set it up (once): http" in done.stdout
    log = (place.root / "data" / "logs" / "supervisor.log").read_text()
    assert re.search(r"Migrations: 0001.*; schema at \d{4}", log)
    assert f"Listening on port {place.port}" in log
    assert "Set it up" not in log
    assert "`pharos setup-link` prints the address" in log
    assert "The models" not in done.stdout
    assert is_ready(place)


def listener(place: Place) -> int:
    """Who holds the port: the web process, or what `warm_python` runs for it."""
    found = psutil.net_connections("tcp")
    return next(int(one.pid) for one in found if one.status == psutil.CONN_LISTEN and one.laddr.port == place.port)


def refuse_a_second_start(place: Place) -> None:
    again = place.pharos("up", "--detach")
    assert again.returncode == CONFLICT
    assert f"process {place.state()['pid']}" in again.stderr
    other = place.pharos("up", "--detach", data="other")
    assert other.returncode == CONFLICT
    assert f"Port {place.port} is in use by process {listener(place)}" in other.stderr
    free = re.search(r"PHAROS_PORT=(\d+) pharos up", other.stderr)
    assert free is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(free[1])))


def restart_one_part(place: Place) -> None:
    before = {part: place.pid(part) for part in PARTS}
    done = place.pharos("restart", "worker")
    assert done.returncode == 0, done.stderr
    after = {part: place.pid(part) for part in PARTS}
    assert {part for part in PARTS if before[part] != after[part]} == {"worker"}
    assert f"process {after['worker']}" in done.stdout


def show_every_part(place: Place) -> None:
    status = place.status()
    assert (status["running"], status["ready"]) == (True, True)
    assert [part["part"] for part in status["parts"]] == list(PARTS)
    assert {part["state"] for part in status["parts"]} == {"up"}
    assert all(part["memory_mb"] > 0 for part in status["parts"])


def bring_back_a_killed_part(place: Place, part: str) -> None:
    before, restarts = place.pid(part), place.state()["parts"][part]["restarts"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: place.pid(part) != before and is_ready(place))
    assert place.state()["parts"][part]["restarts"] == restarts + 1


def end_with_a_killed_supervisor(place: Place) -> None:
    processes = place.processes()
    os.kill(place.state()["pid"], signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    assert place.status()["running"] is False


def start_elsewhere_without_models(place: Place) -> None:
    """At another address of this machine, with data that a kill has left."""
    done = place.pharos("up", "--detach", PHAROS_MODELS_DIR=str(place.root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Pharos is ready at {place.url}\nThe models do not answer" in done.stdout
    assert "`pharos logs embedder` says why" in done.stdout
    health = httpx.get(f"{place.url}/health/detailed", timeout=10)
    assert (health.status_code, health.json()["components"]["embedder"]) == (200, {"status": "down"})


def stop(place: Place) -> None:
    processes = place.processes()
    done = place.pharos("down")
    assert (done.returncode, done.stdout) == (0, "Pharos is stopped.\n")
    _, alive = psutil.wait_procs(processes, timeout=5)  # init may take a moment to ask for the supervisor's code
    assert alive == []
    assert "database system is shut down" in (place.root / "data" / "logs" / "postgres.log").read_text()
    assert place.pharos("down").stdout == "Pharos was not running.\n"


@pytest.mark.contract("LO-08")
@pytest.mark.contract("DE-12", part="status, restart of one part")
@pytest.mark.contract("DE-14", part="up, down with the data kept")
@pytest.mark.contract("MG-06", part="the first start migrates the empty database")
@pytest.mark.usefixtures("warm_python")
def test_an_installation_starts_once_heals_itself_and_stops(place: Place) -> None:
    live(place)


@pytest.mark.prove
def test_the_installed_programs_start_once_heal_themselves_and_stop(place: Place) -> None:
    live(place)


def live(place: Place) -> None:
    start(place)
    refuse_a_second_start(place)
    restart_one_part(place)
    show_every_part(place)
    bring_back_a_killed_part(place, "web")
    bring_back_a_killed_part(place, "postgres")
    end_with_a_killed_supervisor(place)
    start_elsewhere_without_models(replace(place, host="127.0.0.2"))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{place.url}/health/live", timeout=5)
    stop(place)


@pytest.mark.contract("DE-24")
@pytest.mark.contract("DE-14", part="down with the data deleted, after asking")
@pytest.mark.usefixtures("warm_python")
def test_postgres_runs_alone_and_its_data_go_only_when_told(place: Place) -> None:
    done = place.pharos("up", "--detach", "--only", "postgres")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [part["part"] for part in place.status()["parts"]] == ["postgres"]
    assert not is_ready(place)
    data = place.root / "data" / "postgres" / "data"
    assert place.pharos("down", "--delete-data").returncode != 0  # asks, and nobody is there to answer
    assert data.exists()
    mail = place.root / "data" / "outbox" / "a.eml"
    mail.parent.mkdir()
    mail.write_text("somebody's address")
    (place.root / "data" / "notes.txt").write_text("not ours")
    done = place.pharos("down", "--delete-data", "--yes")
    assert (done.returncode, "still there: notes.txt" in done.stdout) == (0, True)
    assert [path.name for path in (place.root / "data").iterdir()] == ["notes.txt"]
    (place.root / "data" / "notes.txt").unlink()
    assert place.pharos("down", "--delete-data", "--yes").returncode == 0
    assert not (place.root / "data").exists()


@pytest.mark.usefixtures("warm_python")
def test_what_is_not_running_or_not_there_is_said(place: Place) -> None:
    assert place.status()["running"] is False
    for words, said in (
        (("restart", "worker"), "Start it with `pharos up`"),
        (("logs", "web"), "has not written a log"),
        (("restart", "kettle"), "The parts are postgres, embedder, worker, web"),
        (("up", "--only", "web"), "Only Postgres can run alone"),
    ):
        done = place.pharos(*words)
        assert done.returncode != 0
        assert said in done.stderr
