"""The estimate of a restore grows with the backup's size, and says nothing where nothing can be said."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.ops.backups import make_folder

from pharos.infra.settings import Settings
from pharos.ops.backup.manifest import FileState, read_manifest
from pharos.ops.backup.restore_plan import EMPTY_DATABASE_BYTES, bytes_to_load
from pharos.ops.backup.restore_time import FIXED_SECONDS, Measured, estimate_restore, estimate_seconds

NOW = datetime(2026, 5, 1, tzinfo=UTC)
MEGABYTE = 1_000_000


@pytest.mark.contract("RS-10", part="the estimate scales with the size")
def test_what_grows_is_scaled_by_size_and_what_starts_servers_is_not() -> None:
    fixed = FIXED_SECONDS["verification"]
    measured = Measured("verification", fixed + 10.0, 100 * MEGABYTE)
    assert estimate_seconds(measured, 100 * MEGABYTE) == fixed + 10.0
    assert estimate_seconds(measured, 400 * MEGABYTE) == fixed + 40.0
    assert estimate_seconds(measured, 10 * MEGABYTE) == fixed + 1.0


def test_a_small_backup_tells_nothing_about_a_large_one() -> None:
    assert estimate_seconds(Measured("verification", 6.0, MEGABYTE), 1000 * MEGABYTE) is None
    assert estimate_seconds(Measured("verification", 2.0, MEGABYTE), MEGABYTE) == 2.0


def test_a_backup_is_estimated_by_its_own_verification_or_by_the_newest_good_one(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    size = 20 * MEGABYTE
    older = make_folder(settings, made_at=NOW - timedelta(days=1), size_bytes=size, seconds=25.0)
    newer = make_folder(settings, made_at=NOW, size_bytes=2 * size, verified=False)
    assert estimate_restore(settings, older, size) == 25.0
    assert estimate_restore(settings, newer, 2 * size) == 45.0
    alone = Settings(_env_file=None, data_dir=tmp_path / "alone")
    unmeasured = make_folder(alone, made_at=NOW, size_bytes=size, verified=False)
    assert estimate_restore(alone, unmeasured, size) is None


def test_a_dump_that_was_not_compressed_needs_less_room_for_its_bytes(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    manifest = read_manifest(make_folder(settings, made_at=NOW, size_bytes=MEGABYTE))
    rows = FileState(100 * MEGABYTE, "")
    compressed = replace(manifest, files={**manifest.files, "database/1.dat.gz": rows})
    plain = replace(manifest, files={**manifest.files, "database/1.dat": rows, "blobs/1": rows})
    assert bytes_to_load(manifest) == EMPTY_DATABASE_BYTES + 3 * MEGABYTE
    assert bytes_to_load(compressed) - bytes_to_load(manifest) == 800 * MEGABYTE
    assert bytes_to_load(plain) - bytes_to_load(manifest) == 300 * MEGABYTE
