"""rsync as a plain copy: to a directory or over SSH, never with `--delete`.

The manifest is copied last, so a backup there without one is half a copy. Every copy is compared byte by byte with its
original before it counts. It is not encrypted: whoever has that place reads the documents.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from pharos.infra.errors import Conflict, NotFound, StorageFull, Unavailable
from pharos.infra.settings import Settings
from pharos.ops.backup import ssh
from pharos.ops.backup.manifest import MANIFEST

SILENCE_SECONDS = 120
PARTIAL = "--partial-dir=.rsync-partial"


def push(settings: Settings, place: str, folder: Path, *, is_known: bool) -> None:
    """Copy a folder and compare. Raises `Conflict` when the copy differs, `NotFound` when earlier ones are gone."""
    if is_known and not list_names(settings, place):
        raise NotFound(
            f"No backup lies at {place} any more, where there were some. Is the disk mounted?", code="offsite_gone"
        )
    target = f"{place.rstrip('/')}/"
    _run(settings, place, "--archive", PARTIAL, f"--exclude={MANIFEST}", str(folder), target)
    _run(settings, place, "--archive", PARTIAL, str(folder), target)
    differing = _run(settings, place, "--archive", "--checksum", "--dry-run", "--itemize-changes", str(folder), target)
    changed = [line for line in differing.splitlines() if re.match(r"[<>c*]f", line)]
    if changed:
        raise Conflict(
            f"The copy of {folder.name} differs in {len(changed)} files (first: {changed[0].split()[-1]}). Run it "
            "again; if that happens twice, check the disk there.",
            code="offsite_differs",
        )


def list_names(settings: Settings, place: str) -> list[str]:
    """Names of the folders there."""
    listed = _run(settings, place, "--list-only", f"{place.rstrip('/')}/")
    return [line.split()[-1] for line in listed.splitlines() if line.startswith("d") and not line.endswith(" .")]


def pull(settings: Settings, place: str, name: str, into: Path) -> None:
    """Fetch one folder below `into`."""
    _run(settings, place, "--archive", "--no-owner", "--no-group", f"{place.rstrip('/')}/{name}", f"{into}/")


def _run(settings: Settings, place: str, *words: str) -> str:
    program = shutil.which("rsync")
    if program is None:
        raise Unavailable("rsync is not installed. Install it: `apt install rsync`.", code="rsync_missing")
    done = subprocess.run(  # noqa: S603
        [program, f"--rsh={shlex.join(ssh.ssh_words(settings))}", f"--timeout={SILENCE_SECONDS}", *words],
        env=ssh.environment(),
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    if done.returncode == 0:
        return done.stdout
    host = ssh.host_of(place)
    if host is not None and (failure := ssh.ssh_failure(settings, host, done.stderr)) is not None:
        raise failure
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
    if "No space left" in done.stderr:
        raise StorageFull(f"No room for this copy ({last}). Make room there and run it again.")
    if "No such file or directory" in done.stderr:
        raise NotFound(
            f"rsync does not find it: {last}. Is the disk mounted? When it is, `pharos backup pull --list` shows what "
            "lies there.",
            code="offsite_gone",
        )
    raise Unavailable(f"rsync ended with {done.returncode}: {last}", code="offsite_failed")
