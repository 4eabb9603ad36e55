"""restic, wrapped so that nothing it keeps quiet about is taken for success.

Debian's 0.14 was measured: it ends with 0 though one of two sources was missing, it ends with 1 for a wrong password
and for any other failure alike, and `check` sees a damaged pack only when it reads the data. So there is one source,
its summary is parsed and counted, every call that did not end with 0 is a failure, and its words say which.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from pharos.infra.errors import Conflict, NotFound, PharosError, StorageFull, Unavailable
from pharos.infra.secret_files import create_secret
from pharos.infra.settings import Settings
from pharos.ops.backup import ssh

PARTS = 7
"""A check reads one of so many parts of the repository: checked nightly, every pack is read weekly."""
SEALED_PASSWORD = "pharos-offsite-password.age"  # noqa: S105 - a file name
"""In the repository's directory, where restic looks for nothing of this name."""
QUICK_SECONDS = 180.0
"""For what moves no data; restic itself tries an unreachable S3 server again for a quarter of an hour."""


def password_file(settings: Settings) -> Path:
    """Where the repository's password lies; a generated one is made with the first copy."""
    return settings.offsite_password_file or settings.data_dir / "secrets" / "offsite_password"


def open_repository(settings: Settings, place: str, *, known_id: str | None) -> str:
    """The repository's id; one is made where this installation has never had any.

    Raises `Conflict` when the password is wrong or another repository lies there, `NotFound` when it is gone.
    """
    if known_id is None and settings.offsite_password_file is None:
        create_secret(password_file(settings), os.urandom(32).hex())
    try:
        found = _repository_id(settings, place)
    except NotFound:
        if known_id is not None:
            raise
        _run(settings, place, "init", seconds=QUICK_SECONDS)
        found = _repository_id(settings, place)
    if known_id is not None and found != known_id:
        raise Conflict(
            f"Another repository lies at {place} than the one used so far. Is the right disk mounted? If it was "
            "replaced on purpose, remove secrets/offsite_state from the data directory and run this again.",
            code="offsite_other",
        )
    return found


def push(settings: Settings, place: str, folder: Path, *, files: int) -> tuple[str, int]:
    """Copy one folder; returns the snapshot's id and the bytes it added. Raises `Conflict` unless all files came."""
    # Relative, so that the snapshot holds `<name>/…` wherever the backups lie here.
    words = ("backup", "--json", "--tag", "pharos", "--host", socket.gethostname(), folder.name)
    said = _run_locked(settings, place, *words, directory=folder.parent)
    messages = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    summary = next((one for one in messages if one["message_type"] == "summary"), None)
    errors = [one for one in messages if one["message_type"] == "error" or one.get("error_count")]
    if summary is None or errors or summary["total_files_processed"] != files:
        copied = 0 if summary is None else summary["total_files_processed"]
        raise Conflict(
            f"restic copied {copied} of {files} files of {folder.name} and met {len(errors)} errors. Run it again; if "
            "that happens twice, check the disk the backups lie on.",
            code="offsite_incomplete",
        )
    return str(summary["snapshot_id"]), int(summary["data_added"])


def next_part(part: int) -> int:
    """The part of the repository that is read after `part`; 0 is before the first check."""
    return part % PARTS + 1


def check(settings: Settings, place: str, *, part: int) -> tuple[int, int] | None:
    """Check the whole structure and read one of `PARTS` of the data. Raises `Conflict` naming what is damaged.

    Returns how many packs were read of how many, where restic says so.
    """
    said = _run_locked(settings, place, "check", f"--read-data-subset={part}/{PARTS}")
    found = re.search(r"of (\d+) data packs \(out of total (\d+) packs", said)
    return (int(found[1]), int(found[2])) if found else None


def list_snapshots(settings: Settings, place: str) -> list[tuple[str, str]]:
    """(name of the backup, snapshot id), oldest first."""
    found = json.loads(_run(settings, place, "snapshots", "--json", "--no-lock", "--tag", "pharos", seconds=600.0))
    return [(Path(one["paths"][0]).name, one["id"]) for one in found if len(one["paths"]) == 1]


