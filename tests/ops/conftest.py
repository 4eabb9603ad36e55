"""What several files of tests of the operations share because it takes seconds to make."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.ops.installation import Place, first_day, make_installation, with_runtime
from tests.ops.offsite_copies import make_folder, settings_in
from tests.postgres import Server

from pharos.ops.backup.offsite import push_backup
from pharos.ops.backup.snapshot import make_backup


@pytest.fixture(scope="module")
def place(database_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An installation after its first day, with a backup of it. Its databases go with the server: dropping each would
    cost a checkpoint."""
    settings = make_installation(database_server, tmp_path_factory.mktemp("place"))
    tenant, ledger = with_runtime(settings, first_day)
    return Place(settings, database_server, make_backup(settings), tenant, ledger)


@pytest.fixture(scope="session")
def pushed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup that was pushed to a new repository, made once."""
    world = tmp_path_factory.mktemp("offsite")
    folder = make_folder(world / "backups", words=b"A sentence nobody else may read.")
    (world / "elsewhere").mkdir()
    pushed = push_backup(settings_in(world), folder)
    assert (pushed.files, pushed.checked) == (6, "1/7")
    assert pushed.added_bytes > 40_000
    return world


@pytest.fixture
def warm_python(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started as a part or a command of Pharos, here or by Pharos itself, does not wait for its libraries."""
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
