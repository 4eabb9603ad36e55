"""`pharos down --delete-data` says what becomes of the backups and keeps them unless it is told to delete them too."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyrage import x25519  # type: ignore[import-untyped]
from tests.ops.backups import make_folder
from typer.testing import CliRunner

from pharos.cli import app
from pharos.infra.errors import Conflict, Invalid
from pharos.infra.settings import Settings
from pharos.ops.backup.signing import public_key
from pharos.ops.backup.store import pulled_file


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("PHAROS_DATABASE_URL", raising=False)
    (tmp_path / "data" / "secrets").mkdir(parents=True)
    return Settings(_env_file=None, data_dir=tmp_path / "data")


def made(settings: Settings) -> list[Path]:
    return [make_folder(settings, made_at=datetime(2026, 3, day, 3, tzinfo=UTC), verified=False) for day in (1, 2)]


@pytest.mark.contract("DE-14", part="backups are named before the question and kept")
def test_backups_are_named_before_the_question_and_kept(settings: Settings) -> None:
    folders = made(settings)
    refused = CliRunner().invoke(app, ["down", "--delete-data"], input="n\n")
    told, question = refused.output.index("Kept: 2 backups in"), refused.output.index("Delete ")
    assert told < question
    assert "the newest of 2026-03-02 03:00 UTC" in refused.output
    assert "without that copy nobody can restore them" in refused.output, "no offline identity is set here"
    assert (settings.data_dir / "secrets").exists()
    done = CliRunner().invoke(app, ["down", "--delete-data", "--yes"])
    assert (done.exit_code, "but for the backups" in done.output, "Not ours" in done.output) == (0, True, False)
    assert [folder.exists() for folder in folders] == [True, True]
    assert [path.name for path in settings.data_dir.iterdir()] == ["backups"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_backups_are_deleted_where_that_is_asked_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    if elsewhere:
        monkeypatch.setenv("PHAROS_BACKUP_DIR", str(tmp_path / "disk"))
        settings = Settings(_env_file=None, data_dir=settings.data_dir)
    made(settings)
    (settings.backup_root / "somebody's").mkdir()
    done = CliRunner().invoke(app, ["down", "--delete-data", "--delete-backups", "--yes"])
    assert (done.exit_code, "Deleted too: 2 backups in" in done.output) == (0, True), done.output
    assert [path.name for path in settings.backup_root.iterdir()] == ["somebody's"]
    assert settings.data_dir.exists() is not elsewhere
    assert ("Not ours and still there: backups" in done.output) is not elsewhere


def test_what_is_noted_beside_a_backup_goes_with_it(settings: Settings) -> None:
    for folder in made(settings):
        pulled_file(folder).touch()
        folder.with_name(f".verified.json-{folder.name}").touch()
    done = CliRunner().invoke(app, ["down", "--delete-data", "--delete-backups", "--yes"])
    assert (done.exit_code, settings.data_dir.exists()) == (0, False), done.output


def test_backups_that_are_not_this_installations_stay_and_are_named(settings: Settings) -> None:
    own, unreadable = made(settings)
    (unreadable / "manifest.json").unlink()
    theirs = make_folder(settings, made_at=datetime(2026, 3, 3, tzinfo=UTC), verified=False, installation_id="theirs")
    done = CliRunner().invoke(app, ["down", "--delete-data", "--delete-backups", "--yes"])
    assert (done.exit_code, "Deleted too: 1 backup in" in done.output) == (0, True), done.output
    assert "Left alone: 2 backups in" in done.output
    assert f"{theirs.name}, {unreadable.name}. Whoever put them there" in done.output
    assert "Not ours" not in done.output
    assert [folder.exists() for folder in (own, unreadable, theirs)] == [False, True, True]
    assert [path.name for path in settings.data_dir.iterdir()] == ["backups"]


def test_what_opens_the_kept_ones_is_told_by_what_they_were_sealed_to_then(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipient, key = str(x25519.Identity.generate().to_public()), public_key(settings)
    made(settings)
    make_folder(settings.model_copy(update={"backup_recipient": recipient}), made_at=datetime(2026, 3, 3, tzinfo=UTC))
    monkeypatch.setenv("PHAROS_BACKUP_RECIPIENT", "age1misspelt")
    said = CliRunner().invoke(app, ["down", "--delete-data"], input="n\n").output
    assert f"--signed-by {key}`" in said
    assert f"For 1 backup FILE is the offline identity of {recipient}." in said
    assert "For 2 backups FILE is a copy of secrets/drill_identity" in said


def test_backups_in_the_data_directory_itself_are_kept_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAROS_BACKUP_DIR", str(settings.data_dir))
    made(Settings(_env_file=None, data_dir=settings.data_dir))
    kept = CliRunner().invoke(app, ["down", "--delete-data", "--yes"])
    assert (kept.exit_code, "Not ours" in kept.output) == (0, False), kept.output
    assert len(list(settings.data_dir.iterdir())) == 2
    gone = CliRunner().invoke(app, ["down", "--delete-data", "--delete-backups", "--yes"])
    assert (gone.exit_code, settings.data_dir.exists()) == (0, False), gone.output


def test_who_says_no_has_it_running(settings: Settings) -> None:
    refused = CliRunner().invoke(app, ["down", "--delete-data"], input="n\n")
    assert (refused.exit_code, "Pharos" in refused.output) == (1, False), "it is not stopped before the question"


def test_without_a_backup_nothing_is_said_of_them_and_nothing_stays(settings: Settings) -> None:
    for name in ("drills", ".writing-pharos-20260301-030000"):
        (settings.backup_root / name).mkdir(parents=True)
    done = CliRunner().invoke(app, ["down", "--delete-data", "--yes"])
    assert (done.exit_code, "Kept" in done.output) == (0, False)
    assert not settings.data_dir.exists()


def test_backups_in_a_folder_that_goes_stop_it_before_anything_is_touched(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAROS_BACKUP_DIR", str(settings.data_dir / "tmp" / "backups"))
    made(Settings(_env_file=None, data_dir=settings.data_dir))
    refused = CliRunner().invoke(app, ["down", "--delete-data", "--yes"])
    assert isinstance(refused.exception, Conflict)
    assert (settings.data_dir / "secrets").exists()


def test_backups_are_never_deleted_alone(settings: Settings) -> None:
    made(settings)
    assert isinstance(CliRunner().invoke(app, ["down", "--delete-backups", "--yes"]).exception, Invalid)