def read_file(settings: Settings, place: str, snapshot: str, path: str) -> bytes:
    """One file of a snapshot."""
    return _run(settings, place, "dump", "--no-lock", snapshot, f"/{path}").encode("utf-8", "surrogateescape")


def pull(settings: Settings, place: str, snapshot: str, into: Path) -> None:
    """Fetch a snapshot below `into`."""
    _run(settings, place, "restore", "--no-lock", snapshot, "--target", str(into))


def _repository_id(settings: Settings, place: str) -> str:
    config: dict[str, Any] = json.loads(_run(settings, place, "cat", "config", "--no-lock", seconds=QUICK_SECONDS))
    return str(config["id"])


def _run_locked(settings: Settings, place: str, *words: str, directory: Path | None = None) -> str:
    """Run what takes a lock. Where one is in the way, those that restic itself calls stale go, and it runs again.

    Stale are those of a process of this machine that is gone, and any that was not renewed for half an hour. Raises
    `Conflict` naming the holder of one that is neither.
    """
    for is_last in (False, True):
        try:
            return _run(settings, place, *words, directory=directory)
        except Conflict as error:
            if error.code != "offsite_locked":
                raise
            if is_last:
                raise _locked(place, _holder(settings, place)) from error
        _run(settings, place, "unlock", seconds=QUICK_SECONDS)
    raise AssertionError


def _holder(settings: Settings, place: str) -> str:
    ids = _run(settings, place, "list", "locks", "--no-lock", seconds=QUICK_SECONDS).split()
    if not ids:
        return "by another restic"
    lock = json.loads(_run(settings, place, "cat", "lock", ids[0], "--no-lock", seconds=QUICK_SECONDS))
    return f"by process {lock['pid']} on {lock['hostname']} since {lock['time'][:19]}"


