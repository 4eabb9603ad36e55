"""The shared place of clusters: what others have put there before us is never followed, opened or written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pharos.infra import postgres_place
from pharos.infra.errors import Unavailable


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    found = (tmp_path / "first", tmp_path / "second")
    monkeypatch.setattr(postgres_place, "SHARED_PLACES", found)
    return found


def test_a_link_that_somebody_planted_is_not_followed(places: tuple[Path, Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    places[0].symlink_to(secret)
    places[1].mkdir()
    (places[1] / "clusters").symlink_to(secret)
    with pytest.raises(Unavailable, match="every user may enter"):
        postgres_place._shared_place()
    assert (mode_of(secret), list(secret.iterdir())) == (0o700, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
def test_somebody_elses_directory_is_left_as_it_is(places: tuple[Path, Path]) -> None:
    places[0].mkdir(mode=0o700)
    os.chown(places[0], 65534, 65534)
    assert postgres_place._shared_place() == places[1]
    assert (mode_of(places[0]), list(places[0].iterdir())) == (0o700, [])


def test_our_own_place_can_be_entered_by_everybody_whatever_the_umask(places: tuple[Path, Path]) -> None:
    before = os.umask(0o077)
    try:
        assert postgres_place._shared_place() == postgres_place._shared_place() == places[0]
    finally:
        os.umask(before)
    assert [mode_of(places[0] / part) for part in ("", "clusters", "binaries")] == [0o755] * 3
