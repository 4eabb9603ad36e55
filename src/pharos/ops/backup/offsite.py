"""Copies of backups elsewhere: `PHAROS_OFFSITE` names a restic repository or, for rsync, a place for plain copies.

Nothing is ever removed there: what was deleted here, by mistake or by somebody else, must still be found. A copy counts
when it was read back, and a repository that was there before and is gone is an error, not an empty one to begin with.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pharos.infra.errors import Conflict, Invalid, NotFound
from pharos.infra.secret_files import write_secret
from pharos.infra.settings import Settings
from pharos.ops.backup import restic, rsync
from pharos.ops.backup.check import check_files
from pharos.ops.backup.escrow import offline_recipients, seal_for_offline
from pharos.ops.backup.manifest import MANIFEST, SIGNATURE, VERIFIED, Manifest, read_manifest, write_private
from pharos.ops.backup.restic import SEALED_PASSWORD
from pharos.ops.backup.store import NAME, PULLING, pulled_file


@dataclass(frozen=True)
class Target:
    """Where copies go: `place` is what restic or rsync is told."""

    kind: Literal["restic", "rsync"]
    place: str

    @property
    def directory(self) -> Path | None:
        """Where it is a directory of this machine, such as a mounted disk; it may not be there. None for another
        machine's, which has a colon before the first slash."""
        place = self.place.removeprefix("local:") if self.kind == "restic" else self.place
        return None if ":" in place.partition("/")[0] else Path(place).absolute()


@dataclass(frozen=True)
class OffsiteCopy:
    """A backup that lies offsite; `snapshot` is restic's id of it, "" for a plain copy."""

    name: str
    snapshot: str


@dataclass(frozen=True)
class Pushed:
    """A copy that was made and read back; `checked` says which part of the repository was read too, as `3/7`."""

    name: str
    target: str
    snapshot: str
    files: int
    added_bytes: int
    checked: str
    seconds: float


def target_of(settings: Settings) -> Target | None:
    """Where copies go; None when nobody has said. Raises `Invalid`."""
    if not settings.offsite:
        return None
    kind, _, place = settings.offsite.partition(":")
    if kind == "restic" and place:
        return Target("restic", place)
    if kind == "rsync" and place:
        return Target("rsync", place)
    raise Invalid(
        "PHAROS_OFFSITE is `restic:` with a directory, sftp:user@host:/path or s3:https://host/bucket, or `rsync:` "
        "with a directory or user@host:/path.",
        code="bad_offsite",
    )


def require_target(settings: Settings) -> Target:
    """The same; raises `Invalid` (`no_offsite`) when nobody has said."""
    target = target_of(settings)
    if target is None:
        raise Invalid(
            "No place for copies is set. Set PHAROS_OFFSITE, for example to restic:/mnt/other-disk/pharos or "
            "rsync:user@host:/path.",
            code="no_offsite",
        )
    return target


def push_backup(settings: Settings, folder: Path) -> Pushed:
    """Copy a backup's folder offsite and read it back; with restic a seventh of the repository is read too.

    Whoever calls holds the operation lock: under it a lock that a killed restic of this machine left is removed.
    Raises `NotFound` for a folder that is gone or no backup, `Conflict` for one that is not what its manifest says and
    for a copy or repository that is wrong, `Unavailable` when the place does not answer or the program is missing.
    """
    started, target = time.monotonic(), require_target(settings)
    manifest = read_manifest(folder)
    files = _files_to_copy(folder, manifest)
    if target.kind == "rsync":
        rsync.push(settings, target.place, folder, is_known=_is_known(settings, target))
        _remember(settings, target, {})
        return Pushed(folder.name, settings.offsite or "", "", files, 0, "", round(time.monotonic() - started, 3))
    state = _state(settings, target)
    state["repository"] = restic.open_repository(settings, target.place, known_id=state.get("repository"))
    _remember(settings, target, state)
    seal_password(settings, target)
    snapshot, added = restic.push(settings, target.place, folder, files=files)
    # The check comes first: reading a file whose pack is gone, restic would try again for most of a minute.
    part = restic.next_part(int(state.get("part", 0)))
    restic.check(settings, target.place, part=part)
    original = (folder / MANIFEST).read_bytes()
    if restic.read_file(settings, target.place, snapshot, f"{folder.name}/{MANIFEST}") != original:
        raise Conflict(f"The copy of {folder.name} reads back differently. Run it again.", code="offsite_differs")
    _remember(settings, target, {**state, "part": part})
    seconds = round(time.monotonic() - started, 3)
    return Pushed(folder.name, settings.offsite or "", snapshot, files, added, f"{part}/{restic.PARTS}", seconds)


def sealed_password_file(settings: Settings) -> Path:
    """The repository's password as only the operator's offline identity opens it, for `seal_password`."""
    return settings.data_dir / "secrets" / "offsite_password.age"


