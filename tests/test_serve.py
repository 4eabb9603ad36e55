"""The web process as it runs: it says where it listens, refuses an unsafe database, and ends when told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.conftest import ENCRYPTION_KEY

from pharos.infra.database_roles import DatabaseUrls
from pharos.infra.embedded_postgres import free_port


def start_web(
    database_url: str, data_dir: Path, port: int, *, python: str = sys.executable, **settings: str
) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PHAROS_DATABASE_URL": database_url,
        "PHAROS_DATA_DIR": str(data_dir),
        "PHAROS_PORT": str(port),
        "PHAROS_ENCRYPTION_KEY": ENCRYPTION_KEY,
        **settings,
    }
    command = [python, "-m", "pharos", "web"]
    return subprocess.Popen(command, env=environment, cwd=data_dir, stderr=subprocess.PIPE, text=True)


def wait_for(web: subprocess.Popen[str], port: int) -> None:
    """Until it listens; what it said instead is the failure's text."""
    assert web.stderr is not None
    said = []
    for line in web.stderr:
        if f"Listening on port {port}" in line:
            return
        said.append(line)
    pytest.fail("".join(["it never listened:\n", *said]))


@pytest.mark.contract("LO-08", part="the port it listens on")
@pytest.mark.contract("LO-01")
def test_it_says_where_it_listens_serves_and_ends_when_told(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    port = free_port()
    with start_web(database_urls.app, tmp_path, port) as web:
        assert web.stderr is not None
        wait_for(web, port)
        assert httpx.get(f"http://127.0.0.1:{port}/health/ready").json()["status"] == "ready"
        assert httpx.get(f"http://127.0.0.1:{port}/projects").status_code == 401
        web.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in web.stderr]
        assert web.wait(timeout=10) in {0, -signal.SIGTERM}
    (answered,) = [line for line in lines if line["event"] == "request.answered"]
    assert answered.keys() >= {"level", "status", "method", "path", "duration", "request_id"}
    assert (answered["path"], answered["status"]) == ("/projects", 401)
    assert ((tmp_path / "secrets" / "secret_key").stat().st_mode & 0o777) == 0o600


@pytest.mark.contract("AC-09")
def test_it_refuses_to_serve_with_a_role_that_could_look_over_the_fence(
    database_urls: DatabaseUrls, programs: Path, tmp_path: Path
) -> None:
    with start_web(database_urls.backup, tmp_path, free_port(), python=str(programs / "python")) as web:
        _, said = web.communicate(timeout=30)
    assert web.returncode != 0
    assert "bypass" in said