def _run(
    settings: Settings, place: str, *words: str, directory: Path | None = None, seconds: float | None = None
) -> str:
    program = shutil.which("restic")
    if program is None:
        raise Unavailable("restic is not installed. Install it: `apt install restic`.", code="restic_missing")
    try:
        done = subprocess.run(  # noqa: S603
            [program, "--no-cache", *_ssh_option(settings, place), *words],
            env=_environment(settings, place),
            cwd=directory,
            capture_output=True,
            check=False,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(
            f"{place} has not answered within {seconds:.0f} s. Look at the network; `pharos backup pull --list` asks "
            "again.",
            code="offsite_unreachable",
        ) from error
    if done.returncode != 0:
        raise _failure(settings, place, words[0], done.returncode, f"{done.stdout}\n{done.stderr}")
    return done.stdout


def _ssh_option(settings: Settings, place: str) -> list[str]:
    """restic's own call of ssh would take its questions for the answer of a server."""
    host = _sftp_host(place)
    if host is None:
        return []
    command = shlex.join([*ssh.ssh_words(settings, host.port), host.login, "-s", "sftp"])
    quoted = f"sftp.command={command}".replace('"', '""')
    return ["-o", f'"{quoted}"']  # restic reads the value as a line of CSV


def _sftp_host(place: str) -> ssh.Host | None:
    return ssh.host_of(place) if place.startswith("sftp:") else None


def _environment(settings: Settings, place: str) -> dict[str, str]:
    """Only for restic's own short life; the password stays in its file."""
    environment = {
        **ssh.environment(),
        "RESTIC_REPOSITORY": place,
        "RESTIC_PASSWORD_FILE": str(password_file(settings)),
    }
    if settings.offsite_s3_key_id is not None and settings.offsite_s3_key is not None:
        environment["AWS_ACCESS_KEY_ID"] = settings.offsite_s3_key_id
        environment["AWS_SECRET_ACCESS_KEY"] = settings.offsite_s3_key.get_secret_value()
    return environment


DAMAGE = (
    re.compile(r"does not match|not present|does not exist|verification failed|invalid data|wrong data|not found"),
    re.compile(r"contains (\d+ )?errors|unable to (load|decrypt)|error"),
)
"""What restic says of a damaged repository: lines that name the file first, then those that only say that one is."""
REFUSED = re.compile(
    r"access ?denied|permission denied|forbidden|SignatureDoesNotMatch|signature we calculated|access key id",
    re.IGNORECASE,
)
UNREACHABLE = re.compile(r"dial tcp|no such host|i/o timeout|connection (refused|reset)|TLS handshake|x509:")
NO_SESSION = "unable to start the sftp session"


def _failure(settings: Settings, place: str, what: str, code: int, said: str) -> PharosError:
    """What restic's words mean; an unknown failure is one too."""
    host = _sftp_host(place)
    if host is not None and NO_SESSION in said:
        said = f"{said}\n{ssh.why_no_session(settings, host)}"
    failure = _no_password(settings, place, said) or (host and ssh.ssh_failure(settings, host, said))
    failure = failure or _no_access(place, said)
    if failure is not None:
        return failure
    if "Is there a repository at" in said or "unable to open config file" in said:
        return NotFound(
            f"There is no repository at {place}, where there was one or should be. Is the disk mounted? When it is, "
            "`pharos backup pull --list` shows what lies there.",
            code="offsite_gone",
        )
    if "already locked" in said:
        return _locked(place, "by another restic")
    if "no space left" in said.lower():
        return StorageFull(f"No room for this copy ({_last(said)}). Make room and run it again.")
    damage = _damage(place, said) if what in {"check", "restore", "dump"} else None
    return damage or Unavailable(f"restic {what} ended with {code}: {_last(said)}", code="offsite_failed")


def _no_password(settings: Settings, place: str, said: str) -> Conflict | None:
    """The password is missing, or another one; None when these words are about something else."""
    if "Resolving password failed" in said:
        return Conflict(
            f"This machine has no password for the repository at {place}: {password_file(settings)} cannot be read. "
            "Put it back; on a new machine open the sealed one with the offline identity, `(umask 077; age -d -i "
            f"identity.txt {SEALED_PASSWORD} > password)`, and set PHAROS_OFFSITE_PASSWORD_FILE to that file. The "
            "sealed one lies in the repository's directory; for SSH and S3 it is your copy of "
            "secrets/offsite_password.age.",
            code="offsite_wrong_password",
        )
    if "wrong password" in said or "no key found" in said:
        return Conflict(
            f"The password does not open the repository at {place} ({_last(said)}). It must be the one the repository "
            "was made with: put it back, or name its file with PHAROS_OFFSITE_PASSWORD_FILE.",
            code="offsite_wrong_password",
        )
    return None


def _no_access(place: str, said: str) -> PharosError | None:
    """What keeps this machine from the repository; it may well be there."""
    lines = [line.strip() for line in said.splitlines()]
    if line := next((line for line in lines if REFUSED.search(line)), ""):
        do = "Give the user of this machine the right to read and write there."
        if place.startswith("s3:"):
            do = (
                "PHAROS_OFFSITE_S3_KEY_ID and PHAROS_OFFSITE_S3_KEY must be a key of that server that may read, list "
                "and write the bucket."
            )
        return Conflict(f"{place} refuses this machine ({line}). {do}", code="offsite_refused")
    if line := next((line for line in lines if UNREACHABLE.search(line)), ""):
        return Unavailable(
            f"{place} does not answer ({line}). Look at its address in PHAROS_OFFSITE and at the network; "
            "`pharos backup pull --list` asks again.",
            code="offsite_unreachable",
        )
    return None


def _last(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no word")


def _damage(place: str, said: str) -> Conflict | None:
    """What is damaged, in restic's words; None when these are about something else."""
    lines = [line.strip() for line in said.splitlines()]
    line = next((line for kind in DAMAGE for line in lines if kind.search(line)), "")
    if not line:
        return None
    return Conflict(
        f"The repository at {place} is damaged: {line}. Do not trust it: name another place with PHAROS_OFFSITE, run "
        "`pharos backup push`, and look at the disk of this one.",
        code="offsite_damaged",
    )


def _locked(place: str, by: str) -> Conflict:
    return Conflict(
        f"The repository at {place} is locked {by}. Wait until that ends and run this again; when nothing runs there "
        "any more, `restic unlock` on that machine removes the lock.",
        code="offsite_locked",
    )
