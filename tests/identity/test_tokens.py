"""The secret behind every token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pharos.identity.signing_keys import signing_key
from pharos.infra.errors import Invalid
from pharos.infra.settings import Settings


@pytest.mark.contract("ID-06", part="a secret that is short or a known default is refused")
@pytest.mark.parametrize(
    "secret",
    ["", "short", "x" * 31, "a" * 64, "changeme-changeme-changeme-change", "your-secret-key-goes-here-okay?"],
)
def test_a_secret_that_can_be_guessed_is_refused(tmp_path: Path, secret: str) -> None:
    with pytest.raises(Invalid) as refusal:
        signing_key(Settings(_env_file=None, data_dir=tmp_path, secret_key=secret))
    assert refusal.value.code == "weak_secret_key"
    assert not secret or secret not in refusal.value.message


def test_without_one_a_secret_is_made_once_for_this_installation(tmp_path: Path) -> None:
    first = signing_key(Settings(_env_file=None, data_dir=tmp_path))
    assert signing_key(Settings(_env_file=None, data_dir=tmp_path)) == first
    assert len(first) == 64
    assert (tmp_path / "secrets" / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["secret_key"]


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: signing_key(settings), range(8)))
    assert len(keys) == 1
