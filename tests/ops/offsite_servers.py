"""Real places for copies on this machine's loopback: an S3 server that checks signatures, and OpenSSH's sshd."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pharos.infra.embedded_postgres import free_port

RCLONE = Path(sys.executable).with_name("rclone")
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
RUN_SSHD = Path("/run/sshd")
"""sshd started by root insists on it; Debian's service makes it at each start."""


@dataclass(frozen=True)
class S3:
    url: str
    root: Path
    """Its buckets, as folders."""
    key_id: str
    key: str


@dataclass(frozen=True)
class Ssh:
    login: str
    port: int
    key_file: Path
    known_hosts: Path


@contextmanager
def s3_server(place: Path, *, key_id: str, key: str) -> Iterator[S3]:
    """rclone's server of S3, of whom one key is known."""
    root, address = place / "buckets", f"127.0.0.1:{free_port()}"
    root.mkdir(parents=True)
    words = ["serve", "s3", f"--auth-key={key_id},{key}", f"--addr={address}", f"--config={place / 'none'}", str(root)]
    with _running([RCLONE, *words], until="Starting s3 server"):
        yield S3(f"http://{address}", root, key_id, key)


@contextmanager
def ssh_server(place: Path) -> Iterator[Ssh]:
    """sshd for this user alone, by a key made here; skips the test where there is none."""
    if SSHD is None:
        pytest.skip("sshd is not installed: apt install openssh-server")
    if os.geteuid() == 0:
        RUN_SSHD.mkdir(mode=0o755, exist_ok=True)
    place.mkdir(parents=True)
    for name in ("host", "key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
        subprocess.run(words, check=True)
    port = free_port()
    known = place / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(place / 'host.pub').read_text()}")
    shutil.copy(place / "key.pub", place / "authorized_keys")
    config = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": place / "host",
        "AuthorizedKeysFile": place / "authorized_keys",
        "StrictModes": "no",  # a temporary directory may be anybody's to write
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PidFile": "none",
        "Subsystem": "sftp internal-sftp",
    }
    (place / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))
    with _running([SSHD, "-D", "-e", "-f", place / "sshd_config"], until="Server listening"):
        yield Ssh(f"{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1", port, place / "key", known)


@contextmanager
def _running(words: list[str | Path], *, until: str) -> Iterator[None]:
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if until in line:
                    break
            else:
                raise AssertionError("".join(said))
            yield
        finally:
            process.kill()