def seal_password(settings: Settings, target: Target) -> None:
    """Keep the repository's password sealed to the offline recipients: here, and with a repository in a directory.

    It is written anew each time, for whoever the recipients are now; without one nothing is.
    """
    sealed = seal_for_offline(settings, restic.password_file(settings).read_bytes())
    if sealed is None:
        return
    write_secret(sealed_password_file(settings), sealed)
    if (directory := target.directory) is not None and directory.is_dir():
        write_secret(directory / SEALED_PASSWORD, sealed)


def say_where_password_lies(settings: Settings) -> str:
    """What to tell an operator after a copy to a restic repository: where another machine gets its password from."""
    if not offline_recipients(settings):
        return (
            f"The repository's password lies on this machine alone, in {restic.password_file(settings)}: lost with it, "
            "nobody opens the copies. Keep a copy of it elsewhere, or set PHAROS_BACKUP_RECIPIENT and push again."
        )
    opened = "the offline identity opens it, on a new machine too"
    if (directory := require_target(settings).directory) is not None and directory.is_dir():
        return f"The repository's password lies sealed beside the copies, in {directory / SEALED_PASSWORD}: {opened}."
    return (
        f"The repository's password is sealed in {sealed_password_file(settings)}: {opened}. Copy that file away from "
        "this machine, best to where the identity is kept."
    )


def list_offsite(settings: Settings) -> list[OffsiteCopy]:
    """The backups that lie offsite, newest first."""
    target = require_target(settings)
    if target.kind == "rsync":
        found = [OffsiteCopy(name, "") for name in rsync.list_names(settings, target.place)]
    else:
        found = [OffsiteCopy(name, snapshot) for name, snapshot in restic.list_snapshots(settings, target.place)]
    newest = {copy.name: copy for copy in found if NAME.fullmatch(copy.name)}
    return sorted(newest.values(), key=lambda copy: copy.name, reverse=True)


def find_offsite(settings: Settings, wanted: str) -> OffsiteCopy:
    """The newest copy that `wanted` means: `latest`, a name, a date or the beginning of a time. Raises `NotFound`."""
    copies = list_offsite(settings)
    digits = re.sub(r"[^0-9]", "", wanted)
    for copy in copies:
        at = NAME.fullmatch(copy.name)
        assert at is not None
        if wanted in {"latest", copy.name} or (digits and (at[1] + at[2]).startswith(digits)):
            return copy
    has = f"The newest there is {copies[0].name}." if copies else "There is none there yet: `pharos backup push`."
    raise NotFound(f"No backup offsite is {wanted}. {has}", code="no_such_copy")


def pull_backup(settings: Settings, wanted: str, *, into: Path) -> Path:
    """Fetch a copy from offsite below `into` and return its folder; a half-fetched one never has its final name.

    Compares every file with the manifest; whose signature that bears is for whoever uses it to check. Among this
    installation's backups its age counts from now, for retention. Raises `NotFound`, `Conflict` for a folder that is
    there already or a copy that is damaged, `Unavailable`, `StorageFull`.
    """
    target, copy = require_target(settings), find_offsite(settings, wanted)
    final = into / copy.name
    if final.exists():
        raise Conflict(f"{final} is there already. Remove it, or fetch into another folder.", code="already_here")
    into.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = into / f"{PULLING}{copy.name}-{secrets.token_hex(4)}"
    fresh.mkdir(mode=0o700)
    try:
        if target.kind == "rsync":
            rsync.pull(settings, target.place, copy.name, fresh)
        else:
            restic.pull(settings, target.place, copy.snapshot, fresh)
        folder = fresh / copy.name
        check_files(folder, read_manifest(folder))
        if into.resolve() == settings.backup_root.resolve():
            write_private(pulled_file(final), datetime.now(UTC).isoformat().encode())
        folder.rename(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final


def _files_to_copy(folder: Path, manifest: Manifest) -> int:
    """How many files the copy must have. Raises `Conflict` for a folder that is not what its manifest says."""
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    wanted = {*manifest.files, MANIFEST, SIGNATURE}
    if missing := sorted(wanted - there):
        raise Conflict(
            f"{folder.name} lacks {missing[0]} ({len(missing)} files in all), so it is not copied. Make another "
            "backup: `pharos backup now`.",
            code="backup_incomplete",
        )
    if foreign := sorted(there - wanted - {VERIFIED}):
        raise Conflict(
            f"{folder.name} holds {foreign[0]}, which its manifest does not name.", code="backup_foreign_file"
        )
    return len(there)


def _state_file(settings: Settings) -> Path:
    return settings.data_dir / "secrets" / "offsite_state"


def _state(settings: Settings, target: Target) -> dict[str, Any]:
    """What is remembered of this target; nothing when it was never used."""
    try:
        found = json.loads(_state_file(settings).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(found) if found.get("place") == target.place else {}


def _is_known(settings: Settings, target: Target) -> bool:
    return bool(_state(settings, target))


def _remember(settings: Settings, target: Target, state: dict[str, Any]) -> None:
    write_secret(_state_file(settings), json.dumps({**state, "place": target.place}))
