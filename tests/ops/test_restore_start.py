"""Whoever restores works as the one who started Pharos did: in that directory, with that environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pharos.infra.settings import Settings
from pharos.ops.backup.restore_journal import Journal, Unfinished
from pharos.ops.backup.restore_start import as_started


def quiet(step: str, sentence: str) -> None:
    return


def test_after_a_kill_the_directory_is_known_and_it_is_said_which_variables_are_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here, tmp_path / "data" / "run"):
        folder.mkdir(parents=True)
    (there / "pharos.env").write_text("PHAROS_PORT=8991\n")
    (here / "pharos.env").write_text("PHAROS_PORT=8990\n")
    own = Settings(_env_file=None, data_dir=tmp_path / "data")
    monkeypatch.chdir(there)
    monkeypatch.setenv("PHAROS_LLM_KEY", "of-the-environment")
    journal = Journal.of(own, Unfinished("undo", "", "pharos", replaces=True, ran="everything"), quiet)
    journal.step("stop", "")
    assert "of-the-environment" not in journal.file.read_text(), "a secret of the environment stays off the disk"
    with as_started(own) as settings:
        assert settings is own, "what is at work is not broken off"
    journal.file.write_text(journal.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 0'))

    monkeypatch.chdir(here)
    monkeypatch.delenv("PHAROS_LLM_KEY")
    monkeypatch.setenv("PHAROS_LOG_LEVEL", "DEBUG")
    with as_started(own) as settings:
        assert (Path.cwd(), settings.port, settings.log_level) == (there, 8991, "DEBUG")
        assert settings.data_dir == own.data_dir
    assert Path.cwd() == here
    said = capsys.readouterr().err
    assert f"Pharos starts with {there / 'pharos.env'}" in said
    assert "the variables of this shell (PHAROS_LOG_LEVEL" in said
    assert "It ran with PHAROS_LLM_KEY too" in said
    assert "another PHAROS_PORT, PHAROS_LOG_LEVEL than is set here: its own count" in said
