"""restic, wrapped so that nothing it keeps quiet about is taken for success.

Debian's 0.14 was measured: it ends with 0 though one of two sources was missing, it ends with 1 for a wrong password
and for any other failure alike, and `check` sees a damaged pack only when it reads the data. So there is one source,
its summary is parsed and counted, every call that did not end with 0 is a failure, and its words say which.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil

from pharos.infra.errors import Conflict, NotFound, PharosError, StorageFull, Unavailable
from pharos.infra.secret_files import create_secret
from pharos.infra.settings import Settings

PARTS = 7
"""A check reads one of so many parts of the repository: checked nightly, every pack is read weekly."""
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


def clear_own_locks(settings: Settings, place: str) -> None:
    """Remove locks that a killed restic of this machine left. Raises `Conflict` for one that is somebody's."""
    ids = _run(settings, place, "list", "locks", "--no-lock", seconds=QUICK_SECONDS).split()
    locks = [json.loads(_run(settings, place, "cat", "lock", one, "--no-lock", seconds=QUICK_SECONDS)) for one in ids]
    for lock in locks:
        if lock["hostname"] != socket.gethostname() or psutil.pid_exists(lock["pid"]):
            raise _locked(place, f"by process {lock['pid']} on {lock['hostname']} since {lock['time'][:19]}")
    if locks:
        _run(settings, place, "unlock", seconds=QUICK_SECONDS)


def push(settings: Settings, place: str, folder: Path, *, files: int) -> tuple[str, int]:
    """Copy one folder; returns the snapshot's id and the bytes it added. Raises `Conflict` unless all files came."""
    # Relative, so that the snapshot holds `<name>/…` wherever the backups lie here.
    said = _run(
        *(settings, place, "backup", "--json", "--tag", "pharos", "--host", socket.gethostname(), folder.name),
        directory=folder.parent,
    )
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


def check(settings: Settings, place: str, *, part: int) -> None:
    """Check the whole structure and read one of `PARTS` of the data. Raises `Conflict` naming what is damaged."""
    words = ("check", f"--read-data-subset={part}/{PARTS}")
    try:
        _run(settings, place, *words)
    except Conflict as error:
        if error.code != "offsite_locked":
            raise
        clear_own_locks(settings, place)
        _run(settings, place, *words)


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


def _run(
    settings: Settings, place: str, *words: str, directory: Path | None = None, seconds: float | None = None
) -> str:
    program = shutil.which("restic")
    if program is None:
        raise Unavailable("restic is not installed. Install it: `apt install restic`.", code="restic_missing")
    try:
        done = subprocess.run(  # noqa: S603
            [program, "--no-cache", *words],
            *(),
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
        raise Unavailable(f"{place} has not answered within {seconds:.0f} s.", code="offsite_unreachable") from error
    if done.returncode != 0:
        raise _failure(place, words[0], done.returncode, f"{done.stdout}\n{done.stderr}")
    return done.stdout


def _environment(settings: Settings, place: str) -> dict[str, str]:
    """Only for restic's own short life; the password stays in its file."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": pwd.getpwuid(os.geteuid()).pw_dir,  # where ssh finds its keys
        "LC_ALL": "C.UTF-8",
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


def _failure(place: str, what: str, code: int, said: str) -> PharosError:
    """What restic's words mean; an unknown failure is one too."""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no word")
    if "wrong password" in said or "no key found" in said or "Resolving password failed" in said:
        return Conflict(
            f"The password does not open the repository at {place} ({last}). It must be the one the repository was "
            "made with: put it back, or name its file with PHAROS_OFFSITE_PASSWORD_FILE.",
            code="offsite_wrong_password",
        )
    if "Is there a repository at" in said or "unable to open config file" in said:
        return NotFound(
            f"There is no repository at {place}, where there was one or should be. Is the disk mounted, the host "
            "reachable?",
            code="offsite_gone",
        )
    if "already locked" in said:
        return _locked(place, "by another restic")
    if "no space left" in said.lower():
        return StorageFull(f"No room for this copy ({last}). Make room and run it again.")
    damage = _damage(place, said) if what in {"check", "restore", "dump"} else None
    return damage or Unavailable(f"restic {what} ended with {code}: {last}", code="offsite_failed")


def _damage(place: str, said: str) -> Conflict | None:
    """What is damaged, in restic's words; None when these are about something else."""
    lines = [line.strip() for line in said.splitlines()]
    line = next((line for kind in DAMAGE for line in lines if kind.search(line)), "")
    if not line:
        return None
    return Conflict(
        f"The repository at {place} is damaged: {line}. Do not trust it: make a new one elsewhere, push there, and "
        "look at the disk of this one.",
        code="offsite_damaged",
    )


def _locked(place: str, by: str) -> Conflict:
    return Conflict(
        f"The repository at {place} is locked {by}. Wait until that ends and run this again; when nothing runs there "
        "any more, `restic unlock` on that machine removes the lock.",
        code="offsite_locked",
    )
