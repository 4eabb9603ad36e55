"""`pharos logs`: one part or all, a tail, a span, a level, one request through every part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra.errors import Invalid, NotFound
from pharos.ops import log_files
from pharos.ops.read_logs import Wanted, ends_of, follow_lines

NOW = datetime.now(UTC)


def line(hours_ago: float, event: str, *, level: str = "info", request_id: str = "") -> str:
    at = (NOW - timedelta(hours=hours_ago)).isoformat()
    return json.dumps({"event": event, "request_id": request_id, "level": level, "time": at}) + "\n"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path))
    logs = tmp_path / "logs"
    logs.mkdir()
    aside = logs / "web-20260101-000000.log"
    aside.write_text(line(24 * 20, "web.long_ago", level="warning") + line(24 * 10, "web.aside"))
    (logs / "web.log").write_text(
        line(9, "request.answered", request_id="request-1")
        + line(5, "request.failed", level="error", request_id="request-2")
        + "Traceback (most recent call last):\n  somewhere\n"
        + line(1, "request.answered", request_id="request-1")
    )
    (logs / "worker.log").write_text(
        line(8, "job.finished", request_id="request-1") + line(2, "upkeep.failed", level="warning")
    )
    (logs / "embedder.log").write_text(line(8.5, "texts.embedded", request_id="request-1"))
    stamp = f"{NOW - timedelta(hours=4):%Y-%m-%d %H:%M:%S}.123"
    (logs / "postgres.log").write_text(f"{stamp} UTC [77] app@pharos ERROR:  relation does not exist\n")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["logs", *arguments])


def events(*arguments: str) -> list[str]:
    return [json.loads(row)["event"].split()[-1] for row in run(*arguments, "--json").stdout.splitlines()]


@pytest.mark.contract("LO-04", part="a part with a tail count; api and app mean web")
@pytest.mark.parametrize("name", ["web", "api", "app"])
def test_the_last_lines_of_a_part_are_printed_as_they_were_written(data_dir: Path, name: str) -> None:
    assert run(name, "--tail", "2").stdout.splitlines() == [
        "  somewhere",
        line(1, "request.answered", request_id="request-1").strip(),
    ]


@pytest.mark.contract("LO-01", part="`pharos logs --request` follows one request through web, worker and embedder")
def test_one_request_is_followed_through_every_part(data_dir: Path) -> None:
    assert events("--request", "request-1") == [
        "request.answered",
        "texts.embedded",
        "job.finished",
        "request.answered",
    ]
    named = [row.split()[0] for row in run("--request", "request-1").stdout.splitlines()]
    assert named == ["web", "embedder", "worker", "web"]


@pytest.mark.contract("LO-05")
def test_a_span_is_read_from_all_files_and_filtered_for_warnings(data_dir: Path) -> None:
    grave = events("--since", "720h", "--level", "warn")
    assert grave == ["web.long_ago", "request.failed", "last):", "somewhere", "exist", "upkeep.failed"]
    assert events("web", "--since", "240h", "--level", "warning") == ["request.failed", "last):", "somewhere"]
    assert events("web", "--since", "3h") == ["request.answered"]


def test_what_cannot_be_read_is_said(data_dir: Path) -> None:
    for arguments, kind in (
        (["supervisor"], NotFound),
        (["web", "--level", "loud"], Invalid),
        (["web", "--since", "x"], Invalid),
    ):
        assert isinstance(run(*arguments).exception, kind)
    assert "supervisor" in str(run("nope").exception)


@pytest.mark.contract("LO-04", part="followed as they grow, also past a rotation")
def test_added_lines_are_followed_past_a_rotation(data_dir: Path) -> None:
    web = data_dir / "logs" / "web.log"
    followed = follow_lines(data_dir, ends_of(data_dir, ["web", "supervisor"]), Wanted(level="info"))
    seen: list[str] = []
    writer = threading.Thread(target=_write, args=(web, seen))
    writer.start()
    for _ in range(3):
        seen.append(json.loads(next(followed).text)["event"])
    writer.join()
    assert seen == ["one", "two", "three"]


def _write(web: Path, seen: list[str]) -> None:
    """Half a line and its rest; then the file is emptied, as a rotation does it, and written again."""
    deadline = time.monotonic() + 10
    with web.open("a") as file:
        text = line(0, "one")
        file.write(text[:20])
        file.flush()
        file.write(text[20:] + line(0, "two"))
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    web.write_text(line(0, "three"))


@pytest.mark.contract("LO-06", part="files of one machine are kept 31 days; the central collector comes later")
def test_a_large_log_is_set_aside_and_kept_for_31_days(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "ROTATE_BYTES", 100)
    logs = data_dir / "logs"
    kept, dropped = logs / "web-20251201-000000.log", logs / "web-20251101-000000.log"
    for path, days in ((kept, 30.9), (dropped, 31.1)):
        path.write_text(line(0, "web.aside"))
        os.utime(path, (time.time() - days * 86400,) * 2)
    before = (logs / "web.log").read_text()
    log_files.rotate_logs(data_dir)
    assert (kept.exists(), dropped.exists()) == (True, False)
    (aside,) = [path for path in logs.glob("web-*.log") if path.read_text() == before]
    assert ((logs / "web.log").read_text(), aside.stem[-1].isdigit()) == ("", True)
    assert len(events("web", "--since", "12h")) == 5


def test_what_a_command_logs_is_kept_in_a_file_and_not_among_what_it_says(tmp_path: Path) -> None:
    said = command_that_logs(tmp_path)
    assert said.splitlines() == ["said"]
    kept = json.loads((tmp_path / "logs" / "commands.log").read_text())
    assert (kept["event"], kept["level"]) == ("thing.done", "info")


def test_without_a_data_directory_none_is_made_for_a_log(tmp_path: Path) -> None:
    assert command_that_logs(tmp_path / "nowhere").splitlines() == ["said"]
    assert not (tmp_path / "nowhere").exists()


def command_that_logs(data_dir: Path) -> str:
    """What a process prints whose command logs something and says something."""
    script = (
        "import sys; from pharos import cli; from pharos.infra.logs import get_logger\n"
        "cli.app = lambda: (get_logger('test').info('thing.done'), print('said'))\n"
        "cli.main()"
    )
    environment = {"PATH": "/usr/bin:/bin", "PHAROS_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=data_dir.parent, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
