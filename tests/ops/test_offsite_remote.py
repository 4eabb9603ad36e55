"""Copies over a network, to servers that are real: they come back byte for byte, and what is in the way is named."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr
from tests.ops.offsite_copies import NAME, files_of, make_folder, needs_programs
from tests.ops.offsite_servers import S3, Ssh, s3_server, ssh_server

from pharos.infra.errors import Conflict, NotFound, PharosError, Unavailable
from pharos.infra.settings import Settings
from pharos.ops.backup import restic
from pharos.ops.backup.offsite import list_offsite, pull_backup, push_backup
from pharos.ops.backup.ssh import Host, host_of

pytestmark = [needs_programs, pytest.mark.xdist_group("offsite")]  # one repository for all of them
LATER = "pharos-20260103-030000"
KEY = "a-key-nobody-may-see"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3"), key_id="AKIAPHAROS", key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as server:
        yield server


def settings_for_ssh(ssh: Ssh, tmp_path: Path, offsite: str) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        offsite=offsite,
        offsite_ssh_key_file=ssh.key_file,
        offsite_ssh_known_hosts_file=ssh.known_hosts,
        offsite_ssh_port=ssh.port,
    )


def settings_for_s3(s3: S3, tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        offsite=f"restic:s3:{s3.url}/copies/pharos",
        offsite_s3_key_id=s3.key_id,
        offsite_s3_key=SecretStr(s3.key),
    )


def command_lines(run: Callable[[], object]) -> list[str]:
    """The command lines of all that runs below this process meanwhile, as every user of the machine can read them."""
    seen: set[str] = set()
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        for child in psutil.Process().children(recursive=True):
            try:
                seen.add(" ".join(child.cmdline()))
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        thread.join(0.02)  # each command takes half a second for its password alone
    return [line for line in seen if "restic" in line]


def test_the_host_is_read_from_each_way_to_write_a_place() -> None:
    assert host_of("sftp:me@there:/copies") == Host("me@there")
    assert host_of("sftp:there:copies") == Host("there")
    assert host_of("sftp://me@there:2222//copies") == Host("me@there", 2222)
    assert host_of("me@there:/copies") == Host("me@there")
    assert host_of("/mnt/a:b/copies") is None


@pytest.mark.contract("BK-13", part="restic to an S3 server, with credentials that are on no command line")
@pytest.mark.contract("BK-14", part="pull from S3 on another machine, byte for byte")
def test_a_copy_goes_to_s3_and_comes_back_and_its_key_is_seen_nowhere(s3: S3, tmp_path: Path) -> None:
    settings = settings_for_s3(s3, tmp_path)
    folder = make_folder(tmp_path / "backups")
    commands = command_lines(lambda: push_backup(settings, folder))
    assert any(" backup --json" in line for line in commands)
    assert not any(KEY in line for line in commands)
    kept = [file for root in (tmp_path, s3.root) for file in root.rglob("*") if file.is_file()]
    assert not any(KEY.encode() in file.read_bytes() for file in kept)
    elsewhere = settings.model_copy(
        update={"data_dir": tmp_path / "other", "offsite_password_file": restic.password_file(settings)}
    )
    assert files_of(pull_backup(elsewhere, "latest", into=tmp_path / "got")) == files_of(folder)


@pytest.mark.contract("BK-13", part="an S3 server that refuses, is away or has lost the bucket is named as that")
def test_what_is_wrong_with_an_s3_server_is_named(s3: S3, tmp_path: Path) -> None:
    settings = settings_for_s3(s3, tmp_path)
    folder = make_folder(tmp_path / "backups")
    for wrong in ({"offsite_s3_key": SecretStr("another")}, {"offsite_s3_key_id": "AKIAOTHER"}):
        with pytest.raises(Conflict, match=r"PHAROS_OFFSITE_S3_KEY_ID and PHAROS_OFFSITE_S3_KEY must") as refused:
            push_backup(settings.model_copy(update=wrong), folder)
        assert refused.value.code == "offsite_refused"
    away = settings.model_copy(update={"offsite": "restic:s3:http://127.0.0.1:9/copies/pharos"})
    with pytest.raises(Unavailable, match=r"does not answer .*refused") as unreachable:
        push_backup(away, folder)
    assert unreachable.value.code == "offsite_unreachable"
    with pytest.raises(NotFound, match="pharos backup pull --list"):
        list_offsite(settings.model_copy(update={"offsite": f"restic:s3:{s3.url}/no-such-bucket/pharos"}))


@pytest.mark.contract("BK-13", part="restic to a server over SFTP")
@pytest.mark.contract("BK-14", part="pull over SFTP on another machine, byte for byte")
def test_a_copy_goes_over_sftp_and_comes_back(ssh: Ssh, pushed_once: Path, tmp_path: Path) -> None:
    shutil.copytree(pushed_once / "elsewhere" / "repository", tmp_path / "repository")
    with_port = f"restic:sftp://{ssh.login}:{ssh.port}/{tmp_path / 'repository'}"
    settings = settings_for_ssh(ssh, tmp_path, with_port).model_copy(
        update={
            "offsite_ssh_port": None,
            "offsite_password_file": pushed_once / "data" / "secrets" / "offsite_password",
        }
    )
    folder = make_folder(tmp_path / "backups", LATER)
    push_backup(settings, folder)
    elsewhere = {
        "data_dir": tmp_path / "other",
        "offsite": f"restic:sftp:{ssh.login}:{tmp_path / 'repository'}",
        "offsite_ssh_port": ssh.port,
    }
    got = pull_backup(settings.model_copy(update=elsewhere), "latest", into=tmp_path / "got")
    assert (got.name, files_of(got)) == (LATER, files_of(folder))


@pytest.mark.contract("BK-13", part="rsync over SSH: compared byte by byte")
@pytest.mark.contract("BK-14", part="pull of a plain copy over SSH on another machine, byte for byte")
def test_a_plain_copy_goes_over_ssh_and_comes_back(ssh: Ssh, tmp_path: Path) -> None:
    there = tmp_path / "there"
    settings = settings_for_ssh(ssh, tmp_path, f"rsync:{ssh.login}:{there}")
    folder = make_folder(tmp_path / "backups")
    push_backup(settings, folder)
    empty = settings.model_copy(update={"data_dir": tmp_path / "other"})
    assert files_of(pull_backup(empty, NAME, into=tmp_path / "got")) == files_of(there / NAME) == files_of(folder)
    there.rename(tmp_path / "unmounted")
    with pytest.raises(NotFound, match="Is the disk mounted") as gone:
        push_backup(settings, folder)
    assert gone.value.code == "offsite_gone"


@pytest.mark.contract("BK-13", part="a host whose key is not known, or another, gets nothing; how to mend it is said")
@pytest.mark.parametrize("kind", ["restic:sftp:", "rsync:"])
def test_what_is_wrong_with_a_host_is_named(kind: str, ssh: Ssh, tmp_path: Path) -> None:
    settings = settings_for_ssh(ssh, tmp_path, f"{kind}{ssh.login}:{tmp_path / 'there'}")
    folder = make_folder(tmp_path / "backups")
    (tmp_path / "nobody").touch()
    scan = f"ssh-keyscan -p {ssh.port} 127.0.0.1 >> {tmp_path / 'nobody'}"
    stranger = settings.model_copy(update={"offsite_ssh_known_hosts_file": tmp_path / "nobody"})
    assert failure_of(stranger, folder) == ("offsite_unknown_host", Conflict, [scan])
    assert (tmp_path / "nobody").read_text() == "", "a host is never learned by the way"

    of_another = ssh.key_file.with_name("key.pub").read_text()
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{ssh.port} {of_another}")
    changed = settings.model_copy(update={"offsite_ssh_known_hosts_file": tmp_path / "changed"})
    forget = f"ssh-keygen -R '[127.0.0.1]:{ssh.port}' -f {tmp_path / 'changed'}"
    code, _, commands = failure_of(changed, folder)
    assert (code, commands) == ("offsite_host_changed", [forget, scan.replace("nobody", "changed")])

    # A good key, only nobody let it in.
    uninvited = settings.model_copy(update={"offsite_ssh_key_file": ssh.key_file.with_name("host")})
    assert failure_of(uninvited, folder)[:2] == ("offsite_refused", Conflict)
    shutil.copy(ssh.key_file, tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    readable = settings.model_copy(update={"offsite_ssh_key_file": tmp_path / "key"})
    assert failure_of(readable, folder) == ("offsite_refused", Conflict, [f"chmod 600 {tmp_path / 'key'}"])
    away = settings.model_copy(update={"offsite_ssh_port": 9})
    assert failure_of(away, folder) == ("offsite_unreachable", Unavailable, [f"ssh -p 9 {ssh.login}", LIST])
    assert not (tmp_path / "there").exists()


LIST = "pharos backup pull --list"


def failure_of(settings: Settings, folder: Path) -> tuple[str | None, type[PharosError], list[str]]:
    """Code and kind of what a push raises, and the commands its words begin with."""
    with pytest.raises(PharosError) as failed:
        push_backup(settings, folder)
    commands = failed.value.message.split("`")[1::2]
    return failed.value.code, type(failed.value), [one for one in commands if not one.startswith("ssh-keygen -lf")]
