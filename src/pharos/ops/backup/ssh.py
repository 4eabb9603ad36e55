"""SSH to the place of the copies: only to a host whose key is known, and nothing ever asks a question.

A host nobody compared is refused, not learned: whoever answered first could keep the copies, and nobody would notice.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pharos.infra.errors import Conflict, PharosError, Unavailable
from pharos.infra.settings import Settings

CONNECT_SECONDS = 20
ALIVE_SECONDS, ALIVE_TRIES = 30, 4
"""A host that is silent for two minutes is given up: restic itself would wait for ever."""
UNREACHABLE = re.compile(
    r"connection (refused|timed out|closed|reset)|could not resolve|no route to host|network is unreachable",
    re.IGNORECASE,
)
NOT_LET_IN = re.compile(r"Permission denied \([a-z]")
"""With the ways in that the host offers; `(13)` there is a folder's."""


@dataclass(frozen=True)
class Host:
    """`login` is what ssh is told: a host, or user@host; `port` is None where the settings or ~/.ssh/config say it."""

    login: str
    port: int | None = None

    @property
    def name(self) -> str:
        return self.login.rpartition("@")[2]


def host_of(place: str) -> Host | None:
    """The host of `sftp:user@host:/path`, `sftp://user@host:port//path` or `user@host:/path`; None where none is."""
    if place.startswith("sftp://"):
        parts = urlsplit(place)
        return Host(f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname), parts.port)
    login, colon, _ = place.removeprefix("sftp:").partition(":")
    return Host(login) if colon and "/" not in login else None


def environment() -> dict[str, str]:
    """For ssh and what starts it: where its keys and its configuration lie, and words that can be read here."""
    home = pwd.getpwuid(os.geteuid()).pw_dir
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "LC_ALL": "C.UTF-8"}


def ssh_words(settings: Settings, port: int | None = None) -> list[str]:
    """`ssh` with its options, for a host to follow."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": CONNECT_SECONDS,
        "ServerAliveInterval": ALIVE_SECONDS,
        "ServerAliveCountMax": ALIVE_TRIES,
    }
    if settings.offsite_ssh_known_hosts_file is not None:
        options["UserKnownHostsFile"] = f'"{settings.offsite_ssh_known_hosts_file}"'
    if settings.offsite_ssh_key_file is not None:
        options["IdentitiesOnly"] = "yes"
    words = ["ssh", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    if settings.offsite_ssh_key_file is not None:
        words += ["-i", str(settings.offsite_ssh_key_file)]
    if (number := port or settings.offsite_ssh_port) is not None:
        words += ["-p", str(number)]
    return words


def why_no_session(settings: Settings, host: Host) -> str:
    """What ssh says to this host; restic, whose session did not begin, may end before it has passed that on."""
    done = subprocess.run(  # noqa: S603
        [*ssh_words(settings, host.port), host.login, "-s", "sftp"],
        env=environment(),
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    return done.stderr


def ssh_failure(settings: Settings, host: Host, said: str) -> PharosError | None:
    """What ssh's words mean, with what to do; None when they are about something else."""
    port = host.port or settings.offsite_ssh_port or 22
    known = settings.offsite_ssh_known_hosts_file or Path("~/.ssh/known_hosts")
    scan = (
        f"`ssh-keyscan -p {port} {host.name} >> {known}` here, and compare `ssh-keygen -lf {known}` with what "
        "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on that host"
    )
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        name = host.name if port == 22 else f"[{host.name}]:{port}"
        return Conflict(
            f"{host.name} shows another key than the one known here, so nothing was sent: it is another machine, or "
            f"somebody is in between. Only if its key was replaced on purpose: `ssh-keygen -R '{name}' -f {known}`, "
            f"then {scan}.",
            code="offsite_host_changed",
        )
    if "Host key verification failed" in said:
        return Conflict(
            f"The key of {host.name} is not known here, so nothing was sent. Run {scan}. Another file of known hosts "
            "is named by PHAROS_OFFSITE_SSH_KNOWN_HOSTS_FILE.",
            code="offsite_unknown_host",
        )
    if "UNPROTECTED PRIVATE KEY" in said:
        return Conflict(
            f"Others may read the private key for {host.name}, so ssh does not use it. Run `chmod 600 "
            f"{settings.offsite_ssh_key_file or '~/.ssh/id_*'}`.",
            code="offsite_refused",
        )
    lines = [line.strip().removeprefix("subprocess ssh: ") for line in said.splitlines()]
    if line := next((line for line in lines if NOT_LET_IN.search(line)), ""):
        return Conflict(
            f"{host.name} does not let this machine in ({line}). Put this machine's public key into authorized_keys "
            "there, or name the private key it knows with PHAROS_OFFSITE_SSH_KEY_FILE.",
            code="offsite_refused",
        )
    if line := next((line for line in lines if UNREACHABLE.search(line)), ""):
        return Unavailable(
            f"{host.name} does not answer ({line}). Look whether it runs and whether `ssh -p {port} {host.login}` "
            "reaches it from here; then `pharos backup pull --list`.",
            code="offsite_unreachable",
        )
    return None
