"""Copies of backups elsewhere: what is wrong with one is noticed within a cycle of checks and named."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pyrage  # type: ignore[import-untyped]
import pytest
from tests.ops.offsite_copies import NAME, OFFLINE, files_of, make_folder, needs_programs, settings_in

from pharos.infra.errors import Conflict, Invalid, NotFound, Unavailable
from pharos.infra.settings import Settings
from pharos.ops.backup import restic
from pharos.ops.backup.offsite import (
    find_offsite,
    list_offsite,
    pull_backup,
    push_backup,
    say_where_password_lies,
    sealed_password_file,
)
from pharos.ops.backup.restic import SEALED_PASSWORD
from pharos.ops.backup.retention import prune
from pharos.ops.backup.store import describe_folder, list_backups, record_verification

pytestmark = [needs_programs, pytest.mark.xdist_group("offsite")]  # one repository for all of them


@pytest.fixture
def settings(pushed_once: Path, tmp_path: Path) -> Settings:
    """An installation in `tmp_path` with one backup, of which a copy lies in `elsewhere/repository`."""
    shutil.copytree(pushed_once, tmp_path, dirs_exist_ok=True)
    state = tmp_path / "data" / "secrets" / "offsite_state"
    state.write_text(state.read_text().replace(str(pushed_once), str(tmp_path)))
    return settings_in(tmp_path)


def repository(settings: Settings) -> Path:
    assert settings.offsite is not None
    return Path(settings.offsite.partition(":")[2])


def packs(settings: Settings) -> list[Path]:
    """Largest first: the first one holds data, not only trees."""
    found = [file for file in (repository(settings) / "data").rglob("*") if file.is_file()]
    return sorted(found, key=lambda file: file.stat().st_size, reverse=True)


@pytest.mark.contract("BK-13", part="restic to a directory: encrypted, read back, never mirrors a deletion")
@pytest.mark.contract("BK-14", part="pull brings a copy to another machine, with the password file alone")
def test_a_copy_comes_back_on_another_machine_as_it_was(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "backups" / NAME
    assert restic.password_file(settings).stat().st_mode & 0o777 == 0o600
    assert not any(b"nobody else may read" in file.read_bytes() for file in packs(settings))
    removed, later = files_of(folder), make_folder(tmp_path / "backups", "pharos-20260110-030000")
    for made in (folder, later):
        record_verification(settings, made, seconds=1.0)
    plan = prune(settings, list_backups(settings, removed=True), now=datetime(2026, 1, 10, 4, tzinfo=UTC))
    assert ([one.name for one in plan.remove], folder.exists()) == ([NAME], False)
    assert push_backup(settings, later).checked == "2/7"

    elsewhere = settings.model_copy(
        update={"data_dir": tmp_path / "other", "offsite_password_file": restic.password_file(settings)}
    )
    got = pull_backup(elsewhere, "20260102-03", into=tmp_path / "got")
    assert (got.name, files_of(got)) == (NAME, removed), "what was removed here stays there"
    assert [path.name for path in (tmp_path / "got").iterdir()] == [NAME]


def test_the_offline_identity_alone_opens_the_repository(settings: Settings, tmp_path: Path) -> None:
    sealed = (repository(settings) / SEALED_PASSWORD).read_bytes()
    assert sealed == sealed_password_file(settings).read_bytes()
    assert str(repository(settings) / SEALED_PASSWORD) in say_where_password_lies(settings)
    over_ssh = settings.model_copy(update={"offsite": "restic:sftp:user@host:/path"})
    assert f"{sealed_password_file(settings)}: the offline" in say_where_password_lies(over_ssh)
    unsealed = settings.model_copy(update={"backup_recipient": None})
    assert str(restic.password_file(settings)) in say_where_password_lies(unsealed), "the only place there is"
    shutil.rmtree(settings.data_dir)  # the machine is lost
    with pytest.raises(Conflict, match=r"\(umask 077; age -d -i identity.txt pharos-offsite-password.age > password\)"):
        list_offsite(settings.model_copy(update={"data_dir": tmp_path / "other"}))
    password = tmp_path / "password"
    password.write_bytes(pyrage.decrypt(sealed, [OFFLINE]))
    other = settings.model_copy(update={"data_dir": tmp_path / "other", "offsite_password_file": password})
    assert [copy.name for copy in list_offsite(other)] == [NAME]


def night_of(pack: Path) -> int:
    """Which night of the week reads it, by restic's own rule."""
    return int(pack.name[:2], 16) % restic.PARTS + 1


def packs_read(settings: Settings, *, part: int) -> int:
    counted = restic.check(settings, str(repository(settings)), part=part)
    assert counted is not None
    assert counted[1] == len(packs(settings))
    return counted[0]


