"""Whoever restores works as the one who started Pharos did: in that directory, with that environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.settings import Settings
from pharos.ops.backup.restore_journal import Journal, Unfinished
from pharos.ops.backup.restore_start import as_started
from pharos.ops.start_stop import Ran


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where the restore that is broken off was started; PHAROS_PORT is 8991."""
    for folder in (tmp_path / "there", tmp_path / "here", tmp_path / "data" / "run"):
        folder.mkdir(parents=True)
    (tmp_path / "there" / "pharos.env").write_text("PHAROS_PORT=8991\n")
    (tmp_path / "here" / "pharos.env").write_text("PHAROS_PORT=8990\n")
    return tmp_path / "there"


@pytest.fixture
def own(there: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of whoever restores, in another directory."""
    monkeypatch.chdir(there.parent / "here")
    monkeypatch.setenv("PHAROS_DATA_DIR", str(there.parent / "data"))
    monkeypatch.setenv("PHAROS_DATABASE_ADMIN_URL", "postgresql:///postgres")
    return Settings()


def quiet(step: str, sentence: str) -> None:
    return


def break_off(own: Settings, there: Path, *, ran: Ran | None = "everything") -> Path:
    """The journal that a restore killed at its swap left, whose Pharos had a model's key in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setenv("PHAROS_LLM_KEY", "of-the-environment")
        journal = Journal.of(own, Unfinished("undo", "", "pharos", replaces=True, ran=ran), quiet)
        journal.step("swap", "")
    written = journal.file.read_text()
    assert "of-the-environment" not in written, "a secret of the environment stays off the disk"
    journal.file.write_text(written.replace(f'"pid": {os.getpid()}', '"pid": 0'))
    return journal.file


def restore(*words: str) -> Result:
    return CliRunner().invoke(app, ["restore", *words])


def test_what_is_at_work_is_not_broken_off(own: Settings) -> None:
    Journal.of(own, Unfinished("undo", "", "pharos", replaces=True, ran="everything"), quiet).step("stop", "")
    with as_started(own) as settings:
        assert settings is own


def test_after_a_kill_pharos_has_the_directory_that_it_had(
    own: Settings, there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_off(own, there)
    home = Path.cwd()
    monkeypatch.setenv("PHAROS_LLM_KEY", "of-the-environment")
    monkeypatch.setenv("PHAROS_LOG_LEVEL", "DEBUG")
    with as_started(own) as settings:
        assert (Path.cwd(), settings.port, settings.log_level) == (there, 8991, "DEBUG")
        assert (settings.data_dir, settings.database_admin_url) == (own.data_dir, own.database_admin_url)
    assert Path.cwd() == home
    assert "What was broken off had another PHAROS_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--resume"], ["--abort"], ["--undo", "--yes"], ["latest", "--yes"]])
def test_after_a_kill_nothing_is_changed_without_the_variables_that_say_which_database(
    own: Settings, there: Path, words: list[str]
) -> None:
    journal = break_off(own, there)
    written = journal.read_text()
    for _ in range(2):
        refused = restore(*words).exception
        assert isinstance(refused, Conflict)
        assert refused.code == "settings_missing"
        assert "ran with PHAROS_LLM_KEY, which is not set now" in str(refused)
    made = {one.name for one in own.data_dir.iterdir()} - {"logs", "run"}
    assert (journal.read_text(), made) == (written, set())
    assert restore("--list").exit_code == 0


def test_where_pharos_did_not_run_only_what_ends_the_restore_is_done_where_it_was(own: Settings, there: Path) -> None:
    break_off(own, there, ran=None)
    with as_started(own) as settings:
        assert settings is own, "another restore is one of its own"
    with pytest.raises(Conflict, match="PHAROS_LLM_KEY"), as_started(own, ends=True):
        pass


@pytest.mark.parametrize("words", [["--resume"], ["--abort"], ["latest", "--yes"]])
def test_root_does_nothing_that_another_users_broken_off_restore_meant(
    own: Settings, there: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Its directory has settings which that user wrote."""
    break_off(own, there)
    monkeypatch.setenv("PHAROS_LLM_KEY", "of-the-environment")
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    refused = restore(*words).exception
    assert isinstance(refused, Conflict)
    assert refused.code == "other_user"


def test_a_journal_that_is_a_link_is_none(own: Settings, there: Path) -> None:
    """It could lead to a file of root's, which would pass for root's own restore."""
    journal = break_off(own, there)
    elsewhere = journal.rename(there / "written-elsewhere.json")
    journal.symlink_to(elsewhere)
    refused = restore("--resume").exception
    assert isinstance(refused, NotFound)
    assert refused.code == "no_unfinished_restore"


def test_a_file_that_cannot_be_read_is_named_and_hinders_nobody_who_only_looks(own: Settings, there: Path) -> None:
    break_off(own, there)
    (there / "pharos.env").write_text("PHAROS_PORT=many\n")
    assert restore("--list").exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHAROS_LLM_KEY", "of-the-environment")
        refused = restore("--abort").exception
    assert isinstance(refused, Invalid)
    assert "PHAROS_PORT cannot be read" in str(refused)
    assert f"Mend it in the environment or in {there / 'pharos.env'}" in str(refused)


@pytest.mark.parametrize("words", [["--undo"], ["--resume"], ["--abort"]])
def test_what_has_no_trial_is_not_done_as_one(words: list[str]) -> None:
    refused = restore(*words, "--dry-run").exception
    assert isinstance(refused, Invalid)
    assert refused.code == "no_dry_run"
