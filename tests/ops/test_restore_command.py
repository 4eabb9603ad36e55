"""What `pharos restore` refuses before it looks at a backup or asks for a name: no installation is needed for it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.ops.backups import make_folder
from typer.testing import CliRunner, Result

from pharos.cli import app
from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.settings import Settings


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHAROS_DATA_DIR", str(tmp_path / "data"))


def pharos(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, ["restore", *words], input=typed)


def test_the_command_names_what_is_missing_in_it() -> None:
    assert isinstance(pharos().exception, Invalid)
    assert isinstance(pharos("latest", "--table", "users").exception, Invalid)
    whole = "`pharos restore latest --table documents --into scratch --merge`"
    assert whole in str(pharos("latest", "--table", "documents", "--merge").exception)
    assert whole in str(pharos("latest", "--merge").exception), "else it would replace everything"


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--uploads-only"], ["--table", "users", "--into", "other"]])
def test_an_identity_that_is_not_there_is_refused_before_anything_is_read_or_asked(
    words: list[str], tmp_path: Path
) -> None:
    done = pharos("latest", *words, "--identity", str(tmp_path / "nothing"))
    assert "Bring the offline identity to this machine" in str(done.exception)
    assert done.stdout == ""


def test_a_machine_that_opens_no_keys_asks_for_no_name(tmp_path: Path) -> None:
    folder = make_folder(Settings(_env_file=None, data_dir=tmp_path / "elsewhere"), made_at=datetime.now(UTC))
    for words in ([], ["--dry-run"], ["--table", "users", "--into", "other"]):
        done = pharos(str(folder), *words, typed="pharos\n")
        assert isinstance(done.exception, Conflict)
        assert "--identity FILE" in str(done.exception)
        assert done.stdout == ""
    assert isinstance(pharos("latest").exception, NotFound), "that there is no backup counts more"


def test_an_undo_without_anything_to_undo_asks_for_no_name() -> None:
    done = pharos("--undo", typed="pharos\n")
    assert isinstance(done.exception, NotFound)
    assert done.stdout == ""
    assert isinstance(pharos("--forget", "pharos", "--yes").exception, NotFound)