@pytest.mark.contract("BK-13", part="a week of nights reads every pack, wherever it begins")
def test_a_week_of_nights_reads_every_pack(settings: Settings) -> None:
    week = [4]
    while len(week) < restic.PARTS:
        week.append(restic.next_part(week[-1]))
    assert sorted(week) == list(range(1, restic.PARTS + 1))
    of_ours = [night_of(pack) for pack in packs(settings)]
    read = {part: packs_read(settings, part=part) for part in week if part in of_ours}
    assert read == {part: of_ours.count(part) for part in of_ours}


@pytest.mark.prove
def test_nights_do_not_overlap(settings: Settings) -> None:
    read = [packs_read(settings, part=part) for part in range(1, restic.PARTS + 1)]
    assert sum(read) == len(packs(settings)) > 1


def damage(pack: Path) -> None:
    """Flip one bit; its file is as long as before."""
    content = bytearray(pack.read_bytes())
    content[len(content) // 3] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)


@pytest.mark.contract("BK-13", part="a flipped byte in a pack is noticed within a week of nightly checks and named")
def test_a_flipped_byte_in_a_pack_is_noticed_within_one_cycle(settings: Settings) -> None:
    pack = packs(settings)[0]
    damage(pack)
    with pytest.raises(Conflict, match=rf"{pack.name[:8]}.*`pharos backup push`") as noticed:
        restic.check(settings, str(repository(settings)), part=night_of(pack))
    assert noticed.value.code == "offsite_damaged"


def push_for_a_week(settings: Settings, root: Path) -> None:
    for night in range(7, 14):
        push_backup(settings, make_folder(root, f"pharos-202601{night:02}-030000"))


@pytest.mark.prove
def test_whichever_pack_is_damaged_one_of_seven_nights_says_so(settings: Settings, tmp_path: Path) -> None:
    for night in range(3, 7):
        push_backup(settings, make_folder(tmp_path / "backups", f"pharos-202601{night:02}-030000"))
    found = packs(settings)
    assert len(found) >= 8
    for pack in found:
        other = settings_in(tmp_path / pack.name)
        shutil.copytree(repository(settings), repository(other))
        shutil.copytree(settings.data_dir, other.data_dir)
        damage(repository(other) / pack.relative_to(repository(settings)))
        with pytest.raises(Conflict, match=pack.name[:8]) as noticed:
            push_for_a_week(other, tmp_path / pack.name / "backups")
        assert noticed.value.code == "offsite_damaged"
        shutil.rmtree(tmp_path / pack.name)


@pytest.mark.contract("BK-13", part="a missing pack is noticed at once and named")
def test_a_missing_pack_is_noticed_at_once(settings: Settings, tmp_path: Path) -> None:
    pack = packs(settings)[0]
    pack.unlink()
    # In a part that is not read today; restic tries for most of a minute to read a file that is not there.
    state = settings.data_dir / "secrets" / "offsite_state"
    known = json.loads(state.read_text())
    state.write_text(json.dumps(known | {"part": (int(pack.name[:2], 16) + 1) % restic.PARTS}))
    with pytest.raises(Conflict, match=pack.name[:8]) as noticed:
        push_backup(settings, tmp_path / "backups" / NAME)
    assert noticed.value.code == "offsite_damaged"
    assert json.loads(state.read_text())["part"] == (int(pack.name[:2], 16) + 1) % restic.PARTS, "read again tomorrow"


@pytest.mark.contract("BK-13", part="a lock left by a killed restic goes by itself, a living one's is left alone")
def test_a_lock_of_a_killed_process_goes_and_one_of_a_living_process_stays(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "backups" / NAME
    locks = repository(settings) / "locks"
    waits = repository(settings) / "index" / ("0" * 64)
    os.mkfifo(waits)  # an index that nobody writes: the check has its lock, which excludes everybody, and stays
    environment = restic._environment(settings, str(repository(settings)))
    with subprocess.Popen(["restic", "--no-cache", "check"], env=environment) as checking:
        while not list(locks.glob("?" * 64)):  # under another name it is still being written
            assert checking.poll() is None
        checking.kill()
    waits.unlink()
    restic.push(settings, str(repository(settings)), folder, files=6)
    assert not any(locks.iterdir())

    command = ["restic", "--no-cache", "backup", "--stdin", "--stdin-filename", "endless"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as running:
        while not list(locks.glob("?" * 64)):
            assert running.poll() is None
        with pytest.raises(Conflict, match=f"locked by process {running.pid} on {socket.gethostname()}") as living:
            restic.check(settings, str(repository(settings)), part=1)
        assert any(locks.iterdir())
        running.kill()
    assert living.value.code == "offsite_locked"


@pytest.mark.contract("BK-13", part="a wrong password, a repository that is gone or another one, a missing source")
def test_what_keeps_a_copy_from_being_made_is_named(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "backups" / NAME
    (tmp_path / "wrong").write_text("not the password")
    with pytest.raises(Conflict, match="password does not open") as wrong:
        push_backup(settings.model_copy(update={"offsite_password_file": tmp_path / "wrong"}), folder)
    assert wrong.value.code == "offsite_wrong_password"
    with pytest.raises(Conflict, match="has no password") as missing:
        push_backup(settings.model_copy(update={"offsite_password_file": tmp_path / "nowhere"}), folder)
    assert missing.value.code == "offsite_wrong_password"

    with pytest.raises(NotFound, match="no complete backup"):
        push_backup(settings, tmp_path / "backups" / "pharos-20200101-000000")
    (folder / "escrow.age").rename(tmp_path / "escrow.age")
    with pytest.raises(Conflict, match=r"lacks escrow\.age"):
        push_backup(settings, folder)
    (tmp_path / "escrow.age").rename(folder / "escrow.age")
    (folder / "foreign").touch()
    with pytest.raises(Conflict, match="holds foreign"):
        push_backup(settings, folder)
    (folder / "foreign").unlink()

    repository(settings).rename(tmp_path / "unmounted")
    with pytest.raises(NotFound, match="Is the disk mounted") as gone:
        push_backup(settings, folder)
    assert gone.value.code == "offsite_gone"
    assert not repository(settings).exists(), "no empty one is begun in its place"


@pytest.mark.contract("BK-13", part="what a silent restic did not copy is a failure; one that is missing is named")
def test_a_copy_of_fewer_files_or_with_errors_is_no_copy(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "backups" / NAME
    with pytest.raises(Conflict, match="copied 6 of 7 files"):
        restic.push(settings, str(repository(settings)), folder, files=7)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="apt install restic"):
        push_backup(settings, folder)
    with pytest.raises(Unavailable, match="apt install rsync"):
        push_backup(settings.model_copy(update={"offsite": f"rsync:{tmp_path}"}), folder)


@pytest.mark.contract("BK-13", part="rsync to a directory: compared byte by byte, never mirrors a deletion")
@pytest.mark.contract("BK-14", part="pull of a plain copy; a damaged one is refused")
def test_a_plain_copy_is_compared_and_comes_back(settings: Settings, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "plain"
    settings = settings.model_copy(update={"offsite": f"rsync:{place}"})
    folder = tmp_path / "backups" / NAME
    pushed = push_backup(settings, folder)
    assert (pushed.files, files_of(place / NAME)) == (6, files_of(folder))
    shutil.rmtree(folder)
    push_backup(settings, make_folder(tmp_path / "backups", "pharos-20260103-030000"))
    assert [copy.name for copy in list_offsite(settings)] == ["pharos-20260103-030000", NAME]
    assert find_offsite(settings, "2026-01-02").name == NAME
    with pytest.raises(NotFound, match="newest there is pharos-20260103-030000"):
        find_offsite(settings, "2025-12-31")
    assert files_of(pull_backup(settings, NAME, into=tmp_path / "got")) == files_of(place / NAME)
    with pytest.raises(Conflict, match="is there already"):
        pull_backup(settings, NAME, into=tmp_path / "got")
    before = datetime.now(UTC)
    to_backups = settings.backup_root.relative_to(settings.data_dir.parent.parent)
    fetched = describe_folder(pull_backup(settings, NAME, into=settings.data_dir.parent / ".." / to_backups))
    assert fetched.pulled_at is not None
    assert fetched.pulled_at > before

    damaged = place / "pharos-20260103-030000" / "database" / "toc.dat"
    damaged.write_bytes(b"x" * 3000)
    with pytest.raises(Conflict, match=r"toc\.dat"):
        pull_backup(settings, "latest", into=tmp_path / "got")
    assert [path.name for path in (tmp_path / "got").iterdir()] == [NAME]
    place.rename(tmp_path / "unmounted")
    with pytest.raises(NotFound, match="Is the disk mounted"):
        push_backup(settings, make_folder(tmp_path / "backups", "pharos-20260104-030000"))


def test_a_target_that_nobody_can_read_is_refused(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    with pytest.raises(Invalid, match="No place for copies is set"):
        list_offsite(settings)
    for text in ("/mnt/disk", "restic:", "ftp:there"):
        with pytest.raises(Invalid, match="PHAROS_OFFSITE is"):
            list_offsite(settings.model_copy(update={"offsite": text}))
