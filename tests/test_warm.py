"""The program of the runbook's pages does what the installed one does."""

from __future__ import annotations

import signal
import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

INSTALLED = str(Path(sys.executable).parent / "pharos")


@pytest.fixture
def warm(programs: Path) -> str:
    return str(programs / "pharos")


@pytest.fixture
def around(tmp_path: Path) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("PHAROS_")} | {
        "PHAROS_DATA_DIR": str(tmp_path / "none"),
        "COLUMNS": "80",
        "FORCE_COLOR": "1",  # looked for while the command is imported
    }


@pytest.mark.parametrize("words", [["fly", "--high"], ["user", "list"], ["config", "list", "--json"]])
def test_it_ends_as_the_installed_one(words: list[str], warm: str, around: dict[str, str], tmp_path: Path) -> None:
    def run(program: str) -> tuple[int, str, str]:
        ended = subprocess.run([program, *words], env=around, cwd=tmp_path, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    assert run(warm) == run(INSTALLED)


def test_it_runs_where_the_directory_was_removed(warm: str, around: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = f'cd gone; rmdir ../gone; exec "{Path(warm).parent}/python" -m pharos version'
    done = subprocess.run(["/bin/sh", "-c", script], env=around, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_python_runs_whatever_else_it_is_asked_to(warm: str, tmp_path: Path) -> None:
    words = [str(Path(warm).parent / "python"), "-c", "import sys; print(sys.argv, sys.prefix); sys.exit(3)", "a"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"['-c', 'a'] {sys.prefix}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_what_it_runs(number: signal.Signals, warm: str, around: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "none" / "logs").mkdir(parents=True)
    (tmp_path / "none" / "logs" / "web.log").write_text('{"event": "it.began"}\n')
    program = subprocess.Popen([warm, "logs", "--follow"], env=around, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert "it.began" in program.stdout.readline()
    program.send_signal(number)
    assert program.wait() == -number
    assert program.stdout.read() == "", "the end of its stream comes when nobody holds it any more"
    program.stdout.close()
